"""What a run trains: the whole U-Net, low-rank changes of frozen layers, or the vectors of a new word.

Each has the network that a step calls, the parameters that the optimizer moves, and knows how a state of them
(their moving average) becomes a model to sample from and a file for others.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ddgen.app import runfiles
from ddgen.app.pipeline import Pipeline
from ddgen.diffusion.denoiser import Denoiser
from ddgen.errors import UsageError
from ddgen.nets.lowrank import TARGETS, LowRanks, attach, shared, targets
from ddgen.nets.unet import UNet
from ddgen.text.clip import CLIPTextModel, TextEncoder
from ddgen.text.config import TowerSpec
from ddgen.weights.checkpoint import save_tensors
from ddgen.weights.lora_export import adapter_tensors

LORA = "lora.safetensors"
State = Mapping[str, Tensor]


class Subject(Protocol):
    """network: what a step calls. trained: holds the parameters that are trained. live: whether text goes
    through the towers at every step. facts: what tells one run from another, besides its Settings.
    """

    network: nn.Module
    trained: nn.Module
    live: bool
    facts: dict[str, object]

    def text(self, state: State | None = None) -> TextEncoder | None:
        """Return the towers as they are trained, or with a state; None: the model's own, untouched."""

    def averaged(self, state: State) -> nn.Module:
        """Return the network with another state of what is trained, sharing all tensors."""

    def write(self, out: Path, state: State) -> Path:
        """Write what others load; return its path."""


class WholeNetwork:
    """The U-Net, all of it: the model's weights in float32, or fresh ones drawn from the seed."""

    live = False

    def __init__(self, pipeline: Pipeline, *, seed: int, scratch: bool) -> None:
        self.pipeline = pipeline
        self.facts: dict[str, object] = {}
        torch.manual_seed(seed)
        network = UNet(pipeline.spec.arch.unet)
        if not scratch:
            held = pipeline.denoiser.network
            assert isinstance(held, nn.Module)
            network.load_state_dict(held.state_dict())
        self.network = self.trained = network.to(pipeline.device).train()

    def text(self, state: State | None = None) -> TextEncoder | None:
        return None

    def averaged(self, state: State) -> nn.Module:
        with torch.device("meta"):
            network = UNet(self.pipeline.spec.arch.unet)
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).eval()

    def write(self, out: Path, state: State) -> Path:
        return runfiles.write_model(out, self.pipeline.spec, {"unet": state})


class LowRankChange:
    """LoRA on the attention layers (or all of the transformers, or the convolutions too) of the U-Net, and of the
    text towers.

    on: a name of lowrank.TARGETS. dialect: of the file, a name of lora_export.DIALECTS.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        seed: int,
        rank: int,
        alpha: float,
        on: str = "attention",
        text: bool = False,
        dialect: str = "kohya",
    ) -> None:
        self.pipeline, self.live, self.dialect = pipeline, text, dialect
        self.facts: dict[str, object] = {"kind": "lora", "rank": rank, "alpha": alpha, "on": on, "text": text}
        network = pipeline.denoiser.network
        assert isinstance(network, nn.Module)
        self.network = network
        parts = {"unet": network.requires_grad_(False)}
        unread: tuple[str, ...] = ()  # blocks of the towers behind the states that the network is given
        if text:
            parts |= {f"text.{i}": tower.requires_grad_(False) for i, tower in enumerate(native_towers(pipeline))}
            unread = tuple(
                f"text.{i} encoder.layers.{block}."
                for i, spec in enumerate(pipeline.spec.towers)
                for block in range(blocks_read(spec), spec.config.layers)
            )
        torch.manual_seed(seed)
        layers = {
            f"{part} {name}": layer
            for part, module in parts.items()
            for name, layer in targets(module, TARGETS[on]).items()
            if not f"{part} {name}".startswith(unread)
        }
        self._twins = {part: shared(module) for part, module in parts.items()}
        self.trained = LowRanks(layers, rank, alpha).to(pipeline.device)
        for name, factors in self.trained.factors():
            attach(layers[name], factors)

    def text(self, state: State | None = None) -> TextEncoder | None:
        if not self.live:
            return None
        own = self.pipeline.text
        assert isinstance(own, TextEncoder)
        if state is None:
            return own
        self._with(state)
        towers = [self._twins[f"text.{i}"] for i in range(len(own.specs))]
        return TextEncoder(towers, own.specs, own.tokenizer)  # type: ignore[arg-type]

    def averaged(self, state: State) -> nn.Module:
        self._with(state)
        return self._twins["unet"].eval()

    def _with(self, state: State) -> None:
        for name, factors in self.trained.factors(state):
            part, _, module = name.partition(" ")
            attach(self._twins[part].get_submodule(module), factors)

    def write(self, out: Path, state: State) -> Path:
        pairs = {}
        for name, factors in self.trained.factors(state):
            part, _, module = name.partition(" ")
            pairs[part, module] = (factors.down, factors.up)
        tensors, metadata = adapter_tensors(
            pairs,
            self.pipeline.spec.arch,
            rank=self.trained.rank,
            alpha=self.trained.alpha,
            dialect=self.dialect,
        )
        save_tensors(out / LORA, tensors, {"format": "pt"} | metadata)
        return out / LORA


def blocks_read(tower: TowerSpec) -> int:
    """Return how many of a tower's blocks, from the first, what the network is given comes through."""
    return tower.config.layers if tower.pooled else range(tower.config.layers + 1)[tower.layer]


def native_towers(pipeline: Pipeline) -> list[CLIPTextModel]:
    """Return the text towers.

    Raises:
        UsageError: they are another library's.
    """
    text = pipeline.text
    assert isinstance(text, TextEncoder)
    found = [tower for tower in text.towers if isinstance(tower, CLIPTextModel)]
    if not found or len(found) != len(text.towers):
        raise UsageError(
            "only ddgen's own text towers can be trained", "use --text-backend native", id="usage.text-backend"
        )
    return found


def with_subject(pipeline: Pipeline, subject: Subject, state: State) -> Pipeline:
    """Return a Pipeline that samples with a state of what is trained."""
    spec, text = pipeline.spec, subject.text(state)
    denoiser = Denoiser(
        subject.averaged(state),  # type: ignore[arg-type]
        spec.prediction,
        pipeline.denoiser.schedule,
        spec.x0_clamp,
        torch.float32,
        spec.sigma_data,
    )
    return dataclasses.replace(pipeline, denoiser=denoiser, text=pipeline.text if text is None else text)
