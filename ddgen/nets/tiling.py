"""Overlapping tiles that fade into each other: memory depends on the tile, not on the picture.

A tile's weight falls linearly to zero towards every side where it meets another tile, so that what differs
between tiles (group norms see other statistics, borders see zeros) becomes a slow change over the overlap and
never an edge.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Sides of a tile and the least overlap of two neighbours, both in latent cells; overlap <= size / 2."""

    size: int = 64
    overlap: int = 16


def spread(length: int, tiling: Tiling) -> list[int]:
    """Return where tiles start so that they cover `length` evenly with at least the overlap asked for."""
    if length <= tiling.size:
        return [0]
    stride = tiling.size - tiling.overlap
    count = 1 + -(-(length - tiling.size) // stride)
    return [round(i * (length - tiling.size) / (count - 1)) for i in range(count)]


def fades(starts: list[int], size: int, length: int, like: Tensor) -> list[Tensor]:
    """Return one weight vector (size,) per tile of a row; at every place of the row they sum to 1."""
    total = like.new_zeros(length, dtype=torch.float32)
    weights = []
    for i, start in enumerate(starts):
        place = torch.arange(size, device=like.device) + 0.5
        weight = torch.ones(size, device=like.device)
        if i > 0:
            weight = torch.minimum(weight, place / (starts[i - 1] + size - start))
        if i + 1 < len(starts):
            weight = torch.minimum(weight, (size - place) / (start + size - starts[i + 1]))
        weights.append(weight)
        total[start : start + size] += weight
    return [w / total[s : s + size] for s, w in zip(starts, weights, strict=True)]


def in_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, *, cell_in: int = 1, cell_out: int = 1
) -> Tensor:
    """Return function(x), computed tile by tile and blended.

    x: (B, C, H, W). A latent cell is `cell_in` pixels wide in x and `cell_out` in the result: 1 and 8 when
    decoding.
    """
    height, width = x.shape[-2] // cell_in, x.shape[-1] // cell_in
    rows, columns = spread(height, tiling), spread(width, tiling)
    if len(rows) == len(columns) == 1:
        return function(x)
    side_y, side_x = min(height, tiling.size), min(width, tiling.size)
    fade_y = fades([r * cell_out for r in rows], side_y * cell_out, height * cell_out, x)
    fade_x = fades([c * cell_out for c in columns], side_x * cell_out, width * cell_out, x)
    result: Tensor | None = None
    for row, weight_y in zip(rows, fade_y, strict=True):
        for column, weight_x in zip(columns, fade_x, strict=True):
            tile = x[
                ..., row * cell_in : (row + side_y) * cell_in, column * cell_in : (column + side_x) * cell_in
            ]
            out = function(tile)
            if result is None:
                result = out.new_zeros(*out.shape[:2], height * cell_out, width * cell_out)
            target = result[
                ...,
                row * cell_out : (row + side_y) * cell_out,
                column * cell_out : (column + side_x) * cell_out,
            ]
            target += out * (weight_y[:, None] * weight_x).to(out.dtype)
    assert result is not None
    return result
