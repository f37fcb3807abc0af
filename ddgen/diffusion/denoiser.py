"""D(x; sigma) = c_skip x + c_out F(c_in x, time, cond): a network made into an estimate of x0.

The one place where sampler state (float32) is cast to the network's dtype and back. Knows nothing of
guidance; the clamp that a Spec may ask for is carried here but applied after guidance (see guidance.py),
since a guided estimate leaves the range that each branch kept.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ddgen.conditioning import Conditioning
from ddgen.diffusion.prediction import PREDICTIONS, prediction_name
from ddgen.diffusion.schedule import Schedule
from ddgen.errors import ModelError, choose

Clamp = Callable[[Tensor], Tensor]
Denoise = Callable[[Tensor, float], Tensor]


class Network(Protocol):
    """F: x (B, C, H, W), time (B,) -> (B, C, H, W).

    One with an attribute `one_for_many` that is true takes n texts for each row of x, and returns n B rows.
    """

    def __call__(self, x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor: ...


class Denoiser:
    """A network with its preconditioning: (x, sigma, cond) -> estimate of x0.

    network:    F(c_in x, time, context, vector).
    prediction: what F outputs, a name of prediction.PREDICTIONS.
    schedule:   sigma -> time.
    x0_clamp:   as in a Spec, `{"kind": "static", "min": -1.1, "max": 1.1}` or `{"kind": "dynamic",
                "quantile": 0.995, "limit": 1.0}`.
    dtype:      what the network computes in; None = the dtype of x.

    Raises:
        ModelError: unknown prediction or clamp; eps prediction on a schedule that ends in pure noise.
    """

    def __init__(
        self,
        network: Network,
        prediction: str,
        schedule: Schedule,
        x0_clamp: Mapping[str, object] | None = None,
        dtype: torch.dtype | None = None,
        sigma_data: float = 1.0,
    ) -> None:
        self.network = network
        self.prediction = prediction_name(prediction)
        self.schedule = schedule
        self.x0_clamp = None if x0_clamp is None else make_clamp(x0_clamp)
        self.dtype = dtype
        self.sigma_data = sigma_data
        if schedule.infinite and self.prediction == "eps":
            raise ModelError(
                f"prediction 'eps' cannot start from pure noise, as this '{schedule.kind}' schedule does",
                "such models predict 'v' or 'x0'",
                id="model.prediction",
            )

    def coefficients(self, sigma: Any) -> tuple[Any, Any, Any]:
        """Return (c_skip, c_out, c_in) at sigma (float or tensor)."""
        return PREDICTIONS[self.prediction](sigma, self.sigma_data)

    def __call__(self, x: Tensor, sigma: float | Tensor, cond: Conditioning) -> Tensor:
        """Return the estimate of x0, not clamped.

        x: (B, C, H, W) VE state x0 + sigma eps. sigma: Python float, 0-d or (B,) tensor. cond: B rows; or
        n B, with a float for sigma: the estimates of each image told the first B, then the next B, ...
        """
        if len(x) != len(cond) and not getattr(self.network, "one_for_many", False):
            x = x.repeat(len(cond) // len(x), 1, 1, 1)
        if isinstance(sigma, Tensor):
            sigma = sigma.to(x)
            time = self.schedule.time(sigma).expand(len(x))
            sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        else:
            # Filled on the device: no copy from the host, no synchronisation.
            time = torch.full((len(x),), self.schedule.time(float(sigma)), device=x.device, dtype=x.dtype)
        c_skip, c_out, c_in = self.coefficients(sigma)
        dtype = x.dtype if self.dtype is None else self.dtype
        vector = None if cond.vector is None else cond.vector.to(dtype)
        named = {} if cond.pictured is None else {"pictured": cond.pictured}
        output = self.network((c_in * x).to(dtype), time, cond.context.to(dtype), vector, **named)
        return (c_skip * x).repeat(len(output) // len(x), 1, 1, 1) + c_out * output.to(x.dtype)

    def fit(self, cond: Conditioning) -> Conditioning:
        """Return a conditioning in the network's dtype, so that no call has to convert it."""
        return cond if self.dtype is None else cond.to(cond.context.device, self.dtype)


def clamp_x0(denoised: Tensor, low: float, high: float) -> Tensor:
    """Return x0 held in [low, high] (static thresholding)."""
    return denoised.clamp(low, high)


def clamp_x0_dynamic(denoised: Tensor, quantile: float = 0.995, limit: float = 1.0) -> Tensor:
    """Return x0 held to its own quantile of |x0| and scaled back into [-limit, limit], per image.

    For pixels, not for latents. Ref: Saharia et al. 2022 (Imagen), arXiv 2205.11487, section 2.3.
    """
    reach = torch.quantile(denoised.flatten(1).abs(), quantile, dim=1).clamp(min=limit)
    reach = reach.reshape(-1, *[1] * (denoised.ndim - 1))
    return denoised.clamp(-reach, reach) * (limit / reach)


def make_clamp(spec: Mapping[str, object]) -> Clamp:
    """Return the clamp that a Spec describes: kind static (min, max) or dynamic (quantile, limit).

    Raises:
        ModelError: unknown kind or key, or values out of range.
    """
    options = dict(spec)
    kind = choose("x0 clamp", str(options.pop("kind", "")), CLAMP_KEYS, error=ModelError)
    numbers: dict[str, float] = {}
    for key, value in options.items():
        choose(f"{kind} clamp key", key, CLAMP_KEYS[kind], error=ModelError)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelError(f"x0 clamp '{kind}': '{key}' is {value!r}, not a finite number")
        numbers[key] = float(value)
    if kind == "static":
        low, high = numbers.get("min", -1.0), numbers.get("max", 1.0)
        if low >= high:
            raise ModelError(f"x0 clamp 'static' needs min < max, not {low} and {high}")
        return partial(clamp_x0, low=low, high=high)
    quantile, limit = numbers.get("quantile", 0.995), numbers.get("limit", 1.0)
    if not 0 < quantile <= 1 or limit <= 0:
        raise ModelError(
            f"x0 clamp 'dynamic' needs 0 < quantile <= 1 and limit > 0, not {quantile} and {limit}"
        )
    return partial(clamp_x0_dynamic, quantile=quantile, limit=limit)


def clamped(denoise: Denoise, clamp: Clamp) -> Denoise:
    """Return denoise with its estimate clamped."""

    def denoise_clamped(x: Tensor, sigma: float) -> Tensor:
        return clamp(denoise(x, sigma))

    return denoise_clamped


CLAMP_KEYS = {"static": ("min", "max"), "dynamic": ("quantile", "limit")}
