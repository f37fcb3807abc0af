"""Pictures that job lines name: found and never outside, checked before anything is made, and made as the
verbs make them."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batch_fakes import SPEC, FakeRender, ListSource, lines, make_batch, planner, runner
from PIL import Image
from test_conditions import job
from test_edit import noisy_picture, pixel_pipeline

from ddgen.app import canvas, inputs, verbs
from ddgen.app.outcome import Missed
from ddgen.app.named import Networks
from ddgen.app.render import Renderer
from ddgen.app.tasks import Planner, Task, replayable
from ddgen.app.produce import Saving
from ddgen.errors import DdgenError, InputError
from ddgen.io.settings import SettingError, read_values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of prompts with pictures below it, and one picture that is none of its business."""
    here = tmp_path / "prompts"
    (here / "in").mkdir(parents=True)
    Image.fromarray(noisy_picture(64, 96)).save(here / "in" / "p.png")
    mask = np.zeros((64, 96), np.uint8)
    mask[20:50, 30:60] = 255
    Image.fromarray(mask).save(here / "in" / "m.png")
    Image.fromarray(mask[:32]).save(here / "in" / "small.png")
    Image.fromarray(noisy_picture(64, 64)).save(tmp_path / "other.png")
    (here / "in" / "link.png").symlink_to(tmp_path / "other.png")
    (here / "in" / "near.png").symlink_to("p.png")
    (here / "in" / "round.png").symlink_to("round.png")
    os.mkfifo(here / "in" / "pipe.png")
    return here


def plans(folder: Path, networks: Networks = Networks(), **settings: object) -> list[Task]:
    made = planner(folder / "out", folder=lambda source: folder, networks=networks)
    (line,) = lines("a fox", **{name: (value,) for name, value in settings.items()})
    return list(made.tasks(line))


def test_a_line_says_what_the_verbs_say(folder: Path) -> None:
    picture = np.asarray(Image.open(folder / "in" / "p.png"))
    (edited,) = plans(folder, init="in/p.png", seed=3)
    width, height = canvas.work_size(SPEC, 96, 64)
    assert (edited.job.width, edited.job.height) == (width, height)
    assert edited.job.edit is not None
    assert edited.job.edit.verb == "edit" and edited.job.edit.strength == 0.75
    assert edited.job.edit.image == canvas.digest(canvas.fit(picture, width, height, "crop"))
    (padded,) = plans(folder, init="in/p.png", seed=3, fit="pad", width=64, height=64, strength=0.4)
    assert padded.job.edit.image == canvas.digest(canvas.fit(picture, 64, 64, "pad"))
    assert (padded.job.width, padded.job.edit.strength) == (64, 0.4)
    (masked,) = plans(folder, init="in/p.png", mask="in/m.png", seed=3)
    assert masked.job.edit.verb == "inpaint" and masked.job.edit.strength is None
    assert masked.job.edit.image == canvas.digest(picture) and masked.job.edit.mask
    (plain,) = plans(folder, seed=3)
    assert plain.inputs is None and plain.job.edit is None
    assert len({task.id for task in (edited, padded, masked, plain)}) == 4
    assert pickle.loads(pickle.dumps(masked)) == masked, "a task crosses to a worker"


def test_the_id_is_of_what_is_seen_not_of_where_it_lies(folder: Path) -> None:
    here, there = (plans(folder, init=path, seed=3)[0] for path in ("in/p.png", "in/near.png"))
    assert here.id == there.id
    Image.fromarray(255 - noisy_picture(64, 96)).save(folder / "in" / "p.png")
    assert plans(folder, init="in/p.png", seed=3)[0].id != here.id


BAD = {
    "above": ({"init": "../other.png"}, "init '../other.png' leaves the directory of the prompt file"),
    "absolute": ({"init": "/etc/hostname"}, "init '/etc/hostname' leaves the directory"),
    "by a link": ({"init": "in/link.png"}, "init 'in/link.png' leaves the directory"),
    "round": ({"init": "in/round.png"}, "init 'in/round.png': "),
    "in and out": ({"init": "in/../../other.png"}, "leaves the directory"),
    "mask above": ({"init": "in/p.png", "mask": "../other.png"}, "mask '../other.png' leaves the directory"),
    "missing": ({"init": "in/none.png"}, "init 'in/none.png': no such file or directory"),
    "a directory": ({"init": "in"}, "init 'in' is no plain file"),
    "a pipe": ({"init": "in/pipe.png"}, "init 'in/pipe.png' is no plain file"),
    "nul": ({"init": "in/\0.png"}, "embedded null"),
    "mask size": ({"init": "in/p.png", "mask": "in/small.png"}, "mask 'in/small.png' is 96x32, the picture is 96x64"),
    "no alpha": ({"init": "in/p.png", "mask": "alpha"}, "image 'in/p.png' has no alpha"),
    "mask alone": ({"mask": "in/m.png"}, "'mask' needs 'init'"),
    "strength alone": ({"strength": 0.5}, "'strength' needs 'init'"),
    "strength 0": ({"init": "in/p.png", "strength": 0.0}, "--strength 0 would change nothing"),
    "fit": ({"init": "in/p.png", "fit": "squeeze"}, "unknown fit 'squeeze'"),
    "mask and size": ({"init": "in/p.png", "mask": "in/m.png", "width": 64}, "'mask' and 'width' do not go together"),
    "mask and scale": ({"init": "in/p.png", "mask": "in/m.png", "scale": 2}, "'mask' and 'scale' do not go"),
    "cut out": ({"init": "in/p.png", "transparent": True}, "'init' and 'transparent' do not go together"),
    "guidance": ({"init": "in/p.png", "image_guidance": 1.5}, "model 'fake' has no --image-guidance"),
    "no network": ({"control": ("canny:in/p.png",)}, "1 --control and 0 --control-model are given"),
    "no reader": ({"image_prompt": ("in/p.png",)}, "1 --image-prompt and 0 --image-prompt-model are given"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_line_cannot_say(case: str, folder: Path) -> None:
    settings, message = BAD[case]
    with pytest.raises(InputError) as caught:
        plans(folder, **settings)
    assert caught.value.exit_code == 4 and caught.value.hint
    assert caught.value.message.startswith("prompt file 'p' line 1: ") and message in caught.value.message


def weights(path: Path, *names: str) -> Path:
    """Write a file of weights of one number each."""
    header = {name: {"dtype": "F16", "shape": [1, 1], "data_offsets": [2 * i, 2 * i + 2]} for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * len(names)))
    return path


def test_controls_are_steers_of_the_job(folder: Path) -> None:
    model = weights(folder / "c.safetensors", "input_hint_block.0.weight", "input_blocks.0.0.weight")
    (task,) = plans(folder, Networks((model,)), control=("canny:in/p.png:0.8:0:0.5",), seed=1)
    (steer,) = task.job.controls
    assert (steer.kind, steer.weight, steer.start, steer.end) == ("canny", 0.8, 0.0, 0.5)
    with pytest.raises(InputError, match="control '../other.png' leaves"):
        plans(folder, Networks((model,)), control=("canny:../other.png",))
    assert replayable(task, "x")["control"] == ["canny:in/p.png:0.8:0:0.5"]
    (masked,) = plans(folder, Networks((model,)), init="in/p.png", mask="in/m.png", control=("canny:in/p.png",), seed=1)
    assert masked.job.edit.verb == "inpaint" and masked.job.controls
    inputs.draw(masked.inputs, masked.job)
    with pytest.raises(DdgenError, match="was changed"):
        inputs.draw(masked.inputs, replace(masked.job, controls=()))


def readers(folder: Path) -> Networks:
    """Write an IP-Adapter and a tower, by their headers alone."""
    plain = [f"image_proj.proj.{n}.weight" for n in (0, 2, 3)]
    reader = weights(folder / "ip.safetensors", *plain, "ip_adapter.1.to_k_ip.weight")
    weights(folder / "eye" / "model.safetensors", "x")
    (folder / "eye" / "config.json").write_text("{}")
    return Networks((), (reader,), str(folder / "eye"))


def test_image_prompts_are_steers_of_the_job(folder: Path) -> None:
    networks = readers(folder)
    (task,) = plans(folder, networks, image_prompt=("in/p.png:0.6", "in/m.png"), seed=1)
    first, second = task.job.controls
    assert (first.kind, first.weight, second.weight) == ("image-prompt", 0.6, 1.0) and first.image != second.image
    draw = inputs.draw(task.inputs, task.job)
    assert callable(draw) and replayable(task, "x")["image_prompt"] == ["in/p.png:0.6", "in/m.png"]
    for more in ({"init": "in/p.png"}, {"init": "in/p.png", "mask": "in/m.png"}):
        (edited,) = plans(folder, networks, image_prompt=("in/p.png",), seed=1, **more)
        assert edited.job.edit is not None and len(edited.job.controls) == 1
    for path, message in (("../other.png", "leaves the directory"), ("in/link.png", "leaves"), ("in/none.png", "no such file")):
        with pytest.raises(InputError, match=f"line 1: image_prompt '{path}'.*{message}"):
            plans(folder, networks, image_prompt=(path,))
    with pytest.raises(DdgenError, match="no image encoder beside"):
        plans(folder, replace(networks, encoder=None), image_prompt=("in/p.png",))


def test_values() -> None:
    assert read_values("init", "a, b.png") == ("a, b.png",), "a comma may stand in a name"
    assert read_values("init", ["a.png", "b.png"]) == ("a.png", "b.png"), "a list is a sweep"
    assert read_values("control", "canny:a.png; tile:b.png") == (("canny:a.png", "tile:b.png"),)
    assert read_values("control", ["canny:a.png", "tile:b.png"]) == (("canny:a.png", "tile:b.png"),)
    assert read_values("image_prompt", "a.png:0.6; b.png") == (("a.png:0.6", "b.png"),)
    assert read_values("image_prompt", [["a.png"], ["b.png"]]) == (("a.png",), ("b.png",)), "a list of lists is a sweep"
    for wrong in (7, [], [7]):
        with pytest.raises(SettingError):
            read_values("control", wrong)


def renderer() -> Renderer:
    pipeline = pixel_pipeline()
    pipeline.digests, pipeline.denoiser.dtype = {}, None
    return Renderer(pipeline, Saving())


def tasks_of(folder: Path, networks: Networks = Networks(), **settings: object) -> list[Task]:
    spec = pixel_pipeline().spec
    made = Planner(spec, "m", planner(folder / "out").target, folder=lambda source: folder, networks=networks)
    return list(made.tasks(lines("cat", **{name: (value,) for name, value in settings.items()})[0]))


def test_a_line_makes_what_the_verb_makes(folder: Path) -> None:
    picture = np.asarray(Image.open(folder / "in" / "p.png"))
    common = {"guidance": 1.0, "steps": 4, "sampler": "euler", "seed": 3}
    render = renderer()

    def made(task: Task) -> np.ndarray:
        (found,) = render._run([task], lambda step, steps, images: None)
        return found

    (edited,) = tasks_of(folder, init="in/p.png", strength=0.5, **common)
    fitted = canvas.fit(picture, edited.job.width, edited.job.height, "crop")
    (expected,) = verbs.whole(fitted)(render.pipeline, [edited.job], lambda step, steps: None)
    assert np.array_equal(made(edited), expected) and len(render.pipeline.network.batches) == 4, "2 steps each"
    (masked,) = tasks_of(folder, init="in/p.png", mask="in/m.png", **common)
    found, kept = made(masked), np.asarray(Image.open(folder / "in" / "m.png")) < 128
    assert found.shape == picture.shape and np.array_equal(found[kept], picture[kept])
    assert (found[~kept] != picture[~kept]).any(1).mean() > 0.9


@pytest.mark.parametrize("more", [{}, {"init": "in/p.png"}, {"init": "in/p.png", "mask": "in/m.png"}])
def test_what_steers_a_line_reaches_the_network(more: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddgen.app import control, image_prompt

    shown: list[verbs.PromptPicture] = []
    loaded: list[verbs.ControlFile] = []
    monkeypatch.setattr(image_prompt, "load", lambda pipeline, files: shown.extend(files) or [])
    monkeypatch.setattr(control, "load", lambda pipeline, file, **how: loaded.append(file) or control.Control(None, None, end=0.0))
    model = weights(folder / "c.safetensors", "input_hint_block.0.weight", "input_blocks.0.0.weight")
    networks = replace(readers(folder), controls=(model,))
    said = {"control": ("map:in/m.png:0.5",), "image_prompt": ("in/p.png:0.6",), "guidance": 1.0, "steps": 2, "seed": 1}
    (task,) = tasks_of(folder, networks, **said, **more)
    renderer()._run([task], lambda step, steps, images: None)
    ((picture,), (file,)) = shown, loaded
    assert picture.weight == 0.6 and picture.kept, "a batch keeps what its lines share"
    assert np.array_equal(picture.picture, np.asarray(Image.open(folder / "in" / "p.png")))
    assert file.weight == 0.5 and file.picture.shape == (task.job.height, task.job.width, 3)


def test_a_picture_that_changed_meanwhile_fails_alone(folder: Path) -> None:
    (task,) = tasks_of(folder, init="in/p.png", seed=3)
    Image.fromarray(255 - noisy_picture(64, 96)).save(folder / "in" / "p.png")
    (outcome,) = renderer()([task], lambda step, steps, images: None)
    assert isinstance(outcome, Missed) and "was changed since the batch was checked" in outcome.error.message
    (folder / "in" / "p.png").unlink()
    (outcome,) = renderer()([task], lambda step, steps, images: None)
    assert isinstance(outcome, Missed) and outcome.error.exit_code == 4


def test_what_failed_can_be_made_again_from_its_list(folder: Path) -> None:
    made = planner(folder / "out", folder=lambda source: folder)
    batch = make_batch(folder / "out")
    given = lines("bad fox", init=("in/p.png",), mask=("in/m.png",), seed=(3,), strength=(0.5,))
    batch.run(ListSource(made, given), runner(FakeRender()))
    (text,) = (folder / "out" / "failed.jsonl").read_text().splitlines()
    record = json.loads(text)
    assert (record["init"], record["mask"], record["strength"]) == ("in/p.png", "in/m.png", 0.5)
    again = {name: (value,) for name, value in record.items() if name not in ("prompt", "note")}
    (task,) = planner(folder / "out", folder=lambda source: folder).tasks(lines(record["prompt"], **again)[0])
    (before,) = planner(folder / "out", folder=lambda source: folder).tasks(given[0])
    assert task.id == before.id


def test_draw_refuses_other_jobs(folder: Path) -> None:
    (task,) = tasks_of(folder, init="in/p.png", seed=3)
    assert task.inputs is not None
    with pytest.raises(DdgenError, match="was changed"):
        inputs.draw(task.inputs, replace(task.job, edit=replace(task.job.edit, image="0" * 64)))
    assert job("cat").edit is None
