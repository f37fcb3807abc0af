"""Training: a run that was stopped or killed goes on bit for bit, the loss falls, bad data is named."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddgen.app import runfiles
from ddgen.app.dataset import Dataset
from ddgen.app.pipeline import Pipeline
from ddgen.app.runfiles import read_log, read_state
from ddgen.app.ledger import Lock, Shard
from ddgen.app.train import Settings, Trainer
from ddgen.errors import InputError, ModelError
from ddgen.nets.config import KLConfig, PatchConfig, UNetConfig
from ddgen.nets.unet import UNet
from ddgen.nets.vae import AutoencoderKL
from ddgen.text.clip import CLIPTextModel
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights.arch import Arch
from ddgen.weights.checkpoint import save_tensors, spec_metadata
from ddgen.weights.header import read_header
from ddgen.weights.spec import Defaults, Spec

TOWER = TowerSpec(CLIPConfig(width=16, layers=1, heads=2, mlp=32, projection_dim=24), pooled=True)
NETWORK = UNetConfig(
    in_channels=192,
    out_channels=192,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    down_depth=((0,), (1,)),
    up_depth=((0, 0), (1, 1)),
    mid_depth=None,
    heads=(2, 2),
    context_dim=16,
    vector_dim=24,
    linear_projection=True,
    position_channels=16,
)
SPEC = Spec(
    "tiny",
    Arch("tiny", NETWORK, PatchConfig(), (TOWER,)),
    prediction="x0",
    schedule={"kind": "cosine", "shift": -1.4},
    x0_clamp={"kind": "static", "min": -1.1, "max": 1.1},
    defaults=Defaults(width=64, height=64, steps=4, guidance=2.0, sampler="ddim", spacing="linspace"),
)
QUICK = Settings(steps=8, batch=4, warmup=2, lr=2e-3, report_every=2, save_every=4, scratch=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_tensors(path, tensors_of(NETWORK), spec_metadata(SPEC))
    return path


def tensors_of(network: UNetConfig) -> dict[str, torch.Tensor]:
    """A U-Net and the text tower under the names of a single file."""
    tensors = {f"model.diffusion_model.{key}": value for key, value in UNet(network).state_dict().items()}
    for key, value in CLIPTextModel(TOWER.config).state_dict().items():
        prefix = (
            TOWER.prefix.removesuffix("text_model.") if key.startswith("text_projection") else TOWER.prefix
        )
        tensors[prefix + key] = value
    return tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Squares of six colours, each with two captions."""
    path = tmp_path_factory.mktemp("data")
    lines = []
    for i, colour in enumerate(("red", "green", "blue", "yellow", "purple", "orange")):
        image = Image.new("RGB", (64, 64), "white")
        image.paste(colour, (16, 16, 48, 48))
        image.save(path / f"{i}.png")
        lines.append(
            json.dumps(
                {
                    "file_name": f"{i}.png",
                    "text": colour,
                    "captions": {f"a {colour} square": 2, colour: 1},
                    "weight": 1,
                }
            )
        )
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def trainer(model: Path, folder: Path, out: Path, settings: Settings) -> Trainer:
    return Trainer(Pipeline.load(str(model), device="cpu"), Dataset(folder, 64, 64), out, settings)


def end_of(run: Trainer) -> dict[str, torch.Tensor]:
    list(run.run())
    return {key: value.clone() for key, value in run.network.state_dict().items()} | {
        f"average.{key}": value.clone() for key, value in run.average.state.items()
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_ends_at_the_same_bits(model, folder, tmp_path, optimizer):
    settings = Settings(**{**QUICK.__dict__, "optimizer": optimizer})
    whole = end_of(trainer(model, folder, tmp_path / "whole", settings))
    halves = trainer(model, folder, tmp_path / "halves", settings)
    for report in halves.run():
        if report.step == 6:  # saved at 4: steps 5 and 6 are made again
            break
    again = trainer(model, folder, tmp_path / "halves", settings)
    assert again.step == 4
    found = end_of(again)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)
    assert [report["step"] for report in read_log(tmp_path / "halves")] == [2, 4, 6, 8]


def test_steps_see_different_pictures_and_noise(model, folder):
    data = Dataset(folder, 64, 64)
    one, same, next_one = (
        data.draw(3, step, 4, [(2, 2, 2)], dropout=0.5, high_noise=0.3) for step in (7, 7, 8)
    )
    assert np.array_equal(one.eps, same.eps) and np.array_equal(one.pictures, same.pictures)
    assert not np.array_equal(one.eps, next_one.eps)
    assert sorted((one.u * 4).astype(int)) != [0, 0, 0, 0] and one.u.min() >= 0 and one.u.max() < 1


def test_captions_are_dropped_at_the_given_rate(folder):
    data = Dataset(folder, 64, 64)
    draws = [data.draw(0, step, 6, [(1, 1, 1)], dropout=0.25, high_noise=0.0) for step in range(200)]
    assert abs(np.mean([np.mean(draw.captions == 0) for draw in draws]) - 0.25) < 0.05
    assert sum((draw.u > 0.8).sum() for draw in draws) == pytest.approx(0.2 * 1200, rel=0.2)


def test_the_loss_falls(model, folder, tmp_path):
    settings = Settings(
        steps=60, batch=6, warmup=5, lr=3e-3, report_every=20, save_every=100, scratch=True, average=0.9
    )
    run = trainer(model, folder, tmp_path, settings)
    before = run.evaluate()
    after = list(run.run())[-1]
    assert after.fixed < 0.5 * before
    assert after.factor < 0.05  # the rate has fallen to nothing


def test_what_is_saved_samples_as_the_average_does(model, folder, tmp_path):
    from ddgen.app.sheet import draw

    run = trainer(model, folder, tmp_path, QUICK)
    list(run.run())
    loaded = Pipeline.load(str(tmp_path / "model.safetensors"), device="cpu")
    assert loaded.spec.arch == SPEC.arch
    mine, theirs = (
        np.array(draw(pipeline, ["a red square"], [0, 1])).astype(int) for pipeline in (run.sampler(), loaded)
    )
    assert np.abs(mine - theirs).max() <= 4  # float16 on disk
    assert {info.dtype for info in read_header(tmp_path / "model.safetensors").tensors.values()} == {"F16"}


def test_latents_of_an_autoencoder_are_trained_on(folder, tmp_path):
    """What a KL model is trained on is its autoencoder's latents; the saved file holds the autoencoder as it
    was."""
    torch.manual_seed(2)
    stage = AutoencoderKL(
        KLConfig(
            latent_channels=4,
            model_channels=32,
            channel_mult=(1, 1, 1, 1),
            num_res_blocks=1,
            scale_factor=0.5,
        )
    )
    network = replace(NETWORK, in_channels=4, out_channels=4)
    spec = replace(SPEC, arch=replace(SPEC.arch, unet=network, first_stage=stage.config), x0_clamp=None)
    path = tmp_path / "kl.safetensors"
    tensors = tensors_of(network) | {
        f"first_stage_model.{key}": value for key, value in stage.state_dict().items()
    }
    save_tensors(path, tensors, spec_metadata(spec))
    run = trainer(path, folder, tmp_path / "run", QUICK)
    with torch.no_grad():
        expected = stage.eval().encode(run.data.images(np.array([3])))
    assert torch.allclose(run.latents[np.array([3])], expected, atol=1e-5)
    assert run.shapes == [(4, 8, 8)] and run.latents[np.arange(6)].std() > 0
    list(run.run())
    saved = Pipeline.load(str(tmp_path / "run" / "model.safetensors"), device="cpu")
    again = saved.first_stage.encode(run.data.images(np.array([3])))
    assert torch.allclose(again, expected, atol=2e-2)


def test_another_run_in_the_directory_is_refused(model, folder, tmp_path):
    list(trainer(model, folder, tmp_path, QUICK).run())
    with pytest.raises(InputError, match=r"other settings \(lr 0.002, not 0.0001\)"):
        trainer(model, folder, tmp_path, Settings(**{**QUICK.__dict__, "lr": 1e-4}))
    assert trainer(model, folder, tmp_path, Settings(**{**QUICK.__dict__, "steps": 20})).step == 8


def test_a_run_goes_on_with_the_model_it_began_with(model, folder, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other.safetensors"
    list(trainer(model, folder, out, QUICK).run())
    other.write_bytes(model.read_bytes())
    assert trainer(other, folder, out, QUICK).step == 8, "the same weights elsewhere"
    torch.manual_seed(2)
    save_tensors(other, tensors_of(NETWORK), spec_metadata(SPEC))
    with pytest.raises(InputError, match=r"other settings \(--model\)"):
        trainer(other, folder, out, QUICK)
    made = out / "model.safetensors"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").write_bytes(made.read_bytes())
    list(trainer(mine / "model.safetensors", folder, mine, QUICK).run())  # its own result, another after every save
    assert trainer(mine / "model.safetensors", folder, mine, QUICK).step == 8


def test_the_same_data_is_known_however_much_memory_it_may_take(model, folder, tmp_path):
    list(trainer(model, folder, tmp_path, QUICK).run())
    pipeline = Pipeline.load(str(model), device="cpu")
    for budget in (0, 2**30):
        assert Trainer(pipeline, Dataset(folder, 64, 64, budget=budget), tmp_path, QUICK).step == 8
    with pytest.raises(InputError, match=r"other settings \(--buckets\)"):
        Trainer(pipeline, Dataset(folder, 64, 64, bucket=16), tmp_path, QUICK)
    with pytest.raises(InputError, match="other data"):
        Trainer(pipeline, Dataset(folder, 64, 64, word="<mine>"), tmp_path, QUICK)


def test_a_run_killed_before_its_last_model_is_written_writes_it(model, folder, tmp_path, monkeypatch):
    """At whatever file of a save it ends, going on leaves the model of the last step."""
    expected = end_of(trainer(model, folder, tmp_path / "whole", QUICK))
    for broken in ("write_model", "write_state"):
        run, out, write = trainer(model, folder, tmp_path / broken, QUICK), tmp_path / broken, getattr(runfiles, broken)

        def ends(*given, run=run, write=write):
            if run.step == QUICK.steps:
                raise KeyboardInterrupt
            return write(*given)

        with monkeypatch.context() as patch:
            patch.setattr(runfiles, broken, ends)
            with pytest.raises(KeyboardInterrupt):
                list(run.run())
        found = end_of(trainer(model, folder, out, QUICK))
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
        assert [report["step"] for report in read_log(out)] == [2, 4, 6, 8]


def test_a_damaged_log_or_state_is_no_riddle(model, folder, tmp_path):
    list(trainer(model, folder, tmp_path, QUICK).run())
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b"\xff\n[]\n7\n")
    assert [report["step"] for report in read_log(tmp_path)] == [2, 4, 6, 8]
    list(trainer(model, folder, tmp_path, Settings(**{**QUICK.__dict__, "steps": 10})).run())
    assert [report["step"] for report in read_log(tmp_path)] == [2, 4, 6, 8, 10]
    state = tmp_path / "state.safetensors"
    os.truncate(state, state.stat().st_size - 100)
    with pytest.raises(ModelError, match="100 bytes early") as told:
        trainer(model, folder, tmp_path, QUICK)
    assert told.value.hint == "remove it to begin anew, or give another --out"


def test_a_log_of_steps_that_were_never_saved_begins_anew(model, folder, tmp_path):
    for report in trainer(model, folder, tmp_path, QUICK).run():
        if report.step == 2:
            break
    assert not (tmp_path / "state.safetensors").exists()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "se')  # killed while it wrote
    list(trainer(model, folder, tmp_path, QUICK).run())
    assert [report["step"] for report in read_log(tmp_path)] == [2, 4, 6, 8]


def test_the_whole_command_survives_kill(model, folder, tmp_path):
    """kill -9 through the installed program, then Ctrl-C, which loses no step, then the same command again, equals
    one run that was left alone."""

    def command(out: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            "ddgen",
            "train",
            str(folder),
            "--out",
            str(out),
            "--model",
            str(model),
            "--scratch",
            "--steps",
            "150",
            "-b",
            "4",
            "--warmup",
            "2",
            "--save-every",
            "3",
            "--report-every",
            "5",
            "--sheet-every",
            "10",  # a sheet takes longer than the steps between: the signals below come in time
            "--progress",
            "none",
            "--device",
            "cpu",
        ]

    env = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        command(tmp_path / "whole"),
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.strip() == str(tmp_path / "whole" / "model.safetensors")
    state = tmp_path / "killed" / "state.safetensors"
    for number, told in ((signal.SIGKILL, b""), (signal.SIGINT, b"run the same command to go on")):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = subprocess.Popen(
            command(tmp_path / "killed"), env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 200
        while not (state.exists() and state.stat().st_mtime_ns > before) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, words = process.communicate(timeout=200)
        assert process.returncode == -number and told in words
    saved = int(re.search(rb"step (\d+) is saved", words)[1])
    assert read_state(tmp_path / "killed")[1]["step"] == saved < 150
    done = subprocess.run(
        command(tmp_path / "killed"),
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "samples/step-000020.png", "samples/step-000040.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_runs_do_not_share_a_directory(model, folder, tmp_path):
    (tmp_path / "out").mkdir()
    lock = Lock(tmp_path / "out", Shard())
    argv = [sys.executable, "-m", "ddgen", "train", str(folder), "--out", "out", "--model", str(model), "--steps", "1", "-b", "2",
            "--sheet-every", "0", "--progress", "none", "--device", "cpu"]  # fmt: skip
    refused = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 10 and f"'out' is in use by ddgen pid {os.getpid()}" in refused.stderr
    assert not (tmp_path / "out" / "state.safetensors").exists()
    lock.release()
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    argv[argv.index("out")] = "x" * 300
    refused = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 7 and "the name is too long" in refused.stderr
