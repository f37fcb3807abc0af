"""Where a control moves pixels: there where its map says something, and hardly elsewhere.

Weights are random but for this: of a black map a control makes nothing. Its layers have no biases, and of a
ControlNet, whose blocks see the whole picture, only what its first layer reads of the map goes out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from referees import redraw
from safetensors.torch import save_file
from test_parity_pipelines import FAMILIES, build, in_double, jobs_of
from torch import nn

from ddgen.app import verbs
from ddgen.app.pipeline import run
from ddgen.nets.controlnet import ControlNet
from ddgen.nets.t2i_adapter import AdapterConfig, T2IAdapter

__all__ = ["in_double"]

SIDE, MARGIN = 128, 16
WEIGHTS = {"ControlNet": 200.0, "T2I-Adapter": 0.1}  # with which pixels move by some levels
WHERE = (slice(16, 64), slice(24, 72))


def silent(network: nn.Module) -> nn.Module:
    """Return a control with random weights that makes nothing of nothing."""
    redraw(network, 5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        if isinstance(network, ControlNet):
            network.input_blocks[0][0].weight.zero_()
            for out in (*network.zero_convs[1:], network.middle_block_out):
                getattr(out, "0", out).weight.zero_()
    return network.double().eval()


def control_of(kind: str) -> nn.Module:
    if kind == "T2I-Adapter":
        return silent(T2IAdapter(AdapterConfig(channels=(32, 64))))
    return silent(ControlNet(FAMILIES["sd1 ddim"].arch.unet))


def drawn() -> np.ndarray:
    """Return a map that says something inside WHERE alone."""
    shown = np.zeros((SIDE, SIDE, 3), np.uint8)
    shown[WHERE] = np.random.default_rng(1).integers(0, 2, (48, 48, 1), dtype=np.uint8) * 255
    return shown


@pytest.mark.parametrize("kind", ["ControlNet", "T2I-Adapter"])
def test_a_control_moves_pixels_where_its_map_says_something(kind: str, tmp_path: Path) -> None:
    family = FAMILIES["sd1 ddim"]
    pipeline = build(family)
    pipeline.denoiser.dtype = torch.float64
    save_file(control_of(kind).state_dict(), tmp_path / "c.safetensors")
    job = replace(jobs_of(family, pipeline)[0], steps=2, width=SIDE, height=SIDE, guidance=1.0)
    (plain,) = run(pipeline, [job])

    def change(shown: np.ndarray) -> np.ndarray:
        """Return how far each pixel is moved by a map, in levels of 255."""
        file = verbs.ControlFile(tmp_path / "c.safetensors", shown, WEIGHTS[kind], 0.0, 1.0)
        (steered,) = verbs.whole(None, [file])(pipeline, [job], lambda step, steps: None)
        return np.abs(steered.astype(float) - plain).mean(2)

    def share(moved: np.ndarray) -> float:
        """Return how much more pixels are moved inside than out of reach."""
        outside = np.ones((SIDE, SIDE), bool)
        outside[WHERE[0].start - MARGIN : WHERE[0].stop + MARGIN, WHERE[1].start - MARGIN : WHERE[1].stop + MARGIN] = False
        return moved[WHERE].mean() / moved[outside].mean()

    moved, shifted = change(drawn()), change(np.roll(drawn(), (64, 56), (0, 1)))
    assert moved[WHERE].mean() > 1 and share(moved) > 2
    assert shifted.mean() > 0.5 and share(shifted) < 0.5, "a map that lies elsewhere moves what is there"
    assert change(np.zeros_like(drawn())).max() == 0, "a map that says nothing moves nothing"
