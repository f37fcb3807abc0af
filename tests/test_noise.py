"""SeededNoise: a function of (seed, draw) alone, standard normal, and pinned."""

import math

import pytest
import torch

from ddgen.diffusion.noise import SeededNoise, normals


def test_a_batch_is_its_images():
    batch = SeededNoise([7, 0, 2**63 - 1, 8], (2, 3, 5))
    alone = [SeededNoise([seed], (2, 3, 5)) for seed in batch.seeds]
    assert torch.equal(batch.initial(), torch.cat([one.initial() for one in alone]))
    for _ in range(3):
        assert torch.equal(batch(2.0, 1.0), torch.cat([one(9.0, 3.0) for one in alone]))


def test_draws_and_seeds_differ():
    noise = SeededNoise([1, 2], (400,))
    draws = torch.cat([noise.initial(), noise(2.0, 1.0), noise(1.0, 0.5)])
    correlation = torch.corrcoef(draws)
    assert (correlation - torch.eye(6)).abs().max() < 0.2


def test_initial_starts_again():
    noise = SeededNoise([5], (4,))
    first, second = noise.initial(), noise(2.0, 1.0)
    noise(1.0, 0.5)
    assert torch.equal(noise.initial(), first)
    assert torch.equal(noise(2.0, 1.0), second)


def test_standard_normal():
    values = torch.from_numpy(normals(3, 0, (200_000,)))
    assert values.mean().abs() < 4 / math.sqrt(200_000)
    assert (values.var() - 1).abs() < 4 * math.sqrt(2 / 200_000)
    assert (values.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.005)


def test_pinned():
    """These values are part of what a seed means; a change breaks every published seed."""
    assert normals(0, 0, (3,)).tolist() == PINNED[0]
    assert normals(1234567, 5, (3,)).tolist() == PINNED[1]


PINNED = (
    [0.15929546600623282, -1.7741885208017214, 1.3265118818830892],
    [-1.2126330607878304, -0.9425263342706828, 0.5912401090403646],
)


def test_shape_dtype_and_device():
    noise = SeededNoise([1, 2], (4, 8, 6), dtype=torch.float64)
    assert noise.initial().shape == (2, 4, 8, 6)
    assert noise(1.0, 0.5).dtype == torch.float64
    assert SeededNoise([1], (2,)).initial().dtype == torch.float32
    # The float32 draw is the float64 one rounded.
    assert torch.equal(SeededNoise([1, 2], (4, 8, 6)).initial(), noise.initial().float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_on_a_gpu():
    assert torch.equal(SeededNoise([1], (8, 8), "cuda").initial().cpu(), SeededNoise([1], (8, 8)).initial())
