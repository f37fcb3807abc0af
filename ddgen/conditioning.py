"""What a network is told about the picture wanted: the text, as tensors, and whether it is shown the image prompts.

Holds no encoder and no network, so that text/ and diffusion/ can meet here without knowing each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Conditioning:
    """The text side of a batch of images.

    context: (B, 77 k, D) states of the text towers, for cross-attention; k is the number of 77-token chunks.
    vector:  (B, P) pooled text (and, for SDXL, size ids), added to the time embedding; None when the network takes none.
    pictured: (B,) bool, which of them are shown the image prompts of the run; None where there are none.
    """

    context: torch.Tensor
    vector: torch.Tensor | None = None
    pictured: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.context.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """Return the same conditioning on another device, in another dtype."""
        vector = None if self.vector is None else self.vector.to(device, dtype)
        pictured = None if self.pictured is None else self.pictured.to(device)
        return Conditioning(self.context.to(device, dtype), vector, pictured)

    def select(self, rows: list[int]) -> Conditioning:
        """Return the conditioning of the given images, in that order (an image may repeat)."""
        vector = None if self.vector is None else self.vector[rows]
        pictured = None if self.pictured is None else self.pictured[rows]
        return Conditioning(self.context[rows], vector, pictured)
