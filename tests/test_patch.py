"""The patch stage: nothing is lost, and the channels lie where the embedded model's weights expect them."""

import pytest
import torch

from ddgen.nets.config import PatchConfig
from ddgen.nets.patch import PatchStage


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_round_trip_is_exact(factor: int) -> None:
    stage = PatchStage(PatchConfig(factor=factor))
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = stage.encode(images)
    assert latents.shape == (2, stage.channels, 16 // factor, 24 // factor)
    assert torch.equal(stage.decode(latents), images)
    assert stage.factor == factor and not list(stage.parameters())


def test_channel_order() -> None:
    """Channel c f^2 + i f + j of cell (y, x) is colour c of pixel (f y + i, f x + j)."""
    images = torch.rand(1, 3, 8, 12)
    latents = PatchStage(PatchConfig(factor=4)).encode(images)
    for c in range(3):
        for i in range(4):
            for j in range(4):
                assert torch.equal(latents[0, c * 16 + i * 4 + j], images[0, c, i::4, j::4])
