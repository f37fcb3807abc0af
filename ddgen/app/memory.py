"""Making a run fit into memory. What is tried, in this order, and all of it before the first step:

    batch      fewer pictures at once              where so many asked for need more than 80 % of what is free
    slicing    a batch is decoded picture by picture     always: the same result for less
    tiling     the autoencoder's fine levels run tile by tile    when decoding needs more than 60 %, or the
               weights are kept small on a CPU
    offload    "parts": text, network and autoencoder take turns on a GPU     when the weights fill over 80 %
               "blocks": weights are kept in 16 bits in the computer's memory, and each layer's are brought
               and cast only while it runs                       when that is still, or on a CPU, too much

What a run needs is estimated in estimate.py; what it decides is only made slower by being wrong, and
`--offload` overrules the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ddgen.app.estimate import SMALL_TILE, decode_bytes, step_bytes
from ddgen.app.windows import seen
from ddgen.errors import choose
from ddgen.nets.tiling import Tiling

if TYPE_CHECKING:
    from ddgen.app.pipeline import FirstStage, Pipeline
    from ddgen.nets.vae import AutoencoderKL
    from ddgen.request import Job
    from ddgen.weights.spec import Spec

OFFLOADS = ("auto", "none", "parts", "blocks")
WEIGHTS_SHARE = 0.8
BATCH_SHARE = 0.8
DECODE_SHARE = 0.6


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        try:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return None
    limit = _cgroup_room()
    return free if limit is None else min(free, limit)


def _cgroup_room() -> int | None:
    """Return the bytes that a container may still take."""
    root = Path("/sys/fs/cgroup")
    try:
        most = (root / "memory.max").read_text(encoding="ascii").strip()
        return (
            None
            if most == "max"
            else max(0, int(most) - int((root / "memory.current").read_text(encoding="ascii")))
        )
    except (OSError, ValueError):
        return None


def offload_mode(word: str, device: torch.device, weights: Mapping[str, int]) -> str:
    """Return "none", "parts" or "blocks". weights: bytes of each part, in the dtype that it runs in.

    Raises:
        UsageError: an unknown word.
    """
    choose("offload", word, OFFLOADS)
    if word == "parts" and device.type == "cpu":
        return "none"
    if word != "auto":
        return word
    free = free_memory(device)
    if free is None or sum(weights.values()) <= WEIGHTS_SHARE * free:
        return "none"
    if device.type != "cpu" and max(weights.values()) <= WEIGHTS_SHARE * free:
        return "parts"
    return "blocks"


def fitting_batch(spec: Spec, job: Job, size: int, device: torch.device, dtype: torch.dtype | None) -> int:
    """Return how many of `size` pictures like `job` go through the network at once; at least one."""
    free = free_memory(device)
    if free is None:
        return size
    factor = spec.arch.first_stage.factor
    shape = [side // factor for side in seen(job)]
    branches = 1 if job.guidance == 1 else 2
    each = branches * step_bytes(spec.arch.unet, *shape) * (dtype or torch.float32).itemsize // 4
    return max(1, min(size, int(BATCH_SHARE * free // max(each, 1))))


def fit_decoding(
    stage: FirstStage, height: int, width: int, device: torch.device, *, kept_small: bool = False, ring: str = ""
) -> None:
    """Choose how an autoencoder decodes pictures of height x width pixels. kept_small: its weights are kept in 16
    bits (`Blocks`); in the computer's own memory small tiles follow from that, lest decoding take more than a step.
    ring: the axes along which its convolutions run round."""
    if not hasattr(stage, "tiling"):
        return  # patches and tiny autoencoders need next to nothing
    kl = cast("AutoencoderKL", stage)
    free = free_memory(device)
    kl.slicing = True
    tight = free is not None and decode_bytes(kl.config, height, width) > DECODE_SHARE * free
    least = kept_small and device.type == "cpu"
    kl.tiling = None
    if tight or least:
        common = Tiling(ring=ring)
        covered = max(height, width) // kl.factor <= common.size
        kl.tiling = Tiling(SMALL_TILE, SMALL_TILE // 4, ring) if covered or least else common


class Blocks:
    """Weights in 16 bits, each layer's brought to a device and cast only while it runs.

    The same numbers come out as of the whole network cast at once: a float16 number has its exact float32.
    """

    def __init__(self, device: torch.device, compute: torch.dtype) -> None:
        self._device = device
        self._compute = compute

    def add(self, part: nn.Module) -> None:
        """Let the layers of a part be brought and taken away."""
        for layer in part.modules():
            if layer._parameters:
                layer.register_forward_pre_hook(self._bring)
                layer.register_forward_hook(_take_away, always_call=True)

    def _bring(self, layer: nn.Module, arguments: object) -> None:
        kept = dict(layer._parameters)
        layer.__dict__["kept_small"] = kept
        for name, parameter in kept.items():
            if parameter is not None:
                layer._parameters[name] = parameter.to(self._device, self._compute)  # type: ignore[assignment]


def _take_away(layer: nn.Module, arguments: object, output: object) -> None:
    layer._parameters.update(layer.__dict__.pop("kept_small", {}))


class Turns:
    """Lets one part at a time be on the device; the others wait in the computer's memory.

    A part takes its turn when it, or one of its `doors`, is called; the arguments are brought to it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._present: nn.Module | None = None

    def add(self, part: nn.Module, doors: Iterable[nn.Module] = ()) -> None:
        """Let a part take turns, too. doors: modules of it that others call in its stead."""

        def before(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
            self.take(part)
            brought = {key: self._bring(value) for key, value in options.items()}
            return tuple(self._bring(value) for value in arguments), brought

        for door in (part, *doors):
            door.register_forward_pre_hook(before, with_kwargs=True)

    def take(self, part: nn.Module) -> None:
        """Bring a part to the device, and the one that is there back."""
        if self._present is part:
            return
        if self._present is not None:
            self._present.to("cpu")
        part.to(self._device)
        self._present = part

    def _bring(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value


def keep_small(pipeline: Pipeline, compute: torch.dtype) -> None:
    """Let the weights of a pipeline, loaded in 16 bits, be brought layer by layer; a text tower on a GPU
    stays there."""
    pipeline.kept_small = True
    blocks = Blocks(pipeline.device, compute)
    assert isinstance(pipeline.denoiser.network, nn.Module)
    blocks.add(pipeline.denoiser.network)
    wide = Blocks(pipeline.device, torch.float32)  # SDXL's autoencoder overflows in float16
    if isinstance(pipeline.first_stage, nn.Module):
        wide.add(pipeline.first_stage)
    if pipeline.device.type == "cpu":
        for tower in getattr(pipeline.text, "towers", ()):
            wide.add(tower)


def take_turns(pipelines: Iterable[Pipeline], device: torch.device) -> None:
    """Let the parts of pipelines that were loaded into the computer's memory take turns on a device."""
    turns = Turns(device)
    for pipeline in pipelines:
        for tower in getattr(pipeline.text, "towers", ()):
            turns.add(tower)
        assert isinstance(pipeline.denoiser.network, nn.Module)
        turns.add(pipeline.denoiser.network)
        stage = pipeline.first_stage
        if isinstance(stage, nn.Module):  # its encode and decode go in by the modules within
            turns.add(stage, [module for module in stage.modules() if not any(module.children())])
        pipeline.device = device
