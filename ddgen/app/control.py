"""ControlNets and T2I-Adapters beside the network: pictures that say where things are, each with a weight and
a part of the steps.

    F(x_t, time, text) -> F(x_t, time, text, sum_i w_i control_i(x_t, time, text, picture_i), sum_j w_j features_j)

The picture goes through its own layers once a run, not once a step; a control that is over costs nothing. Of an
adapter that is all there is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddgen.diffusion.denoiser import Denoiser
from ddgen.errors import ModelError

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.verbs import ControlFile
    from ddgen.nets.controlnet import ControlNet


@dataclass(frozen=True)
class Control:
    """A network that steers another.

    hint: (1, C, h, w) of ControlNet.hint. start, end: fractions of the steps, 0 = first. features: of a
    T2I-Adapter, which has neither network nor hint at the steps.
    """

    network: ControlNet | None
    hint: Tensor | None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    features: tuple[Tensor, ...] = ()

    def active(self, step: int, steps: int) -> bool:
        """Tell whether it acts at a step, counted from 1."""
        return self.start <= (step - 1) / steps < self.end


@torch.inference_mode()
def load(pipeline: Pipeline, file: ControlFile) -> Control:
    """Load a control beside a pipeline's network, and show it its picture. What was loaded is kept: the lines of a
    batch share it.

    Raises:
        ModelError: no control, or one for another family or autoencoder.
    """
    from ddgen.nets.controlnet import HINT_FACTOR
    from ddgen.nets.t2i_adapter import T2IAdapter
    from ddgen.weights.control import control_part, is_adapter, load_adapter, load_control

    arch = pipeline.spec.arch
    dtype = pipeline.denoiser.dtype or torch.float32
    if file.path not in pipeline.controls:
        config = replace(arch.unet, in_channels=arch.first_stage.channels, guidance_dim=0)
        read = load_adapter if is_adapter(control_part(file.path)) else load_control
        pipeline.controls[file.path] = read(file.path, config, dtype, pipeline.device)
    network = pipeline.controls[file.path]
    picture = torch.tensor(file.picture).permute(2, 0, 1)[None].to(pipeline.device, dtype) / 255
    if isinstance(network, T2IAdapter):
        return Control(None, None, file.weight, file.start, file.end, tuple(network(picture)))
    if arch.first_stage.factor != HINT_FACTOR:
        raise ModelError(
            f"a ControlNet reads {HINT_FACTOR} pixels a latent cell, model '{pipeline.spec.name}' has {arch.first_stage.factor}",
            "choose a model that ControlNets are made for, as --model sd15",
            id="model.control",
        )
    return Control(network, network.hint(picture), file.weight, file.start, file.end)


def changes(controls: Sequence[Control], steps: int) -> set[int]:
    """Return the steps, from 1, behind which a control begins or ends."""
    return {
        step
        for control in controls
        for step in range(1, steps)
        if control.active(step, steps) != control.active(step + 1, steps)
    }


def with_controls(denoiser: Denoiser, controls: Sequence[Control]) -> Denoiser:
    """Return the denoiser of a network that is steered; by none, the denoiser itself."""
    if not controls:
        return denoiser
    network = denoiser.network

    def steered(
        x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None, **named: Tensor
    ) -> Tensor:
        total: list[Tensor] | None = None
        features: list[Tensor] | None = None
        for control in controls:
            if control.network is None or control.hint is None:
                added = [control.weight * part.to(x) for part in control.features]
                features = _sum(features, added)
                continue
            latents = x[:, : control.network.config.in_channels]  # a mask behind them is the U-Net's alone
            added = control.network(latents, time, context, vector, control.hint.to(x))
            total = _sum(total, [control.weight * part for part in added])
        return network(x, time, context, vector, control=total, features=features, **named)  # type: ignore[call-arg]

    bound = copy.copy(denoiser)
    bound.network = steered  # type: ignore[assignment]
    return bound


def _sum(total: list[Tensor] | None, added: list[Tensor]) -> list[Tensor]:
    return added if total is None else [a + b for a, b in zip(total, added, strict=True)]
