"""The latents of a data set: made once and kept while they fit the memory given, else made at each step."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddgen.app.dataset import Dataset
from ddgen.app.pipeline import Pipeline

BATCH = 16
FLOAT = 4  # bytes
Shape = tuple[int, int, int]


def latent_shapes(pipeline: Pipeline, data: Dataset) -> list[Shape]:
    """Return the (C, h, w) of a latent, for each of a data set's sizes."""
    stage = pipeline.spec.arch.first_stage
    return [(stage.channels, height // stage.factor, width // stage.factor) for width, height in data.sizes]


class Latents:
    """budget: bytes to keep."""

    def __init__(self, pipeline: Pipeline, data: Dataset, budget: int) -> None:
        self._pipeline, self._data = pipeline, data
        sizes = [int(np.prod(shape)) for shape in latent_shapes(pipeline, data)]
        self._tables: list[Tensor] | None = None
        self._rows = np.zeros(len(data), dtype=np.int64)  # of each picture in the table of its size
        if FLOAT * sum(sizes[i] for i in data.size_of) > budget:
            return
        self._tables = []
        for size in range(len(data.sizes)):
            pictures = np.flatnonzero(data.size_of == size)
            self._rows[pictures] = np.arange(len(pictures))
            parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
            self._tables.append(torch.cat([self._encode(part) for part in parts]))

    def __getitem__(self, pictures: NDArray[np.int64]) -> Tensor:
        """Return the latents of pictures of one size, (B, C, h, w) float32 on the CPU."""
        if self._tables is None:
            return torch.cat([self._encode(pictures[i : i + 1]) for i in range(len(pictures))])
        return self._tables[self._data.size_of[pictures[0]]][torch.from_numpy(self._rows[pictures])]

    @torch.no_grad()
    def _encode(self, pictures: NDArray[np.int64]) -> Tensor:
        images = self._data.images(pictures).to(self._pipeline.device)
        return self._pipeline.first_stage.encode(images).float().cpu()
