"""Noise as other programs draw it: check values, referees where they are installed, and how each goes on
after the first draw.
"""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.utils.torch_utils import randn_tensor

from ddgen.diffusion.draws import cuda_normals, philox
from ddgen.diffusion.rng import RNGS, initial_scale, make_noise
from ddgen.diffusion.schedule import make_schedule
from ddgen.diffusion.spacing import make_spacing
from ddgen.errors import UsageError

SHAPE = (4, 8, 6)
SD = make_schedule({"kind": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


def test_philox_against_numpys_own() -> None:
    """numpy's Philox is 4x64; the 4x32 of CUDA is checked by the published known answers of Random123."""
    zero, ones = np.zeros(1, dtype=np.uint32), np.full(1, 0xFFFFFFFF, dtype=np.uint32)
    assert [int(v[0]) for v in philox((zero,) * 4, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(v[0]) for v in philox((ones,) * 4, 2**64 - 1)] == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]


def test_check_values_of_the_emulated_gpu() -> None:
    expected = [
        -0.92466259,
        -0.42534415,
        -2.6438457,
        0.14518388,
    ]  # published with the emulation; its last digits are the GPU's
    assert np.abs(cuda_normals(0, 0, (3, 4))[0] - expected).max() < 3e-7
    assert cuda_normals(5, 0, (3, 4)).dtype == np.float32
    assert abs(float(cuda_normals(2**40 + 7, 3, (4, 64, 64)).std()) - 1) < 0.02
    assert not np.array_equal(cuda_normals(1, 0, (64,)), cuda_normals(1 + 2**32, 0, (64,)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to draw from")
def test_a_real_gpu_draws_the_same() -> None:
    for seed in (0, 7, 2**40 + 3):
        generator = torch.Generator("cuda").manual_seed(seed)
        for draw in range(2):
            theirs = torch.randn((4, 64, 64), generator=generator, device="cuda").cpu().numpy()
            assert np.abs(cuda_normals(seed, draw, (4, 64, 64)) - theirs).max() < 1e-5


def test_diffusers_draws() -> None:
    source = make_noise("diffusers", [7, 8], SHAPE)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    for _ in range(3):
        theirs = randn_tensor((2, *SHAPE), generator=generators, dtype=torch.float32)
        ours = source.initial() if _ == 0 else source(2.0, 1.0)
        assert torch.equal(ours, theirs)
    assert torch.equal(source.initial()[1:], make_noise("diffusers", [8], SHAPE).initial())
    wide = make_noise("diffusers", [7], SHAPE, dtype=torch.float64).initial()
    assert torch.equal(
        wide, torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    )


def test_comfy_draws_for_the_whole_batch() -> None:
    source = make_noise("comfy", [7, 8, 9], SHAPE)
    first = torch.randn((3, *SHAPE), generator=torch.manual_seed(7))
    assert torch.equal(source.initial(), first)
    later = torch.Generator().manual_seed(8)
    for _ in range(2):
        assert torch.equal(source(2.0, 1.0), torch.randn((3, *SHAPE), generator=later))
    assert torch.equal(make_noise("comfy", [7], SHAPE).initial()[0], first[0])


def test_a1111_draws_per_image_and_counts_on() -> None:
    source = make_noise("a1111", [7, 8], SHAPE)
    for draw in range(3):
        ours = source.initial() if draw == 0 else source(2.0, 1.0)
        assert ours.dtype == torch.float32
        for row, seed in zip(ours, (7, 8), strict=True):
            assert np.array_equal(row.numpy(), cuda_normals(seed, draw, SHAPE))


@pytest.mark.parametrize("name", RNGS)
def test_initial_begins_again(name: str) -> None:
    source = make_noise(name, [3, 4], SHAPE)
    first, second = source.initial(), source(2.0, 1.0)
    assert torch.equal(source.initial(), first) and torch.equal(source(2.0, 1.0), second)
    assert not torch.equal(first, second) and first.shape == (2, *SHAPE)


SCALED = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("sampler", "theirs"),
    [
        ("euler", EulerDiscreteScheduler),
        ("euler_ancestral", EulerAncestralDiscreteScheduler),
        ("heun", HeunDiscreteScheduler),
        ("ddim", DDIMScheduler),
    ],
)
def test_starting_scale_of_diffusers(sampler: str, theirs: type, spacing: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # diffusers makes numpy arrays of tensors in a way that numpy warns of
        scheduler = theirs(
            **SCALED, timestep_spacing=spacing, **({"clip_sample": False} if sampler == "ddim" else {})
        )
        scheduler.set_timesteps(10)
    grid = make_spacing(spacing, SD, 10)
    scale = float(scheduler.init_noise_sigma)
    if sampler == "ddim":  # starts at plain normals of a variance-preserving state
        scale *= math.hypot(1.0, grid.sigmas[0])
    ours = initial_scale("diffusers", grid, sampler=sampler, spacing=spacing, sigma_max=SD.sigma_max)
    assert abs(ours - scale) < 2e-5 * scale


def test_starting_scales_of_the_others() -> None:
    full, part = make_spacing("karras", SD, 10), make_spacing("leading", SD, 10)
    top = SD.sigma_max
    assert initial_scale("a1111", full, sampler="euler", spacing="karras", sigma_max=top) == full.sigmas[0]
    assert initial_scale("a1111", full, sampler="ddim", spacing="karras", sigma_max=top) == math.hypot(
        1, full.sigmas[0]
    )
    assert initial_scale("comfy", full, sampler="euler", spacing="karras", sigma_max=top) == math.hypot(
        1, full.sigmas[0]
    )
    assert initial_scale("comfy", part, sampler="euler", spacing="leading", sigma_max=top) == part.sigmas[0]
    assert (
        initial_scale("ddgen", part, sampler="euler", spacing="leading", sigma_max=top) == part.initial_scale
    )


def test_an_unknown_name_is_answered() -> None:
    with pytest.raises(UsageError, match="did you mean 'comfy'"):
        make_noise("comfyui", [1], SHAPE)


def test_names_cost_no_torch() -> None:
    import subprocess

    script = "import sys, ddgen.diffusion.rng; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
