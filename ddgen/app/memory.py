"""Making a run fit into memory: one part at a time on the device, pictures decoded one by one, in tiles only
where nothing else helps.

    offload    parts live in the computer's memory and take turns on the device     when the weights fill over
    80 % of what is free
    slicing    a batch is decoded image by image                                    always: the same result
    for less
    tiling     the autoencoder's fine levels run tile by tile                       when decoding needs more
    than 60 % of what is free

Estimates are rough on purpose; what they decide is only made slower by being wrong, and `--offload` overrules
the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ddgen.errors import choose
from ddgen.nets.config import FirstStageConfig, KLConfig
from ddgen.nets.tiling import Tiling

if TYPE_CHECKING:
    from ddgen.app.pipeline import FirstStage, Pipeline
    from ddgen.nets.vae import AutoencoderKL

OFFLOADS = ("auto", "none", "parts")
WEIGHTS_SHARE = 0.8
DECODE_SHARE = 0.6
LIVE_MAPS = 3  # feature maps of the finest level that are alive at once while decoding
FLOAT = 4  # bytes


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


def offloads(word: str, device: torch.device, weights: int) -> bool:
    """Return whether parts take turns on the device. weights: bytes of all of them, in the dtypes they run
    in.

    Raises:
        UsageError: an unknown word.
    """
    choose("offload", word, OFFLOADS)
    if device.type == "cpu" or word == "none":
        return False
    free = free_memory(device)
    return word == "parts" or (free is not None and weights > WEIGHTS_SHARE * free)


def decode_bytes(config: FirstStageConfig, height: int, width: int) -> int:
    """Return about how many bytes decoding one picture of height x width pixels takes at its finest level."""
    if not isinstance(config, KLConfig):
        return 0
    channels = config.model_channels * (config.channel_mult[1] if len(config.channel_mult) > 1 else 1)
    return LIVE_MAPS * FLOAT * channels * height * width


def fit_decoding(stage: FirstStage, height: int, width: int, device: torch.device) -> None:
    """Choose how an autoencoder decodes pictures of height x width pixels."""
    if not hasattr(stage, "tiling"):
        return  # patches and tiny autoencoders need next to nothing
    kl = cast("AutoencoderKL", stage)
    free = free_memory(device)
    kl.slicing = True
    tight = free is not None and decode_bytes(kl.config, height, width) > DECODE_SHARE * free
    kl.tiling = Tiling() if tight else None


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
