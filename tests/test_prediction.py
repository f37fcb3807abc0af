"""Prediction types and the denoiser made of them: the true target gives x0 back."""

import math

import pytest
import torch

from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoiser, clamp_x0_dynamic, make_clamp
from ddgen.diffusion.prediction import PREDICTIONS, coefficients, prediction_name, target
from ddgen.errors import ModelError
from fakes import SCHEDULE_OF, GaussianNetwork, gaussian, no_text, schedule

SIGMAS = [0.002 * 1.75**i for i in range(20)]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_true_target_gives_x0_back(name, sigma):
    x0, eps = draw(1, 2, 3, 4, 4), draw(2, 2, 3, 4, 4)
    c_skip, c_out, _ = coefficients(name, sigma, 0.5)
    denoised = c_skip * (x0 + sigma * eps) + c_out * target(name, x0, eps, sigma, 0.5)
    assert (denoised - x0).abs().max() < 1e-12 * max(1, sigma)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_coefficients_of_the_table(name):
    """The table of the design, at sigma 3 and sigma_data 0.5."""
    expected = {
        "eps": (1, -3, 10**-0.5),
        "v": (0.1, -3 / 10**0.5, 10**-0.5),
        "x0": (0, 1, 10**-0.5),
        "flow": (0.25, -0.75, 0.25),
        "edm": (0.25 / 9.25, 1.5 / 9.25**0.5, 9.25**-0.5),
    }
    assert coefficients(name, 3.0, 0.5) == pytest.approx(expected[name])
    tensors = coefficients(name, torch.tensor([3.0, 1.0], dtype=torch.float64), 0.5)
    assert [
        float(torch.as_tensor(t).expand(2)[0]) if isinstance(t, torch.Tensor) else t for t in tensors
    ] == pytest.approx(expected[name])


@pytest.mark.parametrize("name", ["eps", "v", "flow"])
def test_what_the_network_sees_has_unit_variance_at_both_ends(name):
    """For data of unit variance; flow only at its ends."""
    for sigma in (1e-4, 1e4):
        assert coefficients(name, sigma)[2] * math.hypot(1, sigma) == pytest.approx(1, rel=2e-4)


def test_names_of_elsewhere():
    assert prediction_name("v_prediction") == "v"
    with pytest.raises(ModelError, match="unknown prediction 'velocity'"):
        prediction_name("velocity")


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("sigma", [0.05, 1.0, 9.0])
def test_denoiser_of_the_ideal_network_is_the_ideal_denoiser(name, sigma):
    s = schedule(SCHEDULE_OF[name])
    denoiser = Denoiser(GaussianNetwork(name, s, 0.7, 0.5), name, s, sigma_data=0.5)
    x = draw(3, 2, 1, 4, 4) * sigma
    expected = gaussian(0.7)(x, sigma)
    assert (denoiser(x, sigma, no_text(2)) - expected).abs().max() < 1e-9
    # The level as a 0-d tensor, and one per image.
    assert (denoiser(x, torch.tensor(sigma), no_text(2)) - expected).abs().max() < 1e-5
    both = torch.tensor([sigma, 2 * sigma], dtype=torch.float64)
    apart = torch.cat([denoiser(x[:1], sigma, no_text(1)), denoiser(x[1:], 2 * sigma, no_text(1))])
    assert (denoiser(x, both, no_text(2)) - apart).abs().max() < 1e-12


def test_the_cast_happens_in_the_denoiser():
    seen = {}

    def network(x, time, context, vector=None):
        seen.update(x=x.dtype, time=time.dtype, context=context.dtype, vector=vector.dtype)
        return x

    cond = Conditioning(torch.zeros(2, 77, 4), torch.zeros(2, 3))
    denoised = Denoiser(network, "v", schedule("sd"), dtype=torch.bfloat16)(torch.ones(2, 1, 2, 2), 1.0, cond)
    assert seen == {
        "x": torch.bfloat16,
        "time": torch.float32,
        "context": torch.bfloat16,
        "vector": torch.bfloat16,
    }
    assert denoised.dtype == torch.float32


def test_the_network_is_told_its_own_time():
    times = []

    def network(x, time, context, vector=None):
        times.append(time.tolist())
        return x

    denoiser = Denoiser(network, "eps", schedule("sd"))
    denoiser(torch.zeros(2, 1, 1, 1), schedule("sd").sigma(981.0), no_text(2))
    assert times == [[981.0, 981.0]]


@pytest.mark.parametrize("name", ["zero_snr", "flow"])
def test_eps_cannot_start_from_pure_noise(name):
    with pytest.raises(ModelError, match="prediction 'eps' cannot start from pure noise"):
        Denoiser(lambda *a: a[0], "eps", schedule(name))


def test_static_clamp():
    clamp = make_clamp({"kind": "static", "min": -1.1, "max": 1.1})
    assert clamp(torch.tensor([-5.0, 0.5, 1.2])).tolist() == pytest.approx([-1.1, 0.5, 1.1])


def test_dynamic_clamp_is_per_image():
    quiet, loud = torch.linspace(-0.5, 0.5, 1001), torch.linspace(-4, 4, 1001)
    images = torch.stack([quiet, loud]).reshape(2, 1, 7, 143)
    clamped = clamp_x0_dynamic(images, quantile=0.75)
    assert torch.equal(clamped[0], images[0])
    # The quantile 0.75 of |x| is 3: beyond it is cut, the rest shrinks by 3.
    assert clamped[1].abs().max() == pytest.approx(1.0)
    assert clamped[1].flatten()[600] == pytest.approx(loud[600].item() / 3, rel=1e-5)
    assert torch.equal(clamp_x0_dynamic(images[1:], quantile=0.75), clamped[1:])


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"kind": "soft"},
        {"kind": "static", "low": 0},
        {"kind": "static", "min": 1, "max": -1},
        {"kind": "dynamic", "quantile": 2},
    ],
)
def test_a_bad_clamp_is_refused(spec):
    with pytest.raises(ModelError):
        make_clamp(spec)
