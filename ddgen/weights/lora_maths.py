"""The formulas of the LoRA family: a weight W and the few tensors that a file has for it give the weight W'.

    LoRA     W' = W + a s (up down)               s = alpha / rank                     Hu et al. 2021, arXiv
    2106.09685
    LoHa     W' = W + a s (w1a w1b) o (w2a w2b)                                        Hyeon-Woo et al. 2021,
    arXiv 2108.06098
    LoKr     W' = W + a s kron(w1, w2)                                                 Yeh et al. 2023, arXiv
    2309.14859
    GLoRA    W' = W + a s (b2 b1 + W a2 a1)                                            Chavan et al. 2023,
    arXiv 2306.07967
    OFT      W' = W + a (R W - W), R block-diagonal and orthogonal                     Qiu et al. 2023, arXiv
    2306.07280
    (IA)3    W' = W + a W o w                                                          Liu et al. 2022, arXiv
    2205.05638
    DoRA     W' = W + a (m V / |V| - W), V = W + s dW of any of the first three        Liu et al. 2024, arXiv
    2402.09353

a is the user's weight: 0 leaves W, 1 is the adapter as trained. All in the dtype of W, which the caller makes
float32 or float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Roles = dict[str, Tensor]
"""The tensors of one module by role, as lora_names.ROLES calls them."""


LEAST = 2**20  # numbers that are always multiplied out: _fitted knows more about them


class Unfit(Exception):
    """The tensors do not make a change of the weight's shape; the text says how."""


@contextmanager
def _fitting() -> Iterator[None]:
    """What goes wrong inside is the file's fault: factors of any shape may come from it."""
    try:
        yield
    except KeyError as missing:
        raise Unfit(f"lacks its '{missing.args[0]}'") from None
    except (RuntimeError, IndexError, ValueError) as fault:
        raise Unfit("has factors that do not fit each other") from fault


@_fitting()
def merge(weight: Tensor, roles: Roles, multiplier: float) -> Tensor:
    """Return W' of a module's weight.

    Raises:
        Unfit: shapes that do not fit each other or the weight, or roles that make no known kind.
    """
    if "set" in roles:
        return weight + multiplier * (_fitted(roles["set"], weight) - weight)
    if "diff" in roles:
        weight = weight + multiplier * _fitted(roles["diff"], weight)
    if "oft_blocks" in roles or "oft_diag" in roles:
        return weight + multiplier * (_rotated(weight, roles) - weight)
    if "on_input" in roles:
        return weight + multiplier * weight * _along(
            roles["ia3"].flatten(), weight, axis=1 if bool(roles["on_input"].any()) else 0
        )
    if not low_rank(roles):
        return weight
    change = scale_of(roles, weight) * _fitted(delta(weight, roles), weight)
    if "dora" in roles or "magnitude" in roles:
        return weight + multiplier * (_decomposed(weight + change, roles) - weight)
    return weight + multiplier * change


def merge_bias(bias: Tensor, roles: Roles, multiplier: float) -> Tensor:
    """Return the bias of the same module, which only differences change.

    Raises:
        Unfit: another size.
    """
    return bias + multiplier * _fitted(roles["diff_b"], bias) if "diff_b" in roles else bias


def low_rank(roles: Roles) -> bool:
    """Whether the roles hold a product of factors."""
    return any(role in roles for role in ("down", "w1_a", "k1", "k1_a", "a1"))


def rank_of(roles: Roles, weight: Tensor) -> int:
    """Return the rank by which alpha is divided; 0 where nothing is factored (LoKr of two whole matrices)."""
    if "down" in roles:
        return roles["down"].shape[0]
    if "w1_b" in roles:
        return roles["w1_b"].shape[0]
    if "k2_b" in roles:
        return roles["k2_b"].shape[0]
    if "k1_b" in roles:
        return roles["k1_b"].shape[0]
    if "a1" in roles:
        return (roles["a1"] if _old_glora(roles, weight) else roles["a2"]).shape[0]
    return 0


@_fitting()
def scale_of(roles: Roles, weight: Tensor) -> float:
    """Return s: alpha / rank (1 where a file has no alpha), times the file's own scalar.

    Raises:
        Unfit: factors without a rank.
    """
    rank = rank_of(roles, weight)
    scale = float(roles["alpha"]) / rank if "alpha" in roles and rank else 1.0
    return scale * float(roles["scalar"]) if "scalar" in roles and roles["scalar"].numel() == 1 else scale


def delta(weight: Tensor, roles: Roles) -> Tensor:
    """Return the change without alpha or multiplier; the shape may still differ from the weight's by squeezed
    sides.
    """
    _check_size(weight, roles)
    if "down" in roles:
        return _lora(roles)
    if "w1_a" in roles:
        first, second = _factor(roles, "w1_a", "w1_b", "t1"), _factor(roles, "w2_a", "w2_b", "t2")
        if first.shape != second.shape:
            raise Unfit("has factors that do not fit each other")
        return first * second
    if "a1" in roles:
        return _glora(weight, roles)
    return _kron(roles)


def _check_size(weight: Tensor, roles: Roles) -> None:
    """Refuse factors that make more than the weight holds before they are multiplied: two thin matrices of a small
    file can make one that fills the memory."""

    def side(role: str, axis: int) -> int:
        shape = roles[role].shape
        return shape[axis] if axis == 0 or role in ("t1", "t2", "kt2") else shape[1:].numel()

    def made(a: str, b: str, core: str) -> int:
        if core in roles:
            return roles[a].shape[1] * roles[b].shape[1] * roles[core].shape[2:].numel()
        return side(a, 0) * side(b, 1)

    sizes = []
    if "down" in roles:
        kernel = roles["mid"].shape[2:].numel() if "mid" in roles else 1
        sizes.append(roles["up"].shape[0] * side("down", 1) * kernel)
    elif "w1_a" in roles:
        sizes += [made("w1_a", "w1_b", "t1"), made("w2_a", "w2_b", "t2")]
    elif "a1" not in roles:
        first = roles["k1"].numel() if "k1" in roles else made("k1_a", "k1_b", "")
        second = roles["k2"].numel() if "k2" in roles else made("k2_a", "k2_b", "kt2")
        sizes.append(first * second)
    elif _old_glora(roles, weight):
        sizes += [side("b2", 0) * side("b1", 1), weight.shape[0] * side("a2", 1), weight.shape[0] * side("a1", 1)]
    else:
        sizes += [side("b1", 0) * side("b2", 1), weight.shape[0] * side("a1", 1), weight.shape[0] * side("a2", 1)]
    if max(sizes) > max(weight.numel(), LEAST):
        raise Unfit(f"has factors that make {max(sizes)} numbers, the model has {_size(weight)}")


def _lora(roles: Roles) -> Tensor:
    down, up = roles["down"], roles["up"]
    if "mid" in roles:  # Tucker form of a convolution
        return torch.einsum("nmkl,in,mj->ijkl", roles["mid"], up.flatten(1), down.flatten(1))
    product = up.flatten(1) @ down.flatten(1)
    return product.reshape(up.shape[0], *down.shape[1:])


def _factor(roles: Roles, a: str, b: str, core: str) -> Tensor:
    if core in roles:
        return torch.einsum("ijkl,jr,ip->prkl", roles[core], roles[b], roles[a])
    return roles[a] @ roles[b]


def _kron(roles: Roles) -> Tensor:
    first = roles["k1"] if "k1" in roles else roles["k1_a"] @ roles["k1_b"]
    if "k2" in roles:
        second = roles["k2"]
    elif "kt2" in roles:
        second = _factor(roles, "k2_a", "k2_b", "kt2")
    else:
        second = roles["k2_a"] @ roles["k2_b"].flatten(1)
        second = second.reshape(roles["k2_a"].shape[0], *roles["k2_b"].shape[1:])
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - first.ndim)), second.contiguous())


def _old_glora(roles: Roles, weight: Tensor) -> bool:
    """Whether the factors are in the order of LyCORIS's first release of GLoRA, or in the later one."""
    a1, a2, b1, b2 = (roles[role] for role in ("a1", "a2", "b1", "b2"))
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    new = b1.shape[1] == b2.shape[0] == a2.shape[0] == a1.shape[1]
    return old and (not new or (a2.shape[0], a2.shape[0]) == (weight.shape[0], weight[0].numel()))


def _glora(weight: Tensor, roles: Roles) -> Tensor:
    flat = weight.flatten(1)
    a1, a2, b1, b2 = (roles[role].flatten(1) for role in ("a1", "a2", "b1", "b2"))
    change = b2 @ b1 + (flat @ a2) @ a1 if _old_glora(roles, weight) else b1 @ b2 + (flat @ a1) @ a2
    return change.reshape(weight.shape)


def _rotated(weight: Tensor, roles: Roles) -> Tensor:
    blocks = roles["oft_blocks"] if "oft_blocks" in roles else roles["oft_diag"]
    if (
        blocks.ndim != 3
        or blocks.shape[0] * blocks.shape[1] != weight.shape[0]
        or blocks.shape[1] != blocks.shape[2]
    ):
        raise Unfit("has rotations of a kind or size that is not known here (butterfly OFT?)")
    if "oft_blocks" in roles:
        skew = blocks - blocks.transpose(1, 2)
        bound = float(roles["alpha"]) * weight.shape[0] if "alpha" in roles else 0.0
        norm = skew.norm()
        if 0.0 < bound < float(norm):
            skew = skew * (bound / norm)
        eye = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
        blocks = (eye + skew) @ torch.linalg.inv(eye - skew)
    rows = weight.unflatten(0, blocks.shape[:2])  # (n, b, ...)
    turned = torch.einsum("knm,kn...->km...", blocks, rows).flatten(0, 1)
    return turned * _fitted_column(roles["rescale"], weight) if "rescale" in roles else turned


def _fitted_column(column: Tensor, weight: Tensor) -> Tensor:
    if column.numel() != weight.shape[0]:
        raise Unfit("has a rescale of another size")
    return column.reshape(-1, *[1] * (weight.ndim - 1))


def _decomposed(value: Tensor, roles: Roles) -> Tensor:
    """Return m V / |V|: PEFT's magnitude and [out, 1] scales are per output row, [1, in] scales per input
    column.
    """
    if "magnitude" in roles:
        magnitude, axis = roles["magnitude"].flatten(), 0
    else:
        magnitude = roles["dora"]
        axis = 1 if magnitude.ndim > 1 and magnitude.shape[0] == 1 and value.shape[0] != 1 else 0
        magnitude = magnitude.flatten()
    others = [d for d in range(value.ndim) if d != axis]
    norm = value.pow(2).sum(dim=others, keepdim=True).sqrt().clamp(min=torch.finfo(value.dtype).tiny)
    return value * (_along(magnitude, value, axis) / norm)


def _along(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Return a vector shaped to multiply along an axis of the weight."""
    if weight.ndim <= axis or values.numel() != weight.shape[axis]:
        raise Unfit(f"has {values.numel()} magnitudes for a weight of {_size(weight)}")
    return values.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])


def _fitted(change: Tensor, weight: Tensor) -> Tensor:
    """Return the change in the weight's shape; a first convolution with more input channels gets zeros for
    the new ones.
    """
    if change.shape == weight.shape:
        return change
    squeezed = [tuple(s for i, s in enumerate(t.shape) if i < 2 or s > 1) for t in (change, weight)]
    if squeezed[0] == squeezed[1]:
        return change.reshape(weight.shape)
    if weight.ndim == 4 and change.ndim == 2 and change.shape == (weight.shape[0], weight[0].numel()):
        return change.reshape(weight.shape)  # LoHa and LoKr keep convolutions flat
    same_but_inputs = (
        change.ndim == weight.ndim == 4
        and change.shape[0] == weight.shape[0]
        and change.shape[2:] == weight.shape[2:]
    )
    if same_but_inputs and change.shape[1] < weight.shape[1] <= 16:
        padded = torch.zeros_like(weight)
        padded[:, : change.shape[1]] = change
        return padded
    raise Unfit(f"changes a weight of {_size(change)}, the model has {_size(weight)}")


def _size(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) if tensor.ndim else "1 number"
