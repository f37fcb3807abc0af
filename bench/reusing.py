"""The deep part of a U-Net computed at every N-th call only: what it gave enters the last blocks again meanwhile.

Ref: Ma et al. 2023 (DeepCache), arXiv 2312.00858, section 3.2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ddgen.nets.layers import for_rows, position_channels
from ddgen.nets.unet import run_parts


@contextmanager
def reusing(network: Any, every: int, keep: int) -> Iterator[None]:
    """Compute the deep part of a U-Net at every `every`-th call only while inside: enter it anew for each picture.

    keep: blocks at both ends that are computed always. A call with another number of rows than the one before,
    as at the end of a guidance interval, computes everything too.

    Against DeepCache 0.1.1 (branch B - 1) on diffusers' U-Net with the same weights, N 1 to 3, B 1 to 5, float64:
    no difference.
    """
    kept: list[Tensor] = []
    calls = 0

    def forward(x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor:
        nonlocal calls
        rows = len(context)
        fresh = calls % every == 0 or len(kept[0]) != rows
        calls += 1
        if vector is not None:
            x, time = for_rows(x, rows), for_rows(time, rows)
        embedding = network._embed(time, vector, None, x.dtype)
        if network.config.position_channels:
            grid = position_channels(*x.shape[-2:], device=x.device, dtype=x.dtype)
            x = torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], dim=1)
        skips = []
        for parts in network.input_blocks if fresh else network.input_blocks[:keep]:
            x = run_parts(parts, x, embedding, context)
            skips.append(x)
        blocks = list(network.output_blocks)
        if fresh:
            x = run_parts(network.middle_block, x, embedding, context)
        else:
            x, blocks = kept[0], blocks[-keep:]
        for left, parts in zip(range(len(blocks), 0, -1), blocks, strict=True):
            x = for_rows(x, rows)
            if fresh and left == keep:
                kept[:] = [x]
            x = torch.cat([x, for_rows(skips.pop(), rows)], dim=1)
            x = run_parts(parts, x, embedding, context, size=skips[-1].shape[-2:] if skips else None)
        return network.out(x)

    network.forward = forward
    try:
        yield
    finally:
        del network.forward
