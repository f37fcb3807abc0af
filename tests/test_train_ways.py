"""Ways to train: parts of a step, recomputing, half precision, several processes, a new word, what it will take."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import QUICK, folder, model, one_thread, trainer  # noqa: F401
from test_train_lora import SPECS, data, files  # noqa: F401
from test_train_lora import trainer as lora_trainer

from ddgen.app.dataset import Dataset
from ddgen.app.forecast import forecast
from ddgen.app.new_word import NewWord
from ddgen.app.pipeline import Pipeline
from ddgen.app.processes import Processes, join
from ddgen.app.runfiles import read_log
from ddgen.app.train import SCALE, Trainer
from ddgen.errors import UsageError


def gradients(run: Trainer) -> dict[str, torch.Tensor]:
    run.gradients(run.draws(0))
    return {name: parameter.grad.clone() for name, parameter in run.trained.named_parameters()}


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys() and max(float(value.abs().max()) for value in other.values()) > 1e-3
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def test_parts_of_a_step_make_one_batch(model, folder, tmp_path):  # noqa: F811
    whole = trainer(model, folder, tmp_path / "a", replace(QUICK, batch=4))
    parts = trainer(model, folder, tmp_path / "b", replace(QUICK, batch=1, accumulate=4))
    single = trainer(model, folder, tmp_path / "c", replace(QUICK, batch=1))
    assert whole.size == parts.size == 4
    expected = gradients(whole)
    assert far(gradients(parts), expected) < 1e-5
    assert far(gradients(single), expected) > 1e-3


def test_recomputing_gives_equal_gradients_for_less_memory(model, folder, tmp_path):  # noqa: F811
    plain = trainer(model, folder, tmp_path / "a", QUICK)
    saving = trainer(model, folder, tmp_path / "b", replace(QUICK, recompute=True))
    assert far(gradients(saving), gradients(plain)) < 1e-6
    before, after = (forecast(run).memory["activations"] for run in (plain, saving))
    assert after < 0.7 * before


def test_recomputing_with_a_lora(files, data, tmp_path):  # noqa: F811
    plain = lora_trainer(files["sd1"], data, tmp_path / "a")
    saving = lora_trainer(files["sd1"], data, tmp_path / "b", replace(plain.settings, recompute=True))
    assert far(gradients(saving), gradients(plain)) < 1e-6


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_half_precision_is_near_the_whole_one(kind, model, folder, tmp_path):  # noqa: F811
    plain = trainer(model, folder, tmp_path / "a", QUICK)
    half = trainer(model, folder, tmp_path / "b", replace(QUICK, **{kind: True}))
    expected = gradients(plain)
    reach = max(float(value.abs().max()) for value in expected.values())
    assert 0 < far(gradients(half), expected) < 0.2 * reach
    assert {value.dtype for value in half.trained.state_dict().values()} == {torch.float32}


def test_the_factor_of_float16_falls_when_a_gradient_overflows(model, folder, tmp_path, monkeypatch):  # noqa: F811
    run = trainer(model, folder, tmp_path, replace(QUICK, fp16=True))
    before = {name: value.clone() for name, value in run.trained.state_dict().items()}
    run.scale = float("inf")
    run.advance()
    assert all(torch.equal(value, before[name]) for name, value in run.trained.state_dict().items())
    run.scale = SCALE
    for finite, expected in ((False, SCALE / 2), (True, SCALE / 2)):
        run._rescale(finite)
        assert run.scale == expected
    monkeypatch.setattr("ddgen.app.train.GROWTH", 2)
    run._rescale(True)
    assert run.scale == SCALE


def test_two_processes_make_the_steps_of_one(model, folder, tmp_path):  # noqa: F811
    """torchrun with two processes over gloo, and one process with twice the batch."""

    def arguments(out: str, batch: int) -> list[str]:
        return (
            f"ddgen train {folder} --out {tmp_path / out} --model {model} --scratch --steps 3 -b {batch} --warmup 0 "
            "--average 0 --save-every 100 --report-every 3 --sheet-every 0 --progress none --device cpu"
        ).split()

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for argv in ([*launch, *arguments("two", 2)], [sys.executable, "-m", *arguments("one", 4)]):
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1  # the first process alone speaks
    two, one = (load_file(tmp_path / name / "state.safetensors") for name in ("two", "one"))
    # Adam divides gradients by their size, so that a weight whose gradient is nearly 0 follows the rounding: the
    # gradients are compared, through their running means.
    means = [key for key in one if key.startswith("optimizer.m1.")]
    apart = sum(float((two[key] - one[key]).double().square().sum()) for key in means) ** 0.5
    size = sum(float(one[key].double().square().sum()) for key in means) ** 0.5
    assert 0 < size and apart < 1e-3 * size
    losses = [read_log(tmp_path / name)[-1]["loss"] for name in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_processes_alone_and_started_wrongly():
    alone = join({})
    assert alone.first and alone.count == 1 and alone.told(3.0) == 3.0
    tensor = torch.ones(2)
    alone.average([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        join({"WORLD_SIZE": "2", "RANK": "0"})
    with pytest.raises(UsageError, match="WORLD_SIZE is 'two'"):
        join({"WORLD_SIZE": "two"})


def test_each_process_takes_its_rows(model, folder, tmp_path):  # noqa: F811
    whole = trainer(model, folder, tmp_path / "a", replace(QUICK, batch=4)).draws(5)[0]
    second = trainer(model, folder, tmp_path / "b", replace(QUICK, batch=1, accumulate=2))
    second.processes = Processes(1, 2)
    rows = second.draws(5)
    assert [int(part.pictures[0]) for part in rows] == whole.pictures[2:].tolist()
    assert torch.equal(torch.from_numpy(rows[1].eps[0]), torch.from_numpy(whole.eps[3]))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_new_word_is_learnt_and_loaded(name, files, data, tmp_path):  # noqa: F811
    pipeline = Pipeline.load(str(files[name]), device="cpu", dtype="float32")
    before = pipeline.text.encode(["a red square"]).context
    subject = NewWord(pipeline, seed=0, word="<mine>", vectors=2, like="red square")
    words = Dataset(data.examples[0].path.parent, 64, 64, word="<mine>")
    settings = replace(QUICK, steps=3, lr=0.1)
    run = Trainer(pipeline, words, tmp_path, settings, subject)
    start = {key: value.detach().clone() for key, value in run.trained.named_parameters()}
    list(run.run())
    state = run.average.state
    assert all(float((state[key] - start[key]).abs().max()) > 1e-2 for key in start)
    trained = subject.text(state).encode(["a <mine> red"]).context
    loaded = Pipeline.load(
        str(files[name]), embeddings=[str(tmp_path / "embedding.safetensors")], device="cpu", dtype="float32"
    )
    assert torch.equal(loaded.text.encode(["a <mine> red"]).context, trained)
    assert torch.equal(loaded.text.encode(["a red square"]).context, before)  # nothing else has changed
    shapes = {key: tuple(value.shape) for key, value in load_file(tmp_path / "embedding.safetensors").items()}
    assert shapes == ({"<mine>": (2, 24)} if name == "sd1" else {"clip_l": (2, 24), "clip_g": (2, 32)})


def test_diffusers_reads_the_new_word(files, data, tmp_path):  # noqa: F811
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin, load_textual_inversion_state_dicts

    pipeline = Pipeline.load(str(files["sd1"]), device="cpu", dtype="float32")
    subject = NewWord(pipeline, seed=0, word="<mine>", vectors=2)
    path = subject.write(tmp_path, dict(subject.trained.named_parameters()))
    states = load_textual_inversion_state_dicts([str(path)])
    tokens, vectors = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings(
        [None], states, SimpleNamespace(get_vocab=dict)
    )
    assert tokens == ["<mine>"] and torch.equal(vectors[0], subject.trained[0].detach())


def test_a_forecast_counts_what_there_is_and_writes_nothing(files, data, tmp_path):  # noqa: F811
    run = lora_trainer(files["sd1"], data, tmp_path / "run")
    found = forecast(run)
    count = sum(parameter.numel() for parameter in run.trained.parameters())
    assert found.trained == count and found.memory["gradients"] == 4 * count
    assert found.memory["optimizer"] == found.memory["trained, with average"] == 8 * count
    unet = sum(parameter.numel() for parameter in run.network.parameters())
    assert found.memory["weights"] > 4 * unet and found.memory["activations"] > 0 and found.step > 0
    assert found.total == sum(found.memory.values()) and not (tmp_path / "run").exists()


def test_tensorboard_reads_what_was_written(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from ddgen.app.board import Board
    from ddgen.app.train import Report
    from ddgen.io import images

    board = Board(tmp_path, 0)
    for step in (5, 10):
        board.add(Report(step, step * 4, 1.0, 0.5 / step, 0.25, 1.0, 1.0, 8.0))
    board.show(images.encode(np.zeros((4, 4, 3), dtype=np.uint8)), 10)
    board.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("loss/train")] == [(5, 0.1), (10, 0.05)]
    assert events.Images("sheet")[0].width == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--rank 4", "--rank goes with --lora"),
        ("--vectors 2", "--vectors goes with --embedding-token"),
        ("--lora --scratch", "--lora and --scratch exclude each other"),
        ("--lora --lora-format pickle", "unknown lora-format 'pickle'"),
        ("--lora --alpha 0", "must be above 0"),
        ("--bf16 --fp16", "exclude each other"),
        ("--seed 9223372036854775808", "less than or equal to 9223372036854775807"),
        ("--part decoder --target mean", "--target is for the U-Net"),
        ("--part first-stage --dropout 0.2", "--dropout is for the U-Net"),
        ("--part decoder --recompute", "--recompute is for the U-Net"),
        ("--muon-lr 0.01", "--muon-lr goes with --optimizer muon"),
        ("--lora --weighting best", "unknown weighting 'best'"),
    ],
)
def test_flags_that_do_not_go_together(arguments, said, tmp_path, capfd):
    from ddgen.cli.program import run

    assert run(["train", str(tmp_path), "--out", str(tmp_path / "out"), *arguments.split()]) == 2
    assert said in capfd.readouterr().err


def test_a_forecast_of_a_run_that_is_over_is_of_no_minutes(model, folder, tmp_path, capfd):  # noqa: F811
    from ddgen.cli.program import run

    asked = ["train", str(folder), "--out", str(tmp_path), "--model", str(model), "-b", "2", "--device", "cpu"]
    asked += ["--sheet-every", "0", "--progress", "none", "--seed", str(2**63 - 1)]
    assert run([*asked, "--steps", "2"]) == 0 and run([*asked, "--steps", "1", "--dry-run"]) == 0
    assert "about 0 min in all" in capfd.readouterr().err
