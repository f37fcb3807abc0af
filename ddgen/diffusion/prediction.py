"""What a network's output F means: one row of coefficients per prediction type.

    D(x; sigma) = c_skip x + c_out F(c_in x, time),   x = x0 + sigma eps

`flow` sees x_t = (1 - t) x0 + t eps with t = sigma / (1 + sigma); `edm` data of standard deviation sigma_data
(Karras et al. 2022, arXiv 2206.00364, table 1); the others see the variance preserving x_t = x / sqrt(1 +
sigma^2). A row works on Python floats and tensors alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ddgen.errors import ModelError, choose

if TYPE_CHECKING:
    from torch import Tensor

# Floats in, floats out; tensors in, tensors out.
Coefficients = Callable[[Any, float], tuple[Any, Any, Any]]


def _eps(sigma: Any, sigma_data: float) -> tuple[Any, Any, Any]:
    return 1.0, -sigma, (1 + sigma**2) ** -0.5


def _v(sigma: Any, sigma_data: float) -> tuple[Any, Any, Any]:
    return 1 / (1 + sigma**2), -sigma * (1 + sigma**2) ** -0.5, (1 + sigma**2) ** -0.5


def _x0(sigma: Any, sigma_data: float) -> tuple[Any, Any, Any]:
    return 0.0, 1.0, (1 + sigma**2) ** -0.5


def _flow(sigma: Any, sigma_data: float) -> tuple[Any, Any, Any]:
    return 1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma)


def _edm(sigma: Any, sigma_data: float) -> tuple[Any, Any, Any]:
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data * total**-0.5, total**-0.5


PREDICTIONS: dict[str, Coefficients] = {"eps": _eps, "v": _v, "x0": _x0, "flow": _flow, "edm": _edm}

# Names of the same things elsewhere (diffusers' prediction_type).
ALIASES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}


def prediction_name(name: str) -> str:
    """Return our name of a prediction type given by any known name.

    Raises:
        ModelError: unknown prediction type.
    """
    return choose("prediction", ALIASES.get(name, name), PREDICTIONS, error=ModelError)


def coefficients(name: str, sigma: Any, sigma_data: float = 1.0) -> tuple[Any, Any, Any]:
    """Return (c_skip, c_out, c_in) of a prediction type at sigma; sigma_data matters to `edm` only."""
    return PREDICTIONS[prediction_name(name)](sigma, sigma_data)


def target(name: str, x0: Tensor, eps: Tensor, sigma: Any, sigma_data: float = 1.0) -> Tensor:
    """Return what F should output for x = x0 + sigma eps; sigma broadcasts against x0.

    The closed forms, not (x0 - c_skip x) / c_out, which loses all digits where c_out is small.
    """
    name = prediction_name(name)
    if name == "eps":
        return eps
    if name == "x0":
        return x0
    if name == "flow":
        return eps - x0
    if name == "v":
        return (eps - sigma * x0) * (1 + sigma**2) ** -0.5
    return (sigma * x0 - sigma_data**2 * eps) / (sigma_data * (sigma**2 + sigma_data**2) ** 0.5)
