"""What an edit adds to the one road: closed forms, counted steps, tiny networks; parity is
tests/test_edit_parity.py."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import SCHEDULES, gaussian
from test_conditions import FakeEncoder, MeanNetwork, job, value
from torch import Tensor

from ddgen.app import canvas, edit, verbs, windows
from ddgen.app.canvas import Frame, extended, feathered, passes
from ddgen.app.conditions import Encodings
from ddgen.app.edit import Begun, in_windows, known_outside, latent_mask, start
from ddgen.app.pipeline import run, sample
from ddgen.app.verbs import Source, check_strength, kept_steps
from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.guidance import guided_by_image, with_channels
from ddgen.diffusion.noise import SeededNoise, slerp
from ddgen.diffusion.samplers import SAMPLERS
from ddgen.diffusion.schedule import make_schedule
from ddgen.diffusion.spacing import make_grid
from ddgen.errors import DdgenError
from ddgen.nets.config import KLConfig, PatchConfig, UNetConfig
from ddgen.nets.patch import PatchStage
from ddgen.nets.seamless import seamless
from ddgen.nets.tiling import Tiling
from ddgen.nets.unet import UNet
from ddgen.nets.vae import AutoencoderKL
from ddgen.request import Edit
from ddgen.weights import arch as archs
from ddgen.weights.arch import Arch
from ddgen.weights.spec import Defaults, Spec

PATCHES = PatchConfig(8)
TINY = UNetConfig(
    in_channels=4, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, heads=(2, 2), context_dim=8,
    down_depth=((0,), (1,)), up_depth=((0, 0), (1, 1)),
)  # fmt: skip


class Reader(MeanNetwork):
    """Answers for the first 192 channels alone, whatever it reads beside them."""

    def __call__(self, x: Tensor, *rest: Tensor, **named: Tensor) -> Tensor:
        return super().__call__(x, *rest, **named)[:, :192]


def pixel_pipeline(in_channels: int = 192) -> SimpleNamespace:
    """A pipeline on pixels whose network answers the mean of its text, everywhere."""
    arch = Arch(
        "tiny",
        replace(archs.SD15.unet, in_channels=in_channels, out_channels=192),
        PATCHES,
        archs.SD15.text,
    )
    network = Reader()
    return SimpleNamespace(
        spec=Spec("tiny", arch, "x0", defaults=Defaults(64, 64, 4)),
        denoiser=Denoiser(network, "x0", make_schedule(SCHEDULES["cosine"])),
        encodings=Encodings(FakeEncoder()),
        first_stage=PatchStage(PATCHES),
        device=torch.device("cpu"),
        network=network,
        refiner=None,
        kept_small=False,
    )


def noisy_picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("steps", "strength", "kept"),
    [
        (25, 0.6, 15),
        (25, 0.01, 1),
        (10, 0.35, 3),
        (10, 1.0, 10),
        (1, 0.5, 1),
        (30, None, 30),
        (100, 0.29, 28),
    ],
)
def test_strength_counts_the_networks_calls(steps: int, strength: float | None, kept: int) -> None:
    assert kept_steps(steps, strength) == kept
    pipeline = pixel_pipeline()
    record = Edit("edit", strength=strength)
    task = job("cat", steps=steps, guidance=1.0, edit=record)
    seen: list[int] = []
    run(
        pipeline,
        [task],
        lambda step, total: seen.append(total),
        Source(noisy_picture(64, 64)),
    )
    assert len(pipeline.network.batches) == kept and seen == [kept] * kept


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, math.nan])
def test_a_strength_that_means_nothing_is_refused(strength: float) -> None:
    with pytest.raises(DdgenError) as caught:
        check_strength(strength)
    assert caught.value.exit_code == 2 and "--strength" in caught.value.message and caught.value.hint


def test_where_an_edit_starts() -> None:
    grid, eps = make_grid([8.0, 2.0, 0.0]), torch.randn(1, 2, 4, 4)
    x0, anew = torch.randn(1, 2, 4, 4), torch.rand(1, 1, 4, 4) > 0.5
    begun, pure = Begun(x0, anew, None, blended=True), 9.0 * eps
    assert torch.equal(start(begun, Edit("edit", strength=1.0), grid, eps, pure), x0 + 8.0 * eps), (
        "1 is not special"
    )
    found = start(begun, Edit("inpaint"), grid, eps, pure)
    assert torch.equal(found, torch.where(anew, pure, x0 + 8.0 * eps))
    assert torch.equal(start(Begun(x0, None, None, blended=True), Edit("edit"), grid, eps, pure), pure)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_outside_the_mask_every_sampler_ends_at_the_picture(sampler: str) -> None:
    """And inside, a denoiser that works point by point goes its own way, as if there were no mask."""
    x0 = torch.full((1, 1, 4, 4), 0.7, dtype=torch.float64)
    anew = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    anew[..., :2] = True
    sigmas = (4.0, 2.0, 1.0, 0.5, 0.0)

    def end(denoise: object) -> Tensor:
        noise = SeededNoise([5], (1, 4, 4), dtype=torch.float64)
        x = x0 + sigmas[0] * noise.initial()
        return [step.x for step in SAMPLERS[sampler].fn(denoise, x, sigmas, noise)][-1]

    free = end(gaussian(1.0))
    found = end(known_outside(gaussian(1.0), x0, anew))
    assert torch.allclose(found[~anew], x0[~anew], atol=1e-12)
    assert torch.allclose(found[anew], free[anew], atol=1e-12)
    assert (free[~anew] - x0[~anew]).abs().max() > 0.05


def test_masks_of_latents() -> None:
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 3, 11] = True
    kl = Arch("kl", TINY, KLConfig(), archs.SD15.text)
    cells = latent_mask(kl, PatchStage(PATCHES), mask)
    assert cells.shape == (1, 1, 2, 2) and cells[0, 0].tolist() == [
        [False, True],
        [False, False],
    ]
    patches = latent_mask(Arch("px", TINY, PATCHES, archs.SD15.text), PatchStage(PATCHES), mask)
    assert patches.shape == (1, 192, 2, 2) and patches.sum() == 3, "pixels stay pixels, in three channels"


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_rolling_a_seamless_picture_rolls_what_its_windows_make(axes: str) -> None:
    """Four windows round the picture: network, encoder and decoder, none of which may run round in its window."""
    torch.manual_seed(0)
    unet = UNet(TINY).double().eval()
    stage = AutoencoderKL(KLConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1)).double().eval()
    for parameter in (*unet.parameters(), *stage.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    arch = Arch("kl", TINY, stage.config, archs.SD15.text)
    height, width = 48 if "y" in axes else 16, 48 if "x" in axes else 16
    task = job("cat", width=width, height=height, tile=axes, edit=Edit("upscale", window=16))
    assert windows.seamless_axes(task, arch) == "" and windows.seamless_axes(replace(task, edit=None), arch) == axes
    whole = replace(task, width=16)
    assert windows.seamless_axes(whole, arch) == axes.replace("y", ""), "one window across runs round itself"
    shifts = tuple(24 if axis in axes else 0 for axis in "yx")
    context = torch.randn(1, 77, 8, dtype=torch.float64)
    picture = noisy_picture(height, width)

    def made(pixels: np.ndarray, tile: str) -> tuple[Tensor, np.ndarray]:
        used = replace(task, tile=tile)
        tiling = windows.tiling_of(used, arch)
        assert tiling is not None
        axes_left = windows.seamless_axes(used, arch)
        with torch.inference_mode(), seamless([unet, stage], axes_left):
            x0 = windows.encode(stage, pixels, 2, tiling, torch.device("cpu"), torch.float64)
            found = in_windows(lambda x, sigma: unet(x, torch.tensor([500.0]), context), tiling)(x0, 1.0)
            picture = windows.decode(stage, found / found.std(), 2, tiling)
        assert picture is not None
        return found, picture

    def uneven(tile: str) -> tuple[float, int]:
        (found, decoded), (rolled, other) = made(picture, tile), made(np.roll(picture, shifts, (0, 1)), tile)
        latents = (found.roll([shift // 2 for shift in shifts], (2, 3)) - rolled).abs().max() / found.std()
        return latents.item(), int(np.abs(np.roll(decoded, shifts, (0, 1)).astype(int) - other).max())

    latents, pixels = uneven(axes)
    assert latents < 1e-9 and pixels <= 1
    latents, pixels = uneven("")
    assert latents > 1e-3 and pixels > 1


def test_windows_sum_to_one_and_bound_what_the_network_sees() -> None:
    seen: list[tuple[int, ...]] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        return x * 0.25

    for length in (32, 128):
        x = torch.randn(1, 3, length, 40)
        assert torch.allclose(in_windows(denoise, Tiling(16, 4))(x, 1.0), x * 0.25, atol=1e-6)
    assert set(seen) == {(16, 16)}, "whatever the picture's size"


def test_slerp() -> None:
    a, b = (
        torch.randn(3, 8, 8, dtype=torch.float64),
        torch.randn(3, 8, 8, dtype=torch.float64),
    )
    assert slerp(a, b, 0) is a and slerp(a, b, 1) is b
    a, b = a / a.norm(), b / b.norm()
    for amount in (0.25, 0.5):
        found = slerp(a, b, amount)
        assert abs(found.norm() - 1) < 1e-12, "noise stays as large as noise is"
        whole, part = torch.acos((a * b).sum()), torch.acos((a * found).sum())
        assert abs(part - amount * whole) < 1e-9
    assert torch.allclose(slerp(a, a, 0.3), a)


def test_text_and_picture_guide_in_one_call() -> None:
    """F = text x (1 + picture): the three-way formula by hand, for two images of different scales."""
    calls: list[int] = []

    def network(x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor:
        calls.append(len(x))
        return context[:, :1, :1, None].expand(-1, 1, 2, 2) * (1 + x[:, 1:])

    denoiser = Denoiser(network, "x0", make_schedule(SCHEDULES["cosine"]))
    cond, uncond = (
        Conditioning(torch.tensor(v)[:, None, None].expand(2, 77, 1), None) for v in ([3.0, 5.0], [1.0, 1.0])
    )
    beside = torch.tensor([2.0, 4.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    scale = torch.tensor([7.0, 2.0])
    denoise = guided_by_image(denoiser, [cond], uncond, beside, scale=scale, image_scale=1.5)
    found = denoise(torch.zeros(2, 1, 2, 2), 1.0)[:, 0, 0, 0]
    expected = [1 + 1.5 * (3 - 1) + 7 * (9 - 3), 1 + 1.5 * (5 - 1) + 2 * (25 - 5)]
    assert found.tolist() == pytest.approx(expected) and calls == [6]
    plain = with_channels(denoiser, beside)(
        torch.zeros(4, 1, 2, 2), 1.0, Conditioning(torch.ones(4, 77, 1), None)
    )
    assert plain[:, 0, 0, 0].tolist() == [3.0, 5.0, 3.0, 5.0], "each branch gets the rows again"


def test_a_network_that_reads_a_picture_needs_one() -> None:
    with pytest.raises(DdgenError, match="follows instructions"):
        sample(pixel_pipeline(384), [job("cat")])
    with pytest.raises(DdgenError, match="reads 200 channels"):
        sample(pixel_pipeline(200), [job("cat")])
    blind = pixel_pipeline(385)
    (picture,) = run(blind, [job("cat", guidance=1.0)])
    assert picture.shape == (64, 64, 3), "an inpainting network without a picture makes all of it"


@pytest.mark.parametrize("size", [(64, 64), (75, 100), (50, 61)])
def test_outside_the_mask_the_bytes_are_the_pictures(size: tuple[int, int]) -> None:
    pipeline, picture = pixel_pipeline(), noisy_picture(*size)
    mask = np.zeros(size, bool)
    mask[20:41, 10:33] = True
    frame = Frame((4, 6, 50, 50), 64, 64)
    task = job("cat", guidance=1.0, edit=Edit("inpaint"))
    (found,) = verbs.inside(picture, mask, frame, feathered(mask, 4))(
        pipeline, [task], lambda step, steps: None
    )
    assert found.shape == picture.shape and np.array_equal(found[~mask], picture[~mask])
    core = found[26:35, 16:27]
    assert len(np.unique(core)) == 1 and abs(core[0, 0, 0] / 127.5 - 1 - value("cat")) < 0.01, (
        "the new is seen in full"
    )
    assert (picture[20:41, 10:33] != found[20:41, 10:33]).any(2).mean() > 0.95


def test_an_empty_mask_keeps_and_a_full_mask_replaces() -> None:
    pipeline, picture = pixel_pipeline(), noisy_picture(64, 64)
    frame, task = (
        Frame((0, 0, 64, 64), 64, 64),
        job("cat", guidance=1.0, edit=Edit("inpaint")),
    )
    empty, full = np.zeros((64, 64), bool), np.ones((64, 64), bool)
    (kept,) = verbs.inside(picture, empty, frame, feathered(empty, 4))(
        pipeline, [task], lambda step, steps: None
    )
    assert np.array_equal(kept, picture) and not pipeline.network.batches
    (made,) = verbs.inside(picture, full, frame, feathered(full, 4))(
        pipeline, [task], lambda step, steps: None
    )
    assert len(np.unique(made)) == 1, "the picture's border is no border of the mask"


def test_an_outpaint_in_several_passes_fills_all_and_keeps_the_picture() -> None:
    pipeline, picture = pixel_pipeline(), noisy_picture(64, 48)
    board, new = extended(picture, 70, 10, 0, 90)
    frames = verbs.frames_of(pipeline.spec, list(passes(118, 164, (70, 10, 118, 74), 64, 64)))
    assert len(frames) > 4
    tasks = [job("cat", guidance=1.0, seed=seed, edit=Edit("outpaint")) for seed in (1, 2)]
    first, second = verbs.outside(board, new, frames)(pipeline, tasks, lambda step, steps: None)
    assert first.shape == (164, 118, 3) and np.array_equal(first[~new], board[~new])
    far = first[100:, :50]
    assert np.ptp(far.astype(int)) <= 4 and np.array_equal(first, second), (
        "every new pixel was made, not stretched"
    )


def seam(picture: np.ndarray, left: int, top: int, right: int, bottom: int) -> float:
    """Return how many of the places along the border of a part are steeper than the 95th percentile inside
    it."""
    across, down = (np.abs(np.diff(picture.astype(float), axis=axis)).mean(2) for axis in (1, 0))
    inside = np.concatenate([across[top:bottom, left : right - 1].ravel(), down[top : bottom - 1, left:right].ravel()])
    border = [across[top:bottom, left - 1], across[top:bottom, right - 1], down[top - 1, left:right], down[bottom - 1, left:right]]
    return float((np.concatenate(border) > np.percentile(inside, 95)).mean())


def test_the_border_of_an_outpaint_is_no_steeper_than_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is made beyond it: here one flat colour that the picture does not have."""
    pipeline = pixel_pipeline()
    rows, columns = np.mgrid[:64, :64]
    picture = np.stack([120 + 4 * (rows % 16), 60 + 3 * (columns % 20), 90 + rows % 8], 2).astype(np.uint8)
    board, new = extended(picture, 40, 32, 40, 32)
    frames = verbs.frames_of(pipeline.spec, list(passes(144, 128, (40, 32, 104, 96), 64, 64)))
    task = job("cat", guidance=1.0, edit=Edit("outpaint", strength=0.75))

    def outpainted() -> np.ndarray:
        (found,) = verbs.outside(board, new, frames)(pipeline, [task], lambda step, steps: None)
        assert np.array_equal(found[~new], board[~new])
        return found

    assert seam(outpainted(), 40, 32, 104, 96) == 0
    monkeypatch.setattr(canvas, "joined", lambda below, above, mask: above)
    assert seam(outpainted(), 40, 32, 104, 96) > 0.5, "without it the test would fail"


def test_variations_and_morphs_are_jobs() -> None:
    pipeline = pixel_pipeline()
    ends = [job("cat", guidance=1.0), job("dog", guidance=1.0)]
    (a,), (b,) = (run(pipeline, [end]) for end in ends)
    moved = [replace(ends[0], toward="dog", toward_weight=weight) for weight in (0.0, 0.5, 1.0)]
    found = run(pipeline, moved)
    assert np.array_equal(found[0], a) and np.array_equal(found[2], b)
    middle = (value("cat") + value("dog")) / 2
    assert abs(found[1][0, 0, 0] / 127.5 - 1 - middle) < 0.01
    with pytest.raises(DdgenError, match="no middle"):
        run(pipeline, [replace(moved[1], prompt="a AND b")])
    starts: list[Tensor] = []
    for amount, seed in ((0.0, 0), (0.3, 9), (1.0, 9)):
        task = job("cat", variation=amount, variation_seed=seed, seed=5)
        sample(pipeline, [task], None, None, lambda x, grid: starts.append(x))
    sample(pipeline, [job("cat", seed=9)], None, None, lambda x, grid: starts.append(x))
    assert torch.equal(starts[2], starts[3]) and not torch.equal(starts[0], starts[1])
    assert abs(starts[1].norm() / starts[0].norm() - 1) < 0.05


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_rolling_a_seamless_picture_rolls_what_is_made(axes: str) -> None:
    torch.manual_seed(0)
    unet = UNet(TINY).double().eval()
    decoder = (
        AutoencoderKL(KLConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1)).double().eval()
    )
    for parameter in (*unet.parameters(), *decoder.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    x, context = (
        torch.randn(1, 4, 8, 8, dtype=torch.float64),
        torch.randn(1, 77, 8, dtype=torch.float64),
    )
    shifts = tuple(4 if axis in axes else 0 for axis in "yx")

    def made(latents: Tensor) -> Tensor:
        with torch.no_grad():
            return decoder.decode(unet(latents, torch.tensor([500.0]), context))

    def uneven(used: str) -> float:
        with seamless([unet, decoder], used):
            whole, rolled = made(x), made(x.roll(shifts, (2, 3)))
        return (
            (whole.roll([2 * shift for shift in shifts], (2, 3)) - rolled).abs().max() / whole.std()
        ).item()

    assert uneven(axes) < 1e-9
    assert uneven("") > 1e-3, "without, the border is seen; and nothing stays patched"
    if axes != "xy":
        assert uneven("y" if axes == "x" else "x") > 1e-3
    assert edit.Begun is Begun and not any("forward" in vars(layer) for layer in unet.modules())
