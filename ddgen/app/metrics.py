"""How varied and how faithful a set of pictures is, from their feature vectors alone. Pure numpy.

    vendi       exp(-sum lambda ln lambda) of K / n: how many different pictures there are, 1 to n
    spread      the mean distance between two of a set
    prdc        precision, recall (Kynkaanniemi et al.), density, coverage (Naeem et al.) with k neighbours
    novelty     distances to the nearest real picture, beside a percentile of those between real ones

Features are rows of a matrix (n, d). Ref: Friedman & Dieng 2023, arXiv 2210.02410, eq. 2; Kynkaanniemi et al.
2019, arXiv 1904.06991, eq. 1-2; Naeem et al. 2020, arXiv 2002.09797, eq. 2-3.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def unit(features: NDArray[np.floating]) -> Matrix:
    """Return the rows at length one; a row of zeros stays."""
    rows = np.asarray(features, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def vendi(features: NDArray[np.floating]) -> float:
    """Return the effective number of different rows, by their cosines: 1 if all are equal, n if all are
    orthogonal."""
    rows = unit(features)
    values = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def distances(a: NDArray[np.floating], b: NDArray[np.floating]) -> Matrix:
    """Return the Euclidean distances (n, m) between the rows of two matrices."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def spread(features: NDArray[np.floating]) -> float:
    """Return the mean distance between two different rows; 0 for a single one."""
    count = len(features)
    return 0.0 if count < 2 else float(distances(features, features)[np.triu_indices(count, 1)].mean())


def radii(features: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    """Return each row's distance to its k-th nearest other row."""
    between = distances(features, features)
    np.fill_diagonal(between, -1.0)  # its own place, whatever rounding says
    return np.asarray(np.partition(between, k, axis=1)[:, k])


@dataclass(frozen=True)
class Prdc:
    """precision: made ones inside a real neighbourhood; recall: real ones inside a made one; density: real
    neighbourhoods around a made one, over k; coverage: real ones with a made one in their neighbourhood."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: NDArray[np.floating], made: NDArray[np.floating], k: int = 5) -> Prdc:
    """Compare made pictures with real ones; each set has more than k rows."""
    assert 0 < k < min(len(real), len(made))
    between = distances(real, made)
    real_radii, made_radii = radii(real, k), radii(made, k)
    inside = between <= real_radii[:, None]  # (real, made)
    return Prdc(
        precision=float(inside.any(0).mean()),
        recall=float((between <= made_radii[None]).any(1).mean()),
        density=float(inside.sum(0).mean() / k),
        coverage=float((between.min(1) <= real_radii).mean()),
    )


@dataclass(frozen=True)
class Novelty:
    """nearest: each made picture's distance to the nearest real one; threshold: the percentile of the real ones'
    distances to their nearest other; copies: the share of made pictures nearer than that."""

    nearest: NDArray[np.float64]
    threshold: float
    copies: float


def novelty(real: NDArray[np.floating], made: NDArray[np.floating], percentile: float = 1.0) -> Novelty:
    """Ask whether made pictures only repeat real ones."""
    threshold = float(np.percentile(radii(real, 1), percentile))
    nearest = distances(made, real).min(1)
    return Novelty(nearest, threshold, float((nearest < threshold).mean()))


def interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share (Wilson 1927): 95 % of such intervals hold the true one."""
    if not total:
        return 0.0, 1.0
    share, square = right / total, z * z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * np.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
