"""ControlNets and T2I-Adapters beside the network: pictures that say where things are, each with a weight and
a part of the steps.

    F(x_t, time, text) -> F(x_t, time, text, sum_i w_i control_i(x_t, time, text, picture_i), sum_j w_j features_j)

The picture goes through its own layers once a run, not once a step; a control that is over costs nothing. Of an
adapter that is all there is. Where the network sees its picture window by window, so does a control: what is under
the window is read each time, so that nothing grows with the picture.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddgen.app.windows import View, cut
from ddgen.diffusion.denoiser import Denoiser
from ddgen.errors import ModelError
from ddgen.nets.controlnet import HINT_FACTOR, ControlNet
from ddgen.nets.seamless import seamless
from ddgen.nets.t2i_adapter import T2IAdapter

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.verbs import ControlFile
    from ddgen.io.images import Pixels


@dataclass(frozen=True)
class Control:
    """A network that steers another.

    hint: (1, C, h, w) of ControlNet.hint. start, end: fractions of the steps, 0 = first. features: of a
    T2I-Adapter, which has neither network nor hint at the steps. picture: (H, W, 3) uint8 in place of hint and
    features, where it is read window by window, by the network or the adapter.
    """

    network: ControlNet | None
    hint: Tensor | None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    features: tuple[Tensor, ...] = ()
    picture: Pixels | None = None
    adapter: T2IAdapter | None = None

    def seen(self, view: View | None) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Return hint and features of what is looked at."""
        if self.picture is None:
            return self.hint, self.features
        under = self.picture
        if view is not None and view.rows is not None and view.columns is not None:
            under = cut(under, view.rows, view.columns)
        return look(self.network if self.adapter is None else self.adapter, under)

    def active(self, step: int, steps: int) -> bool:
        """Tell whether it acts at a step, counted from 1."""
        return self.start <= (step - 1) / steps < self.end


def look(network: nn.Module, picture: Pixels) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Return what a ControlNet (a hint) or a T2I-Adapter (features) makes of a picture."""
    weight = next(network.parameters())
    pixels = torch.tensor(picture).permute(2, 0, 1)[None].to(weight) / 255
    return (None, tuple(network(pixels))) if isinstance(network, T2IAdapter) else (network.hint(pixels), ())


@torch.inference_mode()
def load(pipeline: Pipeline, file: ControlFile, *, windowed: bool = False, tile: str = "") -> Control:
    """Load a control beside a pipeline's network, and show it its picture, if not window by window later. What was
    loaded is kept: the lines of a batch share it. tile: the axes along which the picture's ends meet.

    Raises:
        ModelError: no control, or one for another family or autoencoder.
    """
    from ddgen.weights.control import control_part, is_adapter, load_adapter, load_control

    arch = pipeline.spec.arch
    dtype = pipeline.denoiser.dtype or torch.float32
    if file.path not in pipeline.controls:
        config = replace(arch.unet, in_channels=arch.first_stage.channels, guidance_dim=0)
        read = load_adapter if is_adapter(control_part(file.path)) else load_control
        pipeline.controls[file.path] = read(file.path, config, dtype, pipeline.device)
    network = pipeline.controls[file.path]
    adapter = network if isinstance(network, T2IAdapter) else None
    if adapter is None and arch.first_stage.factor != HINT_FACTOR:
        raise ModelError(
            f"a ControlNet reads {HINT_FACTOR} pixels a latent cell, model '{pipeline.spec.name}' has {arch.first_stage.factor}",
            "choose a model that ControlNets are made for, as --model sd15",
            id="model.control",
        )
    control = Control(None if adapter else network, None, file.weight, file.start, file.end)
    if windowed:
        return replace(control, picture=file.picture, adapter=adapter)
    with seamless([network], tile):
        hint, features = look(network, file.picture)
    return replace(control, hint=hint, features=features)


def changes(controls: Sequence[Control], steps: int) -> set[int]:
    """Return the steps, from 1, behind which a control begins or ends."""
    return {
        step
        for control in controls
        for step in range(1, steps)
        if control.active(step, steps) != control.active(step + 1, steps)
    }


def with_controls(denoiser: Denoiser, controls: Sequence[Control], view: View | None = None) -> Denoiser:
    """Return the denoiser of a network that is steered; by none, the denoiser itself. view: what of the picture it
    looks at, told anew before each call."""
    if not controls:
        return denoiser
    network = denoiser.network

    def steered(
        x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None, **named: Tensor
    ) -> Tensor:
        total: list[Tensor] | None = None
        features: list[Tensor] | None = None
        for control in controls:
            hint, seen = control.seen(view)
            if control.network is None or hint is None:
                features = _sum(features, [control.weight * part.to(x) for part in seen])
                continue
            latents = x[:, : control.network.config.in_channels]  # a mask behind them is the U-Net's alone
            added = control.network(latents, time, context, vector, hint.to(x))
            total = _sum(total, [control.weight * part for part in added])
        return network(x, time, context, vector, control=total, features=features, **named)  # type: ignore[call-arg]

    bound = copy.copy(denoiser)
    bound.network = steered  # type: ignore[assignment]
    return bound


def _sum(total: list[Tensor] | None, added: list[Tensor]) -> list[Tensor]:
    return added if total is None else [a + b for a, b in zip(total, added, strict=True)]
