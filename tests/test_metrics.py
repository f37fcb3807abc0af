"""Metrics in closed form: what each is of sets whose answer is known without computing."""

import numpy as np
import pytest

from ddgen.app import metrics


def test_vendi_counts_what_differs() -> None:
    eye = np.eye(7)
    assert metrics.vendi(np.ones((7, 3))) == pytest.approx(1)
    assert metrics.vendi(eye) == pytest.approx(7)
    assert metrics.vendi(np.repeat(eye[:3], 4, 0)) == pytest.approx(3), "copies do not count"
    assert metrics.vendi(5 * eye) == pytest.approx(7), "lengths do not count"


def test_vendi_of_two_at_an_angle() -> None:
    cosine = 0.6  # eigenvalues (1 +- c) / 2
    rows = np.array([[1, 0], [cosine, np.sqrt(1 - cosine**2)]])
    p = np.array([(1 + cosine) / 2, (1 - cosine) / 2])
    assert metrics.vendi(rows) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_spread_is_the_mean_of_pairs() -> None:
    assert metrics.spread(np.zeros((4, 2))) == 0
    assert metrics.spread(np.zeros((1, 2))) == 0
    assert metrics.spread(np.array([[0.0], [3.0], [6.0]])) == pytest.approx((3 + 6 + 3) / 3)


def test_radii_are_of_the_kth_other() -> None:
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert metrics.radii(line, 1).tolist() == [1, 1, 2, 4]
    assert metrics.radii(line, 2).tolist() == [3, 2, 3, 6]
    twice = np.repeat(line, 2, 0)
    assert metrics.radii(twice, 1).tolist() == [0] * 8


def test_prdc_of_the_same_set_and_of_one_far_away() -> None:
    real = np.random.default_rng(0).standard_normal((60, 4))
    same = metrics.prdc(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx((60 + 60 * 5) / (60 * 5)), "each row is in its own and about k others' spheres"
    far = metrics.prdc(real, real + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_a_collapsed_generator_is_precise_and_covers_little() -> None:
    rng = np.random.default_rng(0)
    centres = 100 * np.eye(10)
    real = np.concatenate([centre + rng.standard_normal((20, 10)) for centre in centres])
    one = centres[0] + 0.5 * rng.standard_normal((200, 10))
    found = metrics.prdc(real, one)
    assert found.precision == 1 and found.density > 1
    assert found.coverage == pytest.approx(0.1, abs=0.01), "one mode of ten"


def test_prdc_agrees_with_counting_by_hand() -> None:
    real = np.array([[0.0], [1.0], [4.0]])  # radii with k = 1: 1, 1, 3
    made = np.array([[1.5], [10.0]])  # radii: 8.5, 8.5
    found = metrics.prdc(real, made, k=1)
    assert found.precision == 0.5  # 1.5 is within 1 of 1 and within 3 of 4
    assert found.density == 1.0  # two spheres around the first, none around the second
    assert found.coverage == pytest.approx(2 / 3)  # 1 and 4
    assert found.recall == 1.0


def test_copies_are_told_from_new_pictures() -> None:
    real = np.arange(200.0)[:, None] ** 1.5
    assert metrics.novelty(real, real).copies == 1.0
    between = metrics.novelty(real, real[:-1] + 0.5 * np.diff(real, axis=0))
    assert between.copies <= 0.05 and between.threshold == pytest.approx(np.percentile(metrics.radii(real, 1), 1))
    assert between.nearest[10] == pytest.approx(0.5 * (real[11, 0] - real[10, 0]))


def test_wilson_holds_the_share_and_knows_the_ends() -> None:
    low, high = metrics.interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    assert metrics.interval(0, 0) == (0, 1)
    assert metrics.interval(10, 10)[1] == 1.0
