"""Overlapping tiles that fade into each other: memory depends on the tile, not on the picture.

A tile's weight falls linearly to zero towards every side where it meets another tile, so that what differs
between tiles (group norms see other statistics, borders see zeros) becomes a slow change over the overlap and
never an edge.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


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


def in_bands(
    compute: Callable[[slice, slice], Tensor], height: int, width: int, tiling: Tiling, *, cell_out: int = 1
) -> Iterator[Tensor]:
    """Yield a field that is computed tile by tile and blended, in bands from top to bottom, each as soon as no
    further tile reaches into it: what is held is a row of tiles.

    compute: rows and columns of latent cells -> (B, C, h cell_out, w cell_out). height, width: in latent cells.
    """
    rows, columns = spread(height, tiling), spread(width, tiling)
    side_y, side_x = min(height, tiling.size), min(width, tiling.size)
    ends = [*rows[1:], height]
    held: Tensor | None = None
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            out = compute(slice(row, row + side_y), slice(column, column + side_x))
            if held is None:
                held = out.new_zeros(*out.shape[:2], side_y * cell_out, width * cell_out)
                fade_y = fades([r * cell_out for r in rows], side_y * cell_out, height * cell_out, out)
                fade_x = fades([c * cell_out for c in columns], side_x * cell_out, width * cell_out, out)
            place = held[..., column * cell_out : (column + side_x) * cell_out]
            place += out * (fade_y[i][:, None] * fade_x[j]).to(out.dtype)
        assert held is not None
        done = (ends[i] - row) * cell_out
        yield held[..., :done, :]
        held = pad(held[..., done:, :], (0, 0, 0, done))


def in_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, *, cell_in: int = 1, cell_out: int = 1
) -> Tensor:
    """Return function(x), computed tile by tile and blended.

    x: (B, C, H, W). A latent cell is `cell_in` pixels wide in x and `cell_out` in the result: 1 and 8 when
    decoding.
    """
    height, width = x.shape[-2] // cell_in, x.shape[-1] // cell_in
    if max(height, width) <= tiling.size:
        return function(x)

    def compute(rows: slice, columns: slice) -> Tensor:
        return function(x[..., larger(rows, cell_in), larger(columns, cell_in)])

    result: Tensor | None = None
    top = 0
    for band in in_bands(compute, height, width, tiling, cell_out=cell_out):
        if result is None:
            result = band.new_empty(*band.shape[:2], height * cell_out, width * cell_out)
        result[..., top : top + band.shape[-2], :] = band
        top += band.shape[-2]
    assert result is not None
    return result


def larger(cells: slice, times: int) -> slice:
    """Return a row or column of cells in pixels that are so many to a cell."""
    return slice(cells.start * times, cells.stop * times)
