"""The training loss: its minimum, its weights, and the levels it is asked at."""

import math

import pytest
import torch

from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.loss import (
    WEIGHTINGS,
    denoising_loss,
    forward_process,
    posterior_mean,
    sigmas_at,
    stratified,
)
from ddgen.diffusion.prediction import target
from ddgen.errors import UsageError
from fakes import SCHEDULE_OF, SCHEDULES, GaussianNetwork, no_text, schedule


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(name: str, batch: int) -> torch.Tensor:
    return sigmas_at(schedule(name), (torch.arange(batch, dtype=torch.float64) + 0.5) / batch)


def test_forward_process():
    x0, eps = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 2.0)
    assert forward_process(x0, eps, torch.tensor([0.5, 3.0])).flatten(1)[:, 0].tolist() == [2.0, 7.0]


@pytest.mark.parametrize("prediction", SCHEDULE_OF)
def test_the_output_weight_is_the_error_of_the_network(prediction):
    """Weight 1 / c_out^2 on x0 is the plain mean square of F - target."""
    s = schedule(SCHEDULE_OF[prediction])
    x0, eps, sigma = draw(1, 8, 2, 3, 3), draw(2, 8, 2, 3, 3), levels(SCHEDULE_OF[prediction], 8)
    network = GaussianNetwork(prediction, s, 0.7, 0.5)
    denoiser = Denoiser(network, prediction, s, sigma_data=0.5)
    wide = sigma.reshape(-1, 1, 1, 1)
    c_in = denoiser.coefficients(wide)[2]
    output = network(c_in * (x0 + wide * eps), s.time(sigma), torch.empty(0))
    expected = (output - target(prediction, x0, eps, wide, 0.5)).square().flatten(1).mean(1)
    loss = denoising_loss(denoiser, x0, no_text(8), sigma, eps, weighting="output")
    assert loss.shape == (8,)
    assert loss.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_ideal_denoiser_has_the_least_loss(weighting):
    s = schedule("sd")
    x0, eps = 0.7 * draw(1, 64, 1, 16, 16), draw(2, 64, 1, 16, 16)
    sigma = levels("sd", 64)

    def loss(std: float) -> float:
        denoiser = Denoiser(GaussianNetwork("x0", s, std), "x0", s)
        return denoising_loss(denoiser, x0, no_text(64), sigma, eps, weighting=weighting).mean().item()

    assert loss(0.7) < min(loss(0.65), loss(0.75))


def test_weights_at_known_levels():
    denoiser = Denoiser(GaussianNetwork("v", schedule("sd"), 1.0), "v", schedule("sd"))
    sigma = torch.tensor([0.01, 0.5, 2.0], dtype=torch.float64)
    assert WEIGHTINGS["x0"](denoiser, sigma).tolist() == [1.0, 1.0, 1.0]
    assert WEIGHTINGS["min_snr"](denoiser, sigma).tolist() == pytest.approx([5.0, 4.0, 0.25])
    assert WEIGHTINGS["output"](denoiser, sigma).tolist() == pytest.approx([10001.0, 5.0, 1.25])
    # 1 / max(s, 0.1)^2 capped at 50, s^2 = sigma^2 / (1 + sigma^2).
    assert WEIGHTINGS["capped"](denoiser, sigma).tolist() == pytest.approx([50.0, 5.0, 1.25])
    assert WEIGHTINGS["soft_min_snr"](denoiser, sigma).tolist() == pytest.approx([50000 / 10005, 20 / 9, 1.25 / 5.25])
    assert WEIGHTINGS["debiased"](denoiser, sigma).tolist() == pytest.approx([100.0, 2.0, 0.5])
    assert WEIGHTINGS["p2"](denoiser, sigma).tolist() == pytest.approx([1 / 1.0001, 0.8, 0.2])


def test_gradients_reach_the_network():
    gain = torch.nn.Parameter(torch.zeros(()))
    denoiser = Denoiser(lambda x, time, context, vector=None: gain * x, "x0", schedule("cosine"))
    denoising_loss(
        denoiser, torch.ones(4, 1, 2, 2), no_text(4), torch.ones(4), torch.zeros(4, 1, 2, 2)
    ).mean().backward()
    assert gain.grad is not None
    assert gain.grad < 0


def test_stratified_has_one_in_each_cell():
    u = stratified(16, torch.Generator().manual_seed(0))
    assert sorted((u * 16).long().tolist()) == list(range(16))
    assert (u * 16).long().tolist() != list(range(16))


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_uniform_in_time_and_log_normal(name):
    s = schedule(name)
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    sigma = sigmas_at(s, u)
    assert [sigma[0], sigma[2]] == pytest.approx([s.sigma_min, s.sigma_max], rel=1e-9)
    assert s.time(sigma[1].item()) == pytest.approx((s.time_min + s.time_max) / 2, rel=1e-9)
    normal = sigmas_at(
        s, torch.tensor([0.0, 0.5, 0.8413447460685429], dtype=torch.float64), mean=-1.2, std=0.5
    )
    assert normal[0] >= s.sigma_min
    assert normal[1:].tolist() == pytest.approx([math.exp(-1.2), math.exp(-0.7)], rel=1e-9)


def test_unknown_weighting():
    denoiser = Denoiser(GaussianNetwork("v", schedule("sd"), 1.0), "v", schedule("sd"))
    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(UsageError, match="unknown weighting 'minsnr'; did you mean 'min_snr'"):
        denoising_loss(denoiser, one, no_text(1), torch.ones(1), one, weighting="minsnr")


def test_posterior_mean_is_the_ideal_denoiser():
    """Two known pictures: near one it is that one, far out at high noise it is their weighted mean; and it is
    Bayes' rule in between."""
    known = torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).reshape(2, 2, 1, 1)
    chances = torch.tensor([0.75, 0.25])
    x = known + 0.01
    assert (posterior_mean(x, torch.full((2,), 0.02), known, chances) - known).abs().max() < 1e-6
    far = posterior_mean(torch.zeros(1, 2, 1, 1), torch.tensor([1e4]), known, chances)
    assert (far - (0.75 * known[0] + 0.25 * known[1])).abs().max() < 1e-4
    sigma, point = 0.8, torch.tensor([0.2, 0.3])
    weights = chances * torch.exp(-((point - known.flatten(1)) ** 2).sum(1) / (2 * sigma**2))
    wanted = (weights / weights.sum()) @ known.flatten(1)
    found = posterior_mean(point.reshape(1, 2, 1, 1), torch.tensor([sigma]), known, chances)
    assert (found.flatten() - wanted).abs().max() < 1e-6


def test_posterior_mean_as_target_has_the_same_gradient_on_average():
    """E[D - mean] = E[D - x0] given x: summed over the pictures by their posterior, the targets agree."""
    known = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chances = torch.full((5,), 0.2, dtype=torch.float64)
    x, sigma = torch.randn(1, 3, 2, 2, dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64)
    logits = -((x - known) ** 2).flatten(1).sum(1) / (2 * sigma**2)
    wanted = (logits.softmax(0)[:, None] * known.flatten(1)).sum(0)
    assert (posterior_mean(x, sigma, known, chances).flatten() - wanted).abs().max() < 1e-12
