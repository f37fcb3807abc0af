"""The training map sigma <-> time: published numbers, closed formulae written another way, the round trip."""

import math

import pytest
import torch

from ddgen.diffusion.schedule import SIGMA_CAP, make_schedule
from ddgen.errors import ModelError
from fakes import SCHEDULES, schedule


def test_stable_diffusion_levels():
    sd = schedule("sd")
    assert sd.sigma_min == pytest.approx(0.0291675, abs=5e-7)
    assert sd.sigma_max == pytest.approx(14.614647, abs=1e-5)
    for time, sigma in [(1, 0.041314), (499, 1.6129), (500, 1.6183), (981, 13.1204)]:
        assert sd.sigma(float(time)) == pytest.approx(sigma, rel=5e-5)
    assert 1 / (1 + sd.sigma(0.0) ** 2) == pytest.approx(0.99915, abs=1e-6)
    assert 1 / (1 + sd.sigma(999.0) ** 2) == pytest.approx(0.0046601, abs=1e-6)


def test_linear_levels():
    """DDPM's table, summed here in logarithms."""
    log_ab = sum(math.log1p(-(1e-4 + i * (0.02 - 1e-4) / 999)) for i in range(1000))
    assert schedule("linear").sigma_max == pytest.approx(math.sqrt(math.exp(-log_ab) - 1), rel=1e-12)
    assert schedule("linear").sigma_min == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)), rel=1e-12)


def test_between_table_entries_log_sigma_is_linear():
    sd = schedule("sd")
    expected = sd.sigma(500.0) ** 0.75 * sd.sigma(501.0) ** 0.25
    assert sd.sigma(500.25) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_round_trip(name, dtype):
    s = schedule(name)
    times = torch.linspace(s.time_min, s.time_max, 201, dtype=dtype)
    span = s.time_max - s.time_min
    # tan near pi/2 and 1 / (1000 - time) cost float32 half its digits.
    assert (s.time(s.sigma(times)) - times).abs().max() < span * (1e-11 if dtype == torch.float64 else 1e-5)
    sigmas = s.sigma(times)
    assert sigmas.dtype == dtype
    assert (sigmas.diff() > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_floats_and_tensors_agree(name):
    s = schedule(name)
    times = torch.linspace(s.time_min, s.time_max, 17, dtype=torch.float64)
    assert [s.sigma(t.item()) for t in times] == pytest.approx(s.sigma(times).tolist(), rel=1e-14)
    assert isinstance(s.sigma(1.5), float)
    assert isinstance(s.time(0.5), float)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_are_exact_and_what_lies_outside_is_clamped(name):
    s = schedule(name)
    assert s.sigma(s.time_min) == pytest.approx(s.sigma_min, rel=1e-12)
    assert s.sigma(s.time_max) == pytest.approx(s.sigma_max, rel=1e-9)
    assert s.time(s.sigma_max * 2) == pytest.approx(s.time_max, rel=1e-12)
    assert s.time(s.sigma_min / 2) == pytest.approx(s.time_min, rel=1e-9, abs=1e-12)
    assert s.time(torch.tensor([1e9, 1e-9], dtype=torch.float64)).tolist() == pytest.approx(
        [s.time_max, s.time_min], abs=1e-9
    )


def test_zero_terminal_snr():
    plain, zero = schedule("sd"), schedule("zero_snr")
    assert zero.infinite
    assert not plain.infinite
    assert zero.sigma_min == pytest.approx(plain.sigma_min, rel=1e-12)  # the first stays
    assert zero.sigma_max == pytest.approx(SIGMA_CAP) == pytest.approx(4096, rel=1e-6)
    assert zero.sigma(998.0) == pytest.approx(2254, rel=1e-3)
    # sqrt(alpha_bar) is an affine image of the plain one.
    roots = [[(1 + s.sigma(float(t)) ** 2) ** -0.5 for t in (0, 300, 700, 998)] for s in (plain, zero)]
    slopes = [(roots[1][i + 1] - roots[1][i]) / (roots[0][i + 1] - roots[0][i]) for i in range(3)]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-9)


def test_cosine_is_the_log_snr_of_the_paper():
    shift = 2 * math.log(64 / 128)
    s = schedule("cosine")
    for u in (0.001, 0.2, 0.5, 0.9, 0.999):
        log_snr = -2 * math.log(math.tan(math.pi * u / 2)) + shift
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))
        assert s.sigma(1000 * u) == pytest.approx(sigma / alpha, rel=1e-9)
    # Without a shift it is alpha = cos(pi u / 2).
    plain = make_schedule({"kind": "cosine"})
    assert (1 + plain.sigma(300.0) ** 2) ** -0.5 == pytest.approx(math.cos(math.pi * 0.3 / 2), rel=1e-12)
    # Halving the resolution's share of noise: the shift scales sigma.
    assert s.sigma(500.0) == pytest.approx(2 * plain.sigma(500.0), rel=1e-12)


def test_the_embedded_models_schedule():
    spec = {
        "kind": "cosine_logsnr",
        "formula": "logSNR(u) = ...",
        "shift": -1.3862943611198906,
        "u_min": 0.001,
        "u_max": 0.999,
        "network_time": "1000 u",
    }
    s = make_schedule(spec)
    assert s.kind == "cosine"
    assert (s.time_min, s.time_max, s.steps) == (1.0, 999.0, None)
    assert s.sigma(500.0) == pytest.approx(2.0, rel=1e-12)


def test_flow_and_edm():
    assert schedule("flow").sigma(750.0) == pytest.approx(3.0)
    assert schedule("flow").time(1.0) == pytest.approx(500.0)
    assert schedule("flow").infinite
    assert schedule("edm").time(math.exp(2)) == pytest.approx(0.5)
    assert (schedule("edm").sigma_min, schedule("edm").sigma_max) == (0.002, 80.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "unknown schedule ''"),
        ({"kind": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ({"kind": "cosine", "shft": 1}, "unknown cosine schedule key 'shft'; did you mean 'shift'?"),
        ({"kind": "cosine", "shift": math.nan}, "'shift' is nan"),
        ({"kind": "cosine", "u_min": 0.0}, "0 < u_min"),
        ({"kind": "cosine", "formula": 3}, "'formula' must be text"),
        ({"kind": "linear", "beta_start": "0.1"}, "'beta_start' is '0.1'"),
        ({"kind": "scaled_linear", "beta_start": 0.5, "beta_end": 0.1}, "beta_start < beta_end"),
        ({"kind": "scaled_linear", "steps": 1.5}, "whole number of steps"),
        ({"kind": "edm", "sigma_min": 3, "sigma_max": 2}, "sigma_min < sigma_max"),
    ],
)
def test_a_bad_spec_is_refused(spec, message):
    with pytest.raises(ModelError) as caught:
        make_schedule(spec)
    assert message in str(caught.value)
