"""Overlapping tiles that fade into each other: memory depends on the tile, not on the picture.

A tile's weight falls linearly to zero towards every side where it meets another tile, so that what differs
between tiles (group norms see other statistics, borders see zeros) becomes a slow change over the overlap and
never an edge. Where the ends of the field meet (a ring), tiles go round like beads: the last reaches over into
the first, and the field has no border along that axis.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad


MULTIPLE = 4  # cells; quick convolutions work on tiles of so many (nets/winograd.py)


@dataclass(frozen=True)
class Tiling:
    """Sides of a tile and the least overlap of two neighbours, both in latent cells; overlap <= size / 2.

    ring: the axes, of "x" and "y", along which the field's ends meet.
    """

    size: int = 64
    overlap: int = 16
    ring: str = ""

    def round_axes(self, height: int, width: int) -> str:
        """Return the axes along which the tiles of a field of so many cells go round: not those that one tile
        covers."""
        return "".join(axis for axis, length in (("x", width), ("y", height)) if axis in self.ring and length > self.size)


def count_of(length: int, tiling: Tiling, *, ring: bool = False) -> int:
    """Return how many tiles cover `length` with at least the overlap asked for."""
    if length <= tiling.size:
        return 1
    stride = tiling.size - tiling.overlap
    return -(-length // stride) if ring else 1 + -(-(length - tiling.size) // stride)


def spread(length: int, tiling: Tiling, *, ring: bool = False) -> list[int]:
    """Return where tiles start so that they cover `length` evenly with at least the overlap asked for. On a ring
    the last may reach over its end."""
    count = count_of(length, tiling, ring=ring)
    if count == 1:
        return [0]
    if ring:
        return [round(i * length / count) for i in range(count)]
    return [round(i * (length - tiling.size) / (count - 1)) for i in range(count)]


def fitted(height: int, width: int, tiling: Tiling) -> Tiling:
    """Return tiles that cover a field of so many cells in the same number, but are no larger than that takes: 64
    cells in three of 28, not of 32. Their sides are multiples of MULTIPLE where the field allows."""
    ring, needed = tiling.round_axes(height, width), 2 * tiling.overlap
    for axis, length in (("x", width), ("y", height)):
        count = count_of(length, tiling, ring=axis in ring)
        inside = -(-length // count) + tiling.overlap if axis in ring else -(-(length + (count - 1) * tiling.overlap) // count)
        needed = max(needed, inside)
    return replace(tiling, size=min(tiling.size, -(-needed // MULTIPLE) * MULTIPLE))


def fades(starts: list[int], size: int, length: int, like: Tensor, *, ring: bool = False) -> list[Tensor]:
    """Return one weight vector (size,) per tile of a row; at every place of the row they sum to 1."""
    total = like.new_zeros(length, dtype=torch.float32)
    weights, count = [], len(starts)
    ring = ring and count > 1
    place = torch.arange(size, device=like.device) + 0.5
    cells = torch.arange(size, device=like.device)
    for i, start in enumerate(starts):
        weight = torch.ones(size, device=like.device)
        if i > 0 or ring:
            shared = size - (start - starts[i - 1]) % length
            weight = torch.minimum(weight, place / shared)
        if i + 1 < count or ring:
            shared = size - (starts[(i + 1) % count] - start) % length
            weight = torch.minimum(weight, (size - place) / shared)
        weights.append(weight)
        total[(start + cells) % length] += weight
    return [weight / total[(start + cells) % length] for start, weight in zip(starts, weights, strict=True)]


def in_bands(
    compute: Callable[[slice, slice], Tensor], height: int, width: int, tiling: Tiling, *, cell_out: int = 1
) -> Iterator[tuple[int, Tensor]]:
    """Yield a field that is computed tile by tile and blended, in bands, each as soon as no further tile reaches
    into it, with the row at which it begins: what is held is a row of tiles.

    Bands come from top to bottom, but that on a ring the topmost, into which the last tiles reach, come last.

    compute: rows and columns of latent cells -> (B, C, h cell_out, w cell_out); on a ring a slice may end beyond
    the field, and means its beginning there (`part`). height, width: in latent cells.
    """
    ring = tiling.round_axes(height, width)
    rows, columns = spread(height, tiling, ring="y" in ring), spread(width, tiling, ring="x" in ring)
    side_y, side_x = min(height, tiling.size), min(width, tiling.size)
    ends = [*rows[1:], height]
    over = (rows[-1] + side_y - height) * cell_out  # rows of the top that the last tiles reach into
    held: Tensor | None = None
    first: Tensor | None = None
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            out = compute(slice(row, row + side_y), slice(column, column + side_x))
            if held is None:
                held = out.new_zeros(*out.shape[:2], side_y * cell_out, width * cell_out)
                first = held.new_zeros(*out.shape[:2], over, width * cell_out)
                sizes = ((rows, side_y, height, "y"), (columns, side_x, width, "x"))
                fade_y, fade_x = (
                    fades([start * cell_out for start in starts], side * cell_out, length * cell_out, out, ring=axis in ring)
                    for starts, side, length, axis in sizes
                )
            out = out * (fade_y[i][:, None] * fade_x[j]).to(out.dtype)
            inside = min(side_x, width - column) * cell_out
            held[..., column * cell_out : column * cell_out + inside] += out[..., :inside]
            held[..., : out.shape[-1] - inside] += out[..., inside:]
        assert held is not None and first is not None
        top, done = row * cell_out, (ends[i] - row) * cell_out
        early = max(0, min(over - top, done))
        first[..., top : top + early, :] += held[..., :early, :]
        if early < done:
            yield top + early, held[..., early:done, :]
        held = pad(held[..., done:, :], (0, 0, 0, done))
    if over:
        assert held is not None and first is not None
        yield 0, first + held[..., :over, :]


def part(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return some rows and columns of a field; what they reach for beyond its end is its beginning."""
    for axis, cells in ((-2, rows), (-1, columns)):
        length = x.shape[axis]
        inside = x.narrow(axis, cells.start, min(cells.stop, length) - cells.start)
        x = inside if cells.stop <= length else torch.cat([inside, x.narrow(axis, 0, cells.stop - length)], axis)
    return x


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
    tiling = fitted(height, width, tiling)

    def compute(rows: slice, columns: slice) -> Tensor:
        return function(part(x, larger(rows, cell_in), larger(columns, cell_in)))

    return gathered(compute, height, width, tiling, cell_out=cell_out)


def gathered(
    compute: Callable[[slice, slice], Tensor], height: int, width: int, tiling: Tiling, *, cell_out: int = 1
) -> Tensor:
    """Return the field of `in_bands` whole."""
    result: Tensor | None = None
    for top, band in in_bands(compute, height, width, tiling, cell_out=cell_out):
        if result is None:
            result = band.new_empty(*band.shape[:2], height * cell_out, width * cell_out)
        result[..., top : top + band.shape[-2], :] = band
    assert result is not None
    return result


def larger(cells: slice, times: int) -> slice:
    """Return a row or column of cells in pixels that are so many to a cell."""
    return slice(cells.start * times, cells.stop * times)
