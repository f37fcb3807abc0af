"""Optimizers as one flat, explicit state: AdamW for all, or Muon for the matrices and AdamW for the rest.

    AdamW  m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, w -= lr (m' / (sqrt(v') + 1e-8) + decay w)
    Muon   m = b m + (1-b) g,   w -= lr (sqrt(max(1, rows/columns)) orthogonal(g + b (m - g)) + decay w)

The state is a dict of tensors by name, ready to be written and read; the count of steps comes from outside.
Ref: Loshchilov & Hutter 2017, arXiv 1711.05101, Alg. 2; Jordan et al. 2024, "Muon: an optimizer for hidden
    layers".
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddgen.app.assemble import cpu_has_bf16

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8
MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_STEPS = 5
# Embeddings and the first and last layers are no maps between hidden spaces: AdamW trains them.
ADAMW_ONLY = ("emb", "time_embed", "label_emb")
OPTIMIZERS = ("adamw", "muon")


class Optimizer:
    """Updates a module's parameters, those that want a gradient, from their gradients.

    lr: of AdamW. muon_lr: of Muon. decay: weight decay of matrices.
    """

    def __init__(
        self, module: nn.Module, name: str, *, lr: float, muon_lr: float = 0.02, decay: float = 0.01
    ) -> None:
        self.parameters = {key: value for key, value in module.named_parameters() if value.requires_grad}
        self.lr, self.muon_lr, self.decay = lr, muon_lr, decay
        self.matrices = [
            key for key, value in self.parameters.items() if name == "muon" and is_hidden(key, value)
        ]
        chosen = set(self.matrices)
        self.others = [key for key in self.parameters if key not in chosen]
        self.state = {f"m1.{key}": torch.zeros_like(value) for key, value in self.parameters.items()}
        self.state |= {f"m2.{key}": torch.zeros_like(self.parameters[key]) for key in self.others}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that was saved."""
        assert state.keys() == self.state.keys()
        for key, value in state.items():
            self.state[key].copy_(value)

    @torch.no_grad()
    def step(self, count: int, factor: float) -> None:
        """Update once. count: steps done with this one, from 1. factor: on the learning rates."""
        for key in self.others:
            weight, m1, m2 = self.parameters[key], self.state[f"m1.{key}"], self.state[f"m2.{key}"]
            gradient = weight.grad
            assert gradient is not None
            m1.lerp_(gradient, 1 - BETA1)
            m2.lerp_(gradient.square(), 1 - BETA2)
            if weight.ndim > 1:
                weight.mul_(1 - self.lr * factor * self.decay)
            weight.addcdiv_(
                m1 / (1 - BETA1**count),
                (m2 / (1 - BETA2**count)).sqrt_().add_(EPSILON),
                value=-self.lr * factor,
            )
        self._muon(self.muon_lr * factor)

    def _muon(self, lr: float) -> None:
        groups: dict[tuple[int, int], list[str]] = {}
        for key in self.matrices:
            weight = self.parameters[key]
            groups.setdefault((weight.shape[0], weight[0].numel()), []).append(key)
        for (rows, columns), keys in groups.items():
            updates = []
            for key in keys:
                gradient, m1 = self.parameters[key].grad, self.state[f"m1.{key}"]
                assert gradient is not None
                m1.lerp_(gradient, 1 - MOMENTUM)
                updates.append(gradient.lerp(m1, MOMENTUM).reshape(rows, columns))
            scale = max(1.0, rows / columns) ** 0.5 * lr
            for key, update in zip(keys, orthogonal(torch.stack(updates)), strict=True):
                weight = self.parameters[key]
                weight.mul_(1 - lr * self.decay).sub_(update.reshape(weight.shape), alpha=scale)


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix (or convolution) between hidden layers."""
    return (
        parameter.ndim >= 2
        and not name.startswith(("out.", "input_blocks.0."))
        and not any(word in name for word in ADAMW_ONLY)
    )


def orthogonal(matrices: Tensor) -> Tensor:
    """Return U V^T (roughly) of the singular value decompositions of (K, R, C), by Newton-Schulz.

    A few digits do: in bfloat16, but in float32 on processors that only emulate bfloat16, where it takes several
    times as long.
    """
    a, b, c = QUINTIC
    half = matrices.device.type != "cpu" or cpu_has_bf16()
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(
        torch.bfloat16 if half else torch.float32
    )
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(NEWTON_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


@torch.no_grad()
def clip(module: nn.Module, limit: float) -> float:
    """Scale the gradients down to a joint norm of `limit`; return the norm they had."""
    return float(nn.utils.clip_grad_norm_(module.parameters(), limit))


class Average:
    """Exponential moving average of parameters; its memory grows with the run: min(limit, n / (9 + n))."""

    def __init__(self, module: nn.Module, limit: float) -> None:
        self.limit = limit
        self.state = {key: value.detach().clone() for key, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, count: int) -> None:
        """Take in the parameters after step `count`, from 1."""
        decay = min(self.limit, count / (9 + count))
        for key, value in module.named_parameters():
            self.state[key].lerp_(value, 1 - decay)
