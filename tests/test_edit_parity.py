"""Edits against diffusers' pipelines in float64: image to image, inpainting with 4 and 9 channels,
InstructPix2Pix.

Small networks, random weights, the same noise; the picture enters by the encoder's mode on both sides.
MUTATIONS shows that what an edit adds to the road is seen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_parity_pipelines import (
    FAMILIES,
    KL,
    SMALL,
    TOLERANCE,
    Family,
    asked,
    build,
    in_double,
    jobs_of,
    their_pipeline,
    their_relative,
    vocabulary,
)
from referees import Record
from torch import Tensor

from ddgen.app import conditions, edit
from ddgen.app.edit import Source
from ddgen.app.pipeline import Pipeline, sample
from ddgen.diffusion import guidance
from ddgen.io import images
from ddgen.request import Edit
from ddgen.text.config import TowerSpec
from ddgen.weights.arch import Arch

__all__ = ["in_double", "vocabulary"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

TOWER = FAMILIES["sd1 ddim"].arch.text
assert isinstance(TOWER[0], TowerSpec)
NINE = Arch("inpaint", replace(SMALL, in_channels=9), KL, TOWER)
EIGHT = Arch("ip2p", replace(SMALL, in_channels=8), KL, TOWER)
PICTURE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), bool)
MASK[16:48, 8:40] = True  # on the grid of the latents, where all programs agree
STABLE = "stable_diffusion.pipeline_stable_diffusion_"
WIDE = "stable_diffusion_xl.pipeline_stable_diffusion_xl_"

CASES: dict[str, tuple[str, str, Arch | None, Edit, bool]] = {
    "img2img ddim": (
        "sd1 ddim",
        STABLE + "img2img.StableDiffusionImg2ImgPipeline",
        None,
        Edit("edit", strength=0.6),
        False,
    ),
    "img2img dpmpp_2m": (
        "sd1 dpmpp_2m",
        STABLE + "img2img.StableDiffusionImg2ImgPipeline",
        None,
        Edit("edit", strength=0.35),
        False,
    ),
    "img2img sdxl": (
        "sdxl euler",
        WIDE + "img2img.StableDiffusionXLImg2ImgPipeline",
        None,
        Edit("edit", strength=0.5),
        False,
    ),
    "inpaint 4 ddim": (
        "sd1 ddim",
        STABLE + "inpaint.StableDiffusionInpaintPipeline",
        None,
        Edit("inpaint", strength=0.8),
        True,
    ),
    "inpaint 4 dpmpp_2m": (
        "sd1 dpmpp_2m",
        STABLE + "inpaint.StableDiffusionInpaintPipeline",
        None,
        Edit("inpaint", strength=0.5),
        True,
    ),
    "inpaint 4 sdxl": (
        "sdxl euler",
        WIDE + "inpaint.StableDiffusionXLInpaintPipeline",
        None,
        Edit("inpaint", strength=0.6),
        True,
    ),
    "inpaint 9 from noise": (
        "sd1 ddim",
        STABLE + "inpaint.StableDiffusionInpaintPipeline",
        NINE,
        Edit("inpaint"),
        True,
    ),
    "inpaint 9 euler a": (
        "sd1 euler a",
        STABLE + "inpaint.StableDiffusionInpaintPipeline",
        NINE,
        Edit("inpaint", strength=0.7),
        True,
    ),
    "instructions": (
        "sd1 ddim",
        STABLE + "instruct_pix2pix.StableDiffusionInstructPix2PixPipeline",
        EIGHT,
        Edit("edit", image_guidance=1.5),
        False,
    ),
    "instructions euler a": (
        "sd1 euler a",
        STABLE + "instruct_pix2pix.StableDiffusionInstructPix2PixPipeline",
        EIGHT,
        Edit("edit", image_guidance=2.0),
        False,
    ),
}


def family_of(case: str) -> Family:
    name, _, arch, _, _ = CASES[case]
    return FAMILIES[name] if arch is None else replace(FAMILIES[name], arch=arch)


def ours(case: str, pipeline: Pipeline) -> Tensor:
    _, _, _, record, masked = CASES[case]
    jobs = [replace(job, edit=record) for job in jobs_of(family_of(case), pipeline)]
    with torch.inference_mode():
        return sample(pipeline, jobs, None, Source(PICTURE, MASK if masked else None))


def theirs(case: str, pipeline: Pipeline, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    _, place, _, record, masked = CASES[case]
    module = importlib.import_module("diffusers.pipelines." + place.rpartition(".")[0])
    monkeypatch.setattr(
        module,
        "retrieve_latents",
        lambda found, *rest, **named: found.latent_dist.mode(),
    )
    base = their_pipeline(family_of(case), pipeline, vocabulary, monkeypatch)
    made = their_relative(place, base)
    pixels = torch.from_numpy(images.to_unit(PICTURE)).double() / 2 + 0.5
    options: dict[str, object] = {"image": pixels.expand(2, -1, -1, -1)}
    if "inpaint" in case:
        options |= {
            "mask_image": torch.from_numpy(MASK[None, None]).double(),
            "width": 64,
            "height": 64,
        }
    if record.image_guidance is not None:
        options["image_guidance_scale"] = record.image_guidance
    else:
        options["strength"] = 1.0 if record.strength is None else record.strength
    assert masked == ("mask_image" in options)
    return made(**asked(**options)).images


@pytest.mark.parametrize("case", CASES)
def test_edits_equal_diffusers(
    case: str, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    pipeline = build(family_of(case))
    expected = theirs(case, pipeline, vocabulary, monkeypatch)
    found = ours(case, pipeline)
    assert found.dtype == expected.dtype == torch.float64 and expected.std() > 0.1
    difference = (found - expected).abs().max().item()
    record_property("whole picture from another one, against diffusers", difference)
    assert difference < TOLERANCE


def one_step_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "kept_steps", lambda steps, strength: int(steps * (strength or 1)) + 1)


def noise_of_preserving_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "start", lambda begun, record, grid, eps, pure: begun.x0 + pure)


def no_blend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "known_outside", lambda denoise, x0, anew: denoise)


def mask_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    before = edit.latent_mask
    monkeypatch.setattr(edit, "latent_mask", lambda *given: ~before(*given))


def channels_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before = edit.mask_channels
    monkeypatch.setattr(edit, "mask_channels", lambda *given: before(*given).roll(1, 1))


def picture_not_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    before = edit.mask_channels
    monkeypatch.setattr(
        edit, "mask_channels",
        lambda arch, stage, pixels, mask: torch.cat(
            [before(arch, stage, pixels, mask)[:, :1], stage.encode(pixels)], 1
        ),
    )  # fmt: skip


def scaled_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    before = conditions.bind
    from ddgen.app import pipeline as pipelines

    monkeypatch.setattr(
        pipelines,
        "bind",
        lambda p, jobs, grid, beside, *more: before(p, jobs, grid, beside * KL.scale_factor, *more),
    )


def picture_and_text_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(*given: object, scale: Tensor, image_scale: float, **more: object) -> Callable[..., Tensor]:
        return guidance.guided_by_image(*given, scale=image_scale, image_scale=7.5, **more)

    monkeypatch.setattr(conditions, "guided_by_image", exchanged)


MUTATIONS = {
    "img2img ddim": (one_step_more, noise_of_preserving_scale),
    "inpaint 4 ddim": (no_blend, mask_turned_round),
    "inpaint 9 from noise": (channels_in_another_order, picture_not_masked),
    "instructions": (scaled_picture, picture_and_text_exchanged),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_a_change_of_our_side_is_seen(case: str, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = build(family_of(case))
    expected = theirs(case, pipeline, vocabulary, monkeypatch)
    for mutate in MUTATIONS[case]:
        with pytest.MonkeyPatch.context() as patched:
            mutate(patched)
            assert (ours(case, pipeline) - expected).abs().max() > 10 * TOLERANCE, mutate.__name__
