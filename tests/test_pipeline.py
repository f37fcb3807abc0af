"""The whole road with the embedded model: the Python API, batches against single images, non-finite numbers, stopping."""

import numpy as np
import pytest
import torch

from ddgen import DdgenError, Pipeline, Request, generate
from ddgen.app.pipeline import run
from ddgen.app.plan import plan
from ddgen.diffusion.samplers import SAMPLERS


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("sticker")


def pictures(pipeline: Pipeline, batch: int, **settings: object) -> list[np.ndarray]:
    jobs = list(plan(Request(**settings), pipeline.spec))
    return [image for at in range(0, len(jobs), batch) for image in run(pipeline, jobs[at : at + batch])]


def test_generate_gives_pillow_images(pipeline: Pipeline) -> None:
    images = generate(pipeline, Request(prompts=("a red apple", "a penguin"), seed=7, steps=2, scale=2))
    assert [image.size for image in images] == [(256, 256), (256, 256)]
    again = generate(pipeline, Request(prompts=("a penguin",), seed=7, steps=2, scale=2))
    assert np.abs(np.asarray(images[1], dtype=int) - np.asarray(again[0], dtype=int)).max() <= 1
    assert np.abs(np.asarray(images[0], dtype=int) - np.asarray(images[1], dtype=int)).max() > 50, "the prompt matters"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_an_image_does_not_depend_on_its_neighbours(pipeline: Pipeline, sampler: str) -> None:
    settings = {"prompts": ("a red apple", "[red:green:0.5] prompt " * 40), "seed": 3, "sampler": sampler}
    settings |= {"width": 64, "height": 64, "num": 2, "sigmas": (8.0, 2.0, 0.5, 0.0)}
    alone, together = pictures(pipeline, 1, **settings), pictures(pipeline, 4, **settings)
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert np.abs(alone[0].astype(int) - alone[1].astype(int)).max() > 20, "the seed matters"


def test_equal_runs_give_equal_pixels(pipeline: Pipeline) -> None:
    first, second = (pictures(pipeline, 2, prompts=("a fox",), seed=1, num=2, steps=2, width=64, height=64) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_other_sizes(pipeline: Pipeline) -> None:
    (image,) = generate(pipeline, Request(prompts=("a fox",), seed=1, steps=1, width=192, height=64))
    assert image.size == (192, 64)


def test_non_finite_pictures_are_refused(pipeline: Pipeline) -> None:
    weight = next(pipeline.denoiser.network.out.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0] = torch.nan
    try:
        with pytest.raises(DdgenError, match="non-finite") as caught:
            generate(pipeline, Request(prompts=("a fox",), seed=5, steps=1))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert caught.value.exit_code == 9 and "5" in caught.value.message


def test_on_step_sees_every_step_and_may_stop(pipeline: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    generate(pipeline, Request(prompts=("a fox",), seed=5, steps=3), lambda step, steps: seen.append((step.index, steps)))
    assert seen == [(0, 3), (1, 3), (2, 3)]

    def stop(step: object, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(pipeline, Request(prompts=("a fox",), seed=5, steps=3), stop)


def test_unknown_names_are_refused_with_the_nearest(pipeline: Pipeline) -> None:
    with pytest.raises(DdgenError, match="did you mean 'euler'"):
        generate(pipeline, Request(prompts=("a fox",), sampler="eular"))
    with pytest.raises(DdgenError, match="did you mean 'sticker'"):
        Pipeline.load("stiker")
