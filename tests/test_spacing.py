"""Inference grids: the published times and levels, the ends, and refusals by name."""

import math
import subprocess
import sys

import pytest

from ddgen.diffusion.spacing import SPACINGS, beta_cdf, beta_quantile, make_grid, make_spacing, spacing_name
from ddgen.errors import UsageError
from fakes import SCHEDULES, schedule


def times(name: str, steps: int, **options) -> list[float]:
    sd = schedule("sd")
    return [sd.time(sigma) for sigma in make_spacing(name, sd, steps, **options).sigmas[:-1]]


@pytest.mark.parametrize(
    ("name", "steps", "options", "expected"),
    [
        ("leading", 20, {}, range(951, 0, -50)),
        ("leading", 10, {}, range(901, 0, -100)),
        ("leading", 4, {}, (751, 501, 251, 1)),
        ("leading", 20, {"offset": 0}, range(950, -1, -50)),
        ("leading", 1000, {}, range(999, -1, -1)),
        ("trailing", 1, {}, (999,)),
        ("trailing", 4, {}, (999, 749, 499, 249)),
        ("trailing", 1000, {}, range(999, -1, -1)),
        ("linspace", 10, {}, range(999, -1, -111)),
        ("linspace", 1, {}, (999,)),
        ("linspace", 1000, {}, range(999, -1, -1)),
        ("sgm_uniform", 4, {}, (999, 749.25, 499.5, 249.75)),
        ("lcm", 1, {}, (999,)),
        ("lcm", 4, {}, (999, 759, 499, 259)),
        ("lcm", 8, {}, (999, 879, 759, 639, 499, 379, 259, 139)),
        ("lcm", 50, {}, range(999, 0, -20)),
    ],
)
def test_published_times(name, steps, options, expected):
    assert times(name, steps, **options) == pytest.approx(list(expected), abs=1e-6)


def test_trailing_thirty():
    assert times("trailing", 30)[:3] == pytest.approx([999, 966, 932], abs=1e-6)


def test_karras():
    grid = make_spacing("karras", schedule("sd"), 10)
    low, high = schedule("sd").sigma_min, schedule("sd").sigma_max
    for i, sigma in enumerate(grid.sigmas[:-1]):
        assert sigma ** (1 / 7) == pytest.approx(high ** (1 / 7) * (9 - i) / 9 + low ** (1 / 7) * i / 9)
    assert grid.sigmas[-1] == 0
    edm = make_spacing("karras", schedule("edm"), 18)  # table 1 of the paper
    assert (edm.sigmas[0], edm.sigmas[-2]) == pytest.approx((80, 0.002))
    narrow = make_spacing("karras", schedule("sd"), 10, sigma_min=0.1, sigma_max=10.0, rho=5.0)
    assert (narrow.sigmas[0], narrow.sigmas[-2]) == pytest.approx((10, 0.1))
    assert narrow.sigmas[3] ** 0.2 == pytest.approx(10**0.2 * 6 / 9 + 0.1**0.2 * 3 / 9)


def test_exponential_has_one_ratio():
    sigmas = make_spacing("exponential", schedule("sd"), 12).sigmas[:-1]
    ratios = [b / a for a, b in zip(sigmas, sigmas[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * 11)
    assert (sigmas[0], sigmas[-1]) == pytest.approx((schedule("sd").sigma_max, schedule("sd").sigma_min))


def test_beta_distribution_in_closed_form():
    for p in (0.001, 0.05, 0.3, 0.5, 0.77, 0.999):
        assert beta_quantile(p, 1, 1) == pytest.approx(p, abs=1e-14)
        assert beta_quantile(p, 2, 1) == pytest.approx(p**0.5, abs=1e-13)
        assert beta_quantile(p, 0.5, 0.5) == pytest.approx(math.sin(math.pi * p / 2) ** 2, rel=1e-10)
        assert beta_cdf(beta_quantile(p, 0.6, 0.6), 0.6, 0.6) == pytest.approx(p, rel=1e-10)
        assert beta_quantile(p, 0.6, 0.6) == pytest.approx(1 - beta_quantile(1 - p, 0.6, 0.6), abs=1e-13)


def test_beta_grid():
    """Times are quantiles rounded to trained ones; the ends are dense."""
    got = times("beta", 8)
    assert got == pytest.approx([round(999 * beta_quantile(1 - i / 8, 0.6, 0.6)) for i in range(8)], abs=1e-6)
    assert got[0] == 999
    assert got[0] - got[1] < got[3] - got[4]
    # Quantiles that round to one time are one step.
    many = make_spacing("beta", schedule("sd"), 1000)
    assert 500 < many.steps < 1000


def test_ays_is_the_published_table():
    published = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152)
    assert make_spacing("ays", schedule("sd"), 10).sigmas[:-1] == pytest.approx(published, abs=4e-3)
    xl = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113)
    assert make_spacing("ays_sdxl", schedule("sd"), 10).sigmas[:-1] == pytest.approx(xl, abs=4e-3)
    # Twice the steps: every other level is the table's, the ones between are geometric means.
    ten, twenty = (make_spacing("ays", schedule("sd"), n).sigmas for n in (10, 20))
    assert twenty[:-1:2] == pytest.approx(ten[:-1])
    assert twenty[1] == pytest.approx(math.sqrt(ten[0] * ten[1]))


@pytest.mark.parametrize("name", ["zero_snr", "cosine", "flow", "edm"])
def test_ays_refuses_other_noise_levels(name):
    with pytest.raises(UsageError, match="spacing 'ays' is a table for noise levels 14.61 to 0.029"):
        make_spacing("ays", schedule(name), 10)


def test_the_embedded_models_grid():
    """DDIM in u: 25 times from u_max to u_min, then 0."""
    cosine = schedule("cosine")
    grid = make_spacing("linspace", cosine, 25)
    expected = [0.999 + i / 24 * (0.001 - 0.999) for i in range(25)]
    assert [cosine.time(sigma) / 1000 for sigma in grid.sigmas[:-1]] == pytest.approx(expected)
    assert grid.sigmas[-1] == 0
    assert make_spacing("linspace", cosine, 1000).steps == 1000


def test_continuous_leading_and_trailing_leave_out_one_end():
    edm = schedule("edm")
    leading, trailing = (make_spacing(name, edm, 4).sigmas[:-1] for name in ("leading", "trailing"))
    ratio = (edm.sigma_min / edm.sigma_max) ** 0.25
    assert trailing == pytest.approx([80 * ratio**i for i in range(4)])
    assert leading == pytest.approx([80 * ratio**i for i in range(1, 5)])


def test_the_last_level():
    sd = schedule("sd")
    assert make_spacing("leading", sd, 20, end="sigma_min").sigmas[-1] == pytest.approx(sd.sigma_min)
    assert make_spacing("leading", sd, 20, end="sigma_min").steps == 20
    # Where the grid already reaches the level at time 0, that is the end.
    assert make_spacing("karras", sd, 20, end="sigma_min").sigmas[-1] == pytest.approx(sd.sigma_min)
    assert make_spacing("karras", sd, 20, end="sigma_min").steps == 19


@pytest.mark.parametrize("name", SPACINGS)
def test_discard_leaves_out_the_level_before_the_end(name):
    sd = schedule("sd")
    longer, grid = make_spacing(name, sd, 11).sigmas, make_spacing(name, sd, 10, discard=True).sigmas
    assert grid == (*longer[:-2], 0.0)
    assert len(grid) == 11
    most = 50 if name == "lcm" else 1000
    if name in ("leading", "trailing", "lcm"):
        assert make_spacing(name, sd, most, discard=True) == make_spacing(name, sd, most)
    assert name == "leading" or make_spacing(name, sd, 1, discard=True) == make_spacing(name, sd, 1)


def test_discard_does_not_make_one_step_of_leading_possible():
    with pytest.raises(UsageError, match="'leading' with 1 step"):
        make_spacing("leading", schedule("sd"), 1, discard=True)


def test_the_network_sees_unit_variance_at_the_start():
    grid = make_spacing("leading", schedule("sd"), 20)
    assert grid.initial_scale == pytest.approx(math.sqrt(1 + grid.sigmas[0] ** 2))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50, 333, 1000])
@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", SPACINGS)
def test_every_spacing_on_every_schedule_descends_or_is_refused_by_name(name, schedule_name, steps):
    s = schedule(schedule_name)
    try:
        sigmas = make_spacing(name, s, steps).sigmas
    except UsageError as error:
        assert f"spacing '{name.removesuffix('_sdxl')}'" in error.message
        assert name.startswith("ays") or (name, steps) == ("leading", 1) or (name == "lcm" and steps > 50)
        return
    assert len(sigmas) == steps + 1 or name == "beta"
    assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
    assert s.sigma_max * (1 + 1e-9) >= sigmas[0]
    assert sigmas[-2] >= s.sigma_min * (1 - 1e-9)
    assert sigmas[-1] == 0
    assert steps < 20 or sigmas[0] > 0.3 * s.sigma_max or name == "leading"


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("karas", 10, "unknown spacing 'karas'; did you mean 'karras'?"),
        ("karras", 0, "steps must be at least 1, not 0"),
        (
            "leading",
            1,
            "spacing 'leading' with 1 step would start at the lowest noise level; --spacing trailing",
        ),
        ("leading", 1001, "spacing 'leading' has at most the 1000 trained steps, not 1001"),
        ("trailing", 1001, "spacing 'trailing' has at most the 1000 trained steps, not 1001"),
        ("lcm", 51, "spacing 'lcm' has at most 50 steps, not 51"),
    ],
)
def test_refusals(name, steps, message):
    with pytest.raises(UsageError) as caught:
        make_spacing(name, schedule("sd"), steps)
    assert message in str(caught.value)


def test_names_of_elsewhere():
    assert spacing_name("Karras") == "karras"
    assert spacing_name("SGM Uniform") == "sgm_uniform"
    assert spacing_name("normal") == "linspace"
    assert spacing_name("Align Your Steps") == "ays"


def test_a_grid_by_hand():
    grid = make_grid([14.6, 7, 2.5, 0])
    assert grid.sigmas == (14.6, 7.0, 2.5, 0.0)
    assert make_grid([3.0, 0.5]).sigmas[-1] == 0.5


@pytest.mark.parametrize(
    "sigmas",
    [[], [1.0], [1.0, 2.0], [2.0, 2.0, 0.0], [1.0, -1.0], [math.inf, 1.0], [math.nan, 0.0], [2.0, 0.0, 0.0]],
)
def test_a_bad_grid_is_refused(sigmas):
    with pytest.raises(UsageError, match="sigmas"):
        make_grid(sigmas)


def test_names_are_listed_without_torch():
    code = (
        "import sys, ddgen.diffusion.samplers, ddgen.diffusion.spacing;"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
