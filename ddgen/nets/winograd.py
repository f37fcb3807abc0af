"""3 x 3 convolutions with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3).

A tile of 4 x 4 results needs 6 x 6 inputs. Both are polynomials, and a product of polynomials can be had from its values
at enough points, where it is a product of numbers: 36 of them in place of 144.

    Y = A^T [ (G g G^T) * (B^T d B) ] A          g: 3 x 3 kernel, d: 6 x 6 inputs, Y: 4 x 4 results; * elementwise

Summed over the channels in, * becomes 36 matrix products. The points are 0, +-p, +-q and infinity, with p = 1 / sqrt(2) and
q = sqrt(2): in float32 the largest error is a fifth of that with the usual 1 and 2, the root of the mean square half of it
and five times that of the plain sum (1.3e-6 against 2.5e-7 of the results' spread, 640 channels).

What the fewer multiplications gain, turning inputs and results costs in part, and turning the weights, which is done in
every call, lest they be held twice: where the field is small nothing is left, so it is used where it was measured to pay.

Ref: Lavin & Gray 2015, arXiv 1509.09308, sections 4.1 to 4.3.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

TILE = 4
POINTS = TILE + 2
P, Q = 0.5**0.5, 2**0.5
SUM, PRODUCT = P * P + Q * Q, P * P * Q * Q
STRIP = 256  # tiles at a time: what is turned stays in the cache
PLACES = 32 * 32  # of the smallest field that gains
CHANNELS = 128  # least, in and out
WEIGHTS = 128 * 2**20  # bytes of turned weights at a time
QUICK = torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution with a border of zeros, the field's size kept. In float32 on a CPU with AVX2 or AVX-512 by
    Winograd's way where that is quicker, while nothing is trained.

    Each picture of a batch goes through products of its own, so that its numbers do not depend on its neighbours.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, out_channels, H, W)."""
        if QUICK and pays(x, self.weight) and not torch.is_grad_enabled():
            return convolved(x, self.weight, self.bias)
        return super().forward(x)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether a convolution is one that Winograd's way was measured to make quicker."""
    height, width = x.shape[-2:]
    return (
        x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and height % TILE == width % TILE == 0
        and height * width >= PLACES
        and min(weight.shape[:2]) >= CHANNELS
    )


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution with a border of zeros.

    x: (B, C, H, W), H and W multiples of 4. weight: (O, C, 3, 3). bias: (O,). Returns (B, O, H, W).
    """
    result = x.new_empty(len(x), len(weight), *x.shape[-2:])
    most = max(1, WEIGHTS // (POINTS**2 * weight.shape[1] * weight.element_size()))
    for first in range(0, len(weight), most):
        part = slice(first, first + most)
        turned = turned_weights(weight[part])
        offset = 0.0 if bias is None else bias[part].view(-1, 1, 1)
        for picture, out in zip(x, result[:, part], strict=True):
            _fill(out, picture, turned, offset)
    return result


def _fill(result: Tensor, picture: Tensor, turned: Tensor, bias: Tensor | float) -> None:
    """Write the convolution of one picture. result: (O, H, W). picture: (C, H, W). turned: (36, O, C)."""
    out_channels, channels = turned.shape[1:]
    high, wide = picture.shape[-2] // TILE, picture.shape[-1] // TILE
    rows = max(1, min(high, STRIP // wide))
    for top in range(0, high, rows):
        count = min(rows, high - top)
        values = picture.new_empty(POINTS**2, channels, count * wide)
        turn(picture, top, values.view(POINTS, POINTS, channels, count, wide))
        products = torch.bmm(turned, values).view(POINTS, POINTS, out_channels, count, wide)
        strip = result[:, TILE * top : TILE * (top + count)].view(out_channels, count, TILE, wide, TILE)
        for i, row in enumerate(back(products)):
            for j, cells in enumerate(back(row)):
                torch.add(cells, bias, out=strip[:, :, i, :, j])


def turned_weights(weight: Tensor) -> Tensor:
    """Return G g G^T of every kernel: (36, O, C)."""
    return (_kernel(weight.dtype) @ weight.reshape(-1, 9).T).view(POINTS**2, *weight.shape[:2])


@cache
def _kernel(dtype: torch.dtype) -> Tensor:
    """Return G x G as one matrix, (36, 9)."""
    lines = [[1 / PRODUCT, 0.0, 0.0]]
    for point, other in ((P, Q), (Q, P)):
        scale = 1 / (2 * point**2 * (point**2 - other**2))
        lines += [[scale, sign * scale * point, scale * point**2] for sign in (1, -1)]
    g = torch.tensor([*lines, [0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.kron(g, g).to(dtype)


def turn(picture: Tensor, top: int, values: Tensor) -> None:
    """Write B^T d B of some rows of tiles.

    picture: (C, H, W). top: the first row of tiles. values: (6, 6, C, rows, W / 4).
    """
    channels, rows, wide = values.shape[2:]
    first = TILE * top - 1  # of the rows that the tiles reach over, 4 rows + 2; a border of zeros above and below
    inside = slice(max(first, 0), min(first + TILE * rows + 2, picture.shape[1]))
    skip, seen = inside.start - first, inside.stop - inside.start
    # By the place of a column in its tile, (4, C, 4 rows + 4, W / 4 + 1): a tile's columns are then whole planes.
    columns = values.new_empty(TILE, channels, TILE * (rows + 1), wide + 1)
    columns[:, :, :skip] = 0
    columns[:, :, skip + seen :] = 0
    columns[0, :, :, 0] = 0
    columns[1:, :, :, wide] = 0
    source = picture[:, inside].unflatten(-1, (wide, TILE))
    filled = columns[:, :, skip : skip + seen]
    filled[0, ..., 1:] = source[..., 3]
    filled[1:, ..., :wide] = source[..., :3].movedim(-1, 0)
    across = values.new_empty(POINTS, channels, TILE * (rows + 1), wide)
    at_points([columns[j % TILE, ..., j // TILE : j // TILE + wide] for j in range(POINTS)], across)
    down = across.unflatten(2, (rows + 1, TILE))
    at_points([down[:, :, i // TILE : i // TILE + rows, i % TILE] for i in range(POINTS)], values)


def at_points(d: Sequence[Tensor], out: Tensor) -> None:
    """Write B^T d, the values of six inputs at 0, p, -p, q, -q and infinity. out: (6, ...)."""
    torch.add(d[4], d[2], alpha=-SUM, out=out[0]).add_(d[0], alpha=PRODUCT)
    for at, point, other in ((1, P, Q), (3, Q, P)):
        even = torch.add(d[4], d[2], alpha=-(other**2))
        odd = torch.add(d[3], d[1], alpha=-(other**2))
        torch.add(even, odd, alpha=point, out=out[at])
        torch.add(even, odd, alpha=-point, out=out[at + 1])
    torch.add(d[5], d[3], alpha=-SUM, out=out[5]).add_(d[1], alpha=PRODUCT)


def back(m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return A^T m, four results of the values at six points."""
    even, odd = (m[1] + m[2], m[3] + m[4]), (m[1] - m[2], m[3] - m[4])
    return (
        (even[0] + even[1]).add_(m[0]),
        torch.mul(odd[0], P).add_(odd[1], alpha=Q),
        torch.mul(even[0], P**2).add_(even[1], alpha=Q**2),
        torch.mul(odd[0], P**3).add_(odd[1], alpha=Q**3).add_(m[5]),
    )
