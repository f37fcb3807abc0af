"""Guidance: what it computes, what it costs, and that no image feels its neighbours."""

import math

import pytest
import torch

from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.guidance import guided, interval_from_steps, join
from fakes import schedule


class ContextNetwork:
    """Predicts a function of x and the mean of the context; counts calls and pictures."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x, time, context, vector=None):
        self.calls.append(len(x))
        text = context.mean((1, 2)).reshape(-1, 1, 1, 1)
        if vector is not None:
            text = text + vector.sum(1).reshape(-1, 1, 1, 1)
        return torch.sin(x) * text + text**2


def text(*values: float, chunks: int = 1) -> Conditioning:
    return Conditioning(
        torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1).expand(-1, 77 * chunks, 2)
    )


def draw(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


def make(prediction="v", **options) -> tuple[Denoiser, ContextNetwork]:
    network = ContextNetwork()
    return Denoiser(network, prediction, schedule("sd"), **options), network


@pytest.mark.parametrize("scale", [1, 1.0, torch.ones(2)])
def test_scale_one_makes_one_call_without_uncond(scale):
    denoiser, network = make()
    x = draw(2)
    out = guided(denoiser, text(0.3, 0.7), None, scale=scale)(x, 2.0)
    assert network.calls == [2]
    assert torch.equal(out, denoiser(x, 2.0, text(0.3, 0.7)))


def test_both_branches_are_one_batch():
    denoiser, network = make()
    x = draw(2)
    out = guided(denoiser, text(0.3, 0.7), text(0.0, 0.1), scale=7.5)(x, 2.0)
    assert network.calls == [4]
    cond, uncond = denoiser(x, 2.0, text(0.3, 0.7)), denoiser(x, 2.0, text(0.0, 0.1))
    assert (out - (uncond + 7.5 * (cond - uncond))).abs().max() < 1e-12


def test_scale_zero_is_the_unconditional_estimate():
    denoiser, _ = make()
    x = draw(2)
    out = guided(denoiser, text(0.3, 0.7), text(0.0, 0.1), scale=0.0)(x, 2.0)
    assert (out - denoiser(x, 2.0, text(0.0, 0.1))).abs().max() < 1e-12


def test_each_image_may_have_its_scale():
    denoiser, _ = make()
    x = draw(2)
    out = guided(
        denoiser, text(0.3, 0.7), text(0.0, 0.1), scale=torch.tensor([1.0, 5.0], dtype=torch.float64)
    )(x, 2.0)
    for i, scale in enumerate((1.0, 5.0)):
        alone = guided(denoiser, text((0.3, 0.7)[i]), text((0.0, 0.1)[i]), scale=scale)(x[i : i + 1], 2.0)
        assert (out[i : i + 1] - alone).abs().max() < 1e-12


def test_guidance_needs_an_unconditional_branch():
    with pytest.raises(ValueError, match="unconditional"):
        guided(make()[0], text(0.3), None, scale=2.0)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_rescale_restores_the_spread_of_the_network_output_per_image(prediction):
    """Lin et al. eq. 15-16, computed here on F itself."""
    denoiser, network = make(prediction)
    x, sigma, phi = draw(2), 2.0, 0.7
    out = guided(denoiser, text(0.3, 0.7), text(0.0, 0.1), scale=7.5, rescale=phi)(x, sigma)
    c_skip, c_out, c_in = denoiser.coefficients(sigma)
    f_cond, f_uncond = (network(c_in * x, None, c.context) for c in (text(0.3, 0.7), text(0.0, 0.1)))
    f = f_uncond + 7.5 * (f_cond - f_uncond)
    for i in range(2):
        expected = phi * f[i] * (f_cond[i].std() / f[i].std()) + (1 - phi) * f[i]
        assert (out[i] - (c_skip * x[i] + c_out * expected)).abs().max() < 1e-10


def test_an_image_does_not_feel_its_neighbours():
    denoiser, _ = make(x0_clamp={"kind": "dynamic", "quantile": 0.8})
    x, options = draw(3), {"scale": 6.0, "rescale": 0.5}
    together = guided(denoiser, text(0.3, 0.7, 2.0), text(0.0, 0.1, 0.2), **options)(x, 2.0)
    for i in range(3):
        alone = guided(denoiser, text((0.3, 0.7, 2.0)[i]), text((0.0, 0.1, 0.2)[i]), **options)(
            x[i : i + 1], 2.0
        )
        assert (together[i : i + 1] - alone).abs().max() < 1e-12


def test_rescale_of_a_constant_output_stays_finite():
    denoiser = Denoiser(lambda x, time, context, vector=None: torch.zeros_like(x), "eps", schedule("sd"))
    assert torch.isfinite(
        guided(denoiser, text(0.3), text(0.0), scale=5.0, rescale=0.7)(draw(1).float(), 2.0)
    ).all()


@pytest.mark.parametrize(("sigma", "calls"), [(0.28, 2), (0.29, 4), (5.42, 4), (5.43, 2)])
def test_limited_interval(sigma, calls):
    denoiser, network = make()
    x = draw(2)
    out = guided(denoiser, text(0.3, 0.7), text(0.0, 0.1), scale=4.0, interval=(0.28, 5.42))(x, sigma)
    assert network.calls == [calls]
    if calls == 2:
        assert torch.equal(out, denoiser(x, sigma, text(0.3, 0.7)))


def test_interval_from_fractions_of_the_steps():
    sigmas = (10.0, 8.0, 4.0, 2.0, 0.0)
    assert interval_from_steps(sigmas, 0.0, 1.0) == (0.0, 10.0)
    assert interval_from_steps(sigmas, 0.25, 0.75) == (2.0, 8.0)
    low, high = interval_from_steps(sigmas, 0.6, 0.7)
    assert not any(low < sigma <= high for sigma in sigmas)


def test_the_clamp_is_applied_to_the_guided_estimate():
    clamp = {"kind": "static", "min": -0.2, "max": 0.2}
    denoiser, _ = make("x0", x0_clamp=clamp)
    x = draw(2)
    plain = guided(make("x0")[0], text(0.3, 0.7), text(0.0, 0.1), scale=9.0)(x, 2.0)
    assert plain.abs().max() > 0.2
    assert torch.equal(
        guided(denoiser, text(0.3, 0.7), text(0.0, 0.1), scale=9.0)(x, 2.0), plain.clamp(-0.2, 0.2)
    )
    assert guided(denoiser, text(0.3, 0.7), None, scale=1)(x, 2.0).abs().max() <= 0.2


def test_contexts_of_different_length_are_repeated_not_padded():
    short, long = text(0.5, chunks=2), text(0.1, chunks=3)
    both = join(short, long)
    assert both.context.shape == (2, 6 * 77, 2)
    # Attention over a repeated context is attention over it once.
    generator = torch.Generator().manual_seed(0)
    context, query = torch.randn(1, 154, 8, generator=generator), torch.randn(1, 5, 8, generator=generator)
    joined = join(Conditioning(context), Conditioning(torch.zeros(1, 231, 8))).context[:1]
    attention = torch.nn.functional.scaled_dot_product_attention
    assert (attention(query, context, context) - attention(query, joined, joined)).abs().max() < 1e-6


def test_join_keeps_vectors():
    first, second = (Conditioning(torch.zeros(1, 77, 2), torch.full((1, 3), value)) for value in (1.0, 2.0))
    assert join(first, second).vector.tolist() == [[1.0] * 3, [2.0] * 3]
    assert math.isclose(join(first, second).context.sum().item(), 0.0)
