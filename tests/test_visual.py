"""The commands that show how diffusion works, with the model that ships: what stands in their pictures and
files."""

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from program import Place

from ddgen import Pipeline, Request
from ddgen.app import compare, explain, filmstrip, noise_strip
from ddgen.app.pipeline import run
from ddgen.app.plan import plan
from ddgen.diffusion.noise import normals
from ddgen.diffusion.schedule import KINDS, make_schedule
from ddgen.errors import UsageError
from ddgen.io import containers
from ddgen.nets.attention import Attention, SpatialTransformer, watched
from ddgen.text.words import read

TINY = {"width": 64, "height": 64, "steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("sticker")


def job_of(pipeline: Pipeline, prompt: str = "a red apple", **changes: object):
    return next(plan(Request((prompt,), **{**TINY, **changes}), pipeline.spec))


def picture(path: Path, side: int = 96) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    pixels = np.stack([x * 2, y * 2, 255 - x], -1).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


# noise: the forward process


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_x_t_is_the_textbook_mixture(kind: str) -> None:
    schedule = make_schedule({"kind": kind})
    pixels = np.full((8, 8, 3), 51, np.uint8)  # x0 = -0.6
    middle = noise_strip.spread(schedule, 3)[1]
    (cell,) = noise_strip.noised(pixels, schedule, [middle], 3)
    sigma = schedule.sigma(middle)
    eps = normals(3, 0, (3, 8, 8))
    if kind == "flow":
        t = middle / 1000
        x_t = (1 - t) * -0.6 + t * eps
    else:
        ab = 1 / (1 + sigma**2)
        x_t = ab**0.5 * -0.6 + (1 - ab) ** 0.5 * eps
    wanted = ((x_t.clip(-1, 1) + 1) * 127.5).transpose(1, 2, 0)
    assert np.abs(cell.pixels - wanted).max() <= 1
    assert float(cell.lines[1].removeprefix("sigma ")) == pytest.approx(sigma, rel=0.01)
    assert float(cell.lines[2].removeprefix("alpha_bar ")) == pytest.approx(1 / (1 + sigma**2), rel=0.01)
    assert float(cell.lines[3].removeprefix("SNR ")) == pytest.approx(sigma**-2, rel=0.01)


def test_times_reach_both_ends_and_no_further() -> None:
    schedule = make_schedule({"kind": "scaled_linear"})
    times = noise_strip.spread(schedule, 8)
    assert times[0] == 0 and times[-1] == 999 and all(time == round(time) for time in times)
    noise_strip.check_times(schedule, times)
    for wrong in ([1000.0], [-1.0], [float("nan")], []):
        with pytest.raises(UsageError, match="--times"):
            noise_strip.check_times(schedule, wrong)


def test_noise_writes_a_strip_and_an_animation(tmp_path: Path) -> None:
    place = Place(tmp_path)
    picture(place.path / "a.png")
    done = place.run("noise", "a.png", "--times", "0,500,999", "--json", fake=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["path"] == "a-noise.png" and record["times"] == [0.0, 500.0, 999.0]
    assert record["sigmas"] == pytest.approx([0.0292, 1.64, 14.6146], rel=0.02)
    strip = np.asarray(Image.open(place.path / "a-noise.png").convert("RGB"))
    assert strip.shape[1] > 3 * 160 and strip.shape[0] > 160 + 4 * 15
    done = place.run(
        "noise", "a.png", "--times", "0,500,999", "-o", "a.gif", "--schedule", "cosine", fake=False
    )
    assert done.returncode != 0 and b"use 1 to 999" in done.stderr
    done = place.run(
        "noise", "a.png", "--times", "1,500,999", "-o", "a.gif", "--schedule", "cosine", fake=False
    )
    assert done.returncode == 0, done.stderr
    with Image.open(place.path / "a.gif") as animation:
        assert animation.n_frames == 3


# --filmstrip: the reverse process


def test_filmstrip_keeps_what_the_run_did_and_changes_nothing(pipeline: Pipeline) -> None:
    job = job_of(pipeline, steps=5)
    film = filmstrip.Filmstrip(pipeline, job, filmstrip.chosen(5, None, 3))
    states: list[tuple[float, torch.Tensor]] = []
    (watched_picture,) = run(
        pipeline,
        [job],
        lambda step, steps: (states.append((step.sigma, step.x)), film.step(step, steps)),
        on_start=lambda x, grid: (states.append((grid.sigmas[0], x)), film.start(x, grid)),
    )
    film.finish(watched_picture)
    (plain,) = run(pipeline, [job])
    assert np.array_equal(plain, watched_picture)
    assert [moment.step for moment in film.moments] == [1, 3, 5, 0]
    for moment in film.moments[:-1]:
        sigma, x = states[moment.step - 1]
        assert moment.sigma == sigma
        x_t = pipeline.first_stage.decode(x / (1 + sigma**2) ** 0.5)[0]
        wanted = ((x_t.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
        assert np.abs(moment.seen - wanted).max() <= 1
    assert np.abs(film.moments[2].estimate.astype(int) - plain).max() <= 1, "the last estimate is the picture"
    strip = film.strip()
    assert strip.shape[1] > 4 * 160
    frames = film.frames()
    assert len(frames) == 4 and len({frame.shape for frame in frames}) == 1


def test_a_film_of_1000_steps_keeps_a_few_small_pictures(pipeline: Pipeline) -> None:
    assert len(filmstrip.chosen(1000, None, 8)) == 8
    assert filmstrip.chosen(1000, None, 8)[0] == 1 and filmstrip.chosen(1000, None, 8)[-1] == 1000
    assert filmstrip.chosen(3, None, 8) == (1, 2, 3)
    assert filmstrip.chosen(1, None, 8) == (1,)
    assert filmstrip.chosen(10, (5, 2, 5), 8) == (2, 5)
    with pytest.raises(UsageError, match="11 is out of range of a run of 10 steps"):
        filmstrip.chosen(10, (11,), 8)


def test_sample_writes_a_filmstrip_beside_the_picture(tmp_path: Path) -> None:
    place = Place(tmp_path)
    arguments = ["sample", "a fox", "--seed", "1", "--steps", "3", "-W", "64", "-H", "64", "-o", "fox.png"]
    done = place.run(*arguments, "--filmstrip", "film.png", fake=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.decode().split()) == ["film.png", "fox.png"]
    with_film = (place.path / "fox.png").read_bytes()
    done = place.run(*arguments, "-f", fake=False)
    assert with_film == (place.path / "fox.png").read_bytes()
    assert b"trainedAlgorithmicMedia" in (place.path / "film.png").read_bytes()


# compare


def test_a_cell_is_what_its_command_makes(tmp_path: Path) -> None:
    place = Place(tmp_path)
    small = ["--seed", "7", "-W", "64", "-H", "64"]
    lists = ["--steps", "2,3", "--guidance", "1,3,6", "--sampler", "ddim,euler_ancestral"]
    done = place.run("compare", "a red apple, shiny", *small, *lists, "-o", "table.png", "--json", fake=False)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert len(cells) == 12
    assert cells[0]["values"] == {"steps": "2", "guidance": "1", "sampler": "ddim"}
    texts = containers.read_texts((place.path / "table.png").read_bytes())
    assert json.loads(texts["ddgen-figure"])["cells"] == cells
    chosen = cells[-1]
    assert chosen["values"] == {"steps": "3", "guidance": "6", "sampler": "euler_ancestral"}
    words = shlex.split(chosen["command"])
    assert words[:2] == ["ddgen", "sample"]
    done = place.run(*words[1:2], "-o", "cell.png", *words[2:], fake=False)
    assert done.returncode == 0, done.stderr
    cell = np.asarray(Image.open(place.path / "cell.png").convert("RGB")).astype(int)
    table = np.asarray(Image.open(place.path / "table.png").convert("RGB")).astype(int)
    assert found_in(table, cell.repeat(3, 0).repeat(3, 1)), "64 pixels are shown three times as large"


def found_in(table: np.ndarray, cell: np.ndarray) -> bool:
    """Tell whether a picture stands somewhere in a table, within 1/255."""
    height, width = cell.shape[:2]
    near = (np.abs(table[: -height + 1, : -width + 1] - cell[0, 0]) <= 1).all(-1)
    return any(
        np.abs(table[y : y + height, x : x + width] - cell).max() <= 1 for y, x in np.argwhere(near)[::-1]
    )


def test_cells_of_one_grid_share_calls_and_those_without_guidance_cost_half(pipeline: Pipeline) -> None:
    jobs = [job_of(pipeline, steps=s, guidance=g) for s in (2, 3) for g in (1.0, 3.0, 7.0)]
    assert compare.groups(jobs, None) == [[0], [1, 2], [3], [4, 5]]
    assert compare.groups(jobs, 1) == [[i] for i in (0, 1, 2, 3, 4, 5)]
    calls = 0
    network = pipeline.denoiser.network

    def count(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal calls
        calls += max(len(part) for part in inputs)  # the branches may share the picture, not the text

    hook = network.register_forward_pre_hook(count)
    for members in compare.groups(jobs, None):
        run(pipeline, [jobs[i] for i in members])
    hook.remove()
    assert calls == 2 * (1 + 2 + 2) + 3 * (1 + 2 + 2), "as many rows as the cells need one by one"


# explain


def test_weights_are_those_that_forward_uses() -> None:
    torch.manual_seed(0)
    attention = Attention(32, 24, 4).eval()
    x, context = torch.randn(2, 9, 32), torch.randn(2, 5, 24)
    weights = attention.weights(x, context)
    assert weights.shape == (2, 9, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 9), atol=1e-6)
    one = Attention(32, 24, 1).eval()
    one.load_state_dict(attention.state_dict())
    by_hand = one.to_out(one.weights(x, context) @ one.to_v(context))
    assert torch.allclose(by_hand, one(x, context), atol=1e-5)


def test_nothing_is_captured_when_nobody_watches(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    job, network = job_of(pipeline, steps=1), pipeline.denoiser.network
    layers = [m for m in network.modules() if isinstance(m, SpatialTransformer)]
    taken: list[tuple[torch.Tensor, tuple[int, int]]] = []
    with watched(network, lambda weights, size: taken.append((weights, size))):
        assert any(m._forward_hooks for m in network.modules())
        run(pipeline, [job])
    assert len(taken) == sum(len(layer.transformer_blocks) for layer in layers) > 0
    assert all(weights.shape[:2] == (1, size[0] * size[1]) for weights, size in taken)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())

    def never(*_: object) -> None:
        raise AssertionError("weights are computed although nobody watches")

    monkeypatch.setattr(Attention, "weights", never)
    run(pipeline, [job])


def test_heat_lies_where_the_word_is_read() -> None:
    (word,) = read("apple", 1, "a1111")[0]
    assert word.text == "apple" and word.places == (1,)
    heats = explain.Heats([word], 77, (4, 4), torch.device("cpu"))
    weights = torch.zeros(1, 4, 154)  # a 2 x 2 map; the text is read twice over
    weights[0, 1, 1], weights[0, 1, 78] = 0.3, 0.5  # top right
    heats.add(weights, (2, 2))
    heat = heats.mean()[0]
    assert heat.argmax() == 3 and heat.max() == pytest.approx(0.8)
    over = explain.overlay(np.full((8, 8, 3), 128, np.uint8), heat).astype(int)
    assert over[0, 7].sum() > over[7, 0].sum() + 200, "the most is light, the least dark"


def test_words_keep_their_places_and_marks_fall_away() -> None:
    words, tokens, states = read("a (red:1.3) apple, unbelievablest!", 5, "a1111")
    assert [(word.text, word.places) for word in words][:3] == [("a", (1,)), ("red", (2,)), ("apple", (3,))]
    assert words[3].text == "unbelievablest" and len(words[3].places) > 1
    assert states == 77 and tokens[:4] == ["a", "red", "apple", ","]
    with pytest.raises(UsageError, match="several texts"):
        read("a fox AND a hat", 5, "a1111")
    assert len(read("a fox AND a hat", 5, "plain")[0]) == 5


def test_explain_shows_words_and_the_three_estimates(pipeline: Pipeline) -> None:
    job = job_of(pipeline, guidance=3.0)
    words, tokens, states = read(job.prompt, job.steps, job.prompt_syntax)
    seen = explain.watch(pipeline, job, words, states, 2, lambda step, steps: None)
    assert np.array_equal(seen.picture, run(pipeline, [job])[0])
    assert seen.heats.shape == (3, 4, 4) and seen.heats.min() >= 0 and sum(seen.shares) == pytest.approx(100)
    labels = [cell.lines[0] for cell in seen.estimates]
    assert labels == ["unconditional", "conditional", "conditional - unconditional", "guided"]
    drawn = explain.figure(job, words, tokens, seen, 2)
    assert drawn.shape[1] > 4 * 160
    # guided = uncond + 3 (cond - uncond) in latents; the decoder bends it, but its picture lies nearer to that than to any branch
    uncond, cond, _, guided = (cell.pixels.astype(float) for cell in seen.estimates)
    wanted = (uncond + 3 * (cond - uncond)).clip(0, 255)
    apart = {name: np.abs(other - guided).mean() for name, other in (("wanted", wanted), ("cond", cond), ("uncond", uncond))}
    assert apart["wanted"] < apart["cond"] < apart["uncond"], apart
    off = explain.watch(pipeline, job_of(pipeline, guidance=1.0), words, states, 1, lambda step, steps: None)
    assert len(off.estimates) == 3, "guidance is off"


# figures


def test_labels_are_written_and_do_not_touch_the_pictures() -> None:
    from ddgen.io.figures import Block, Cell, table

    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    bare = table([Block([[Cell(red)] * 2])])
    labelled = table(
        [Block([[Cell(red, ("sigma 14.6",))] * 2], beside=("x_t",), above=("one", "two"))], "A title"
    )
    assert (bare == (255, 0, 0)).all(-1).sum() == (labelled == (255, 0, 0)).all(-1).sum() == 2 * 192**2
    assert labelled.shape[0] > bare.shape[0] and labelled.shape[1] > bare.shape[1]
    assert (labelled < 100).all(-1).sum() > 200, "dark ink"
    assert (bare < 100).all(-1).sum() == 0


def test_large_tables_are_scaled_down_and_any_script_is_written() -> None:
    from ddgen.io.figures import MAX_PIXELS, Block, Cell, table

    big = np.zeros((1024, 1024, 3), np.uint8)
    drawn = table([Block([[Cell(big, ("狐 красный é",))] * 8] * 8)], "пример")
    assert drawn.shape[0] * drawn.shape[1] < 1.5 * MAX_PIXELS


def test_equal_figures_have_equal_bytes() -> None:
    from ddgen.io.figures import Block, Cell, encode, table

    frames = [table([Block([[Cell(np.full((64, 64, 3), value, np.uint8))]])]) for value in (0, 90, 200)]
    for kind in ("png", "gif", "webp"):
        data = encode(frames, kind)
        assert data == encode(frames, kind)
        with Image.open(io.BytesIO(data)) as image:
            assert getattr(image, "n_frames", 1) == (1 if kind == "png" else 3)
