"""From one layout to another, tensor by tensor: lossless for what both hold, the rest is named.

    file or folder  ->  one file under LDM names, or a folder in diffusers' layout (export.py writes its config files)
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ddgen.errors import ModelError
from ddgen.text.config import TowerSpec
from ddgen.weights import keymap
from ddgen.weights.arch import FAMILIES, Arch
from ddgen.weights.checkpoint import DTYPES, Checkpoint, Reader, spec_metadata, write_file
from ddgen.weights.keymap import Take
from ddgen.weights.spec import Spec
from ddgen.weights.split import Part, Stored

UNET_PREFIX = "model.diffusion_model."
FIRST_STAGE_PREFIX = "first_stage_model."


@dataclass(frozen=True)
class Report:
    """What a conversion did. dropped: tensors that the other layout has no place for."""

    written: tuple[Path, ...]
    tensors: int
    size: int  # bytes
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A tensor of the new file: made by `take` from `sources`, tensors of the old one."""

    sources: tuple[Stored, ...]
    take: Take

    @property
    def shape(self) -> tuple[int, ...]:
        return self.take.shape(stored.shape for stored in self.sources)


def to_file(found: Checkpoint, spec: Spec, target: Path, *, dtype: torch.dtype | None = None) -> Report:
    """Write a checkpoint as one file under LDM names, with its Spec in the header; `dtype` None keeps what is stored.

    Raises:
        ModelError: the checkpoint is damaged. OutputError: the file cannot be written.
    """
    towers = file_towers(spec.arch)
    spec = replace(spec, arch=replace(spec.arch, text=towers))
    made: dict[str, Made] = {}
    for name, part in found.parts.items():
        made |= _file_part(name, part, towers)
    size = write(target, made, spec_metadata(spec), dtype)
    return Report((target,), len(made), size, found.ignored + found.unknown)


def file_towers(arch: Arch) -> tuple[TowerSpec, ...]:
    """Return the towers with the prefix and layout that single files of this family use."""
    known = FAMILIES.get(arch.name)
    if known is None or len(known.text) != len(arch.text):
        return arch.text
    return tuple(replace(tower, prefix=rule.prefix, layout=rule.layout) for tower, rule in zip(arch.text, known.text, strict=True))


def _file_part(name: str, part: Part, towers: tuple[TowerSpec, ...]) -> dict[str, Made]:
    if not name.startswith("text."):
        prefix = UNET_PREFIX if name == "unet" else FIRST_STAGE_PREFIX
        return {prefix + native: Made((stored,), Take((native,))) for native, stored in part.items()}
    tower = towers[int(name.removeprefix("text."))]
    if tower.layout == "openclip":
        takes = keymap.to_openclip(part)
        return {tower.prefix + new: Made(tuple(part[native] for native in take.names), take) for new, take in takes.items()}
    beside = tower.prefix.removesuffix("text_model.")
    return {
        (beside if native == "text_projection.weight" else tower.prefix) + native: Made((stored,), Take((native,)))
        for native, stored in part.items()
    }


def write(target: Path, made: dict[str, Made], metadata: dict[str, str], dtype: torch.dtype | None) -> int:
    """Write one safetensors file; return its size in bytes.

    Raises:
        ModelError: a source is damaged. OutputError: the file cannot be written.
    """
    plan = {name: (_dtype(item, dtype), item.shape) for name, item in made.items()}
    with Reader() as reader:

        def produce(name: str) -> Tensor:
            pieces = [reader.read(stored, plan[name][0]) for stored in made[name].sources]
            return made[name].take.apply(pieces[0] if len(pieces) == 1 else torch.cat(pieces))

        return write_file(target, plan, produce, metadata)


def _dtype(item: Made, wanted: torch.dtype | None) -> torch.dtype:
    stored = item.sources[0]
    held = DTYPES[stored.dtype]
    if held.itemsize == 1 and held.is_floating_point:
        held = torch.float16 if stored.scale is None else torch.float32
    return wanted if wanted is not None and held.is_floating_point else held


def parse_dtype(word: str | None) -> torch.dtype | None:
    """Return the dtype called `word` ("float16", "bfloat16", "float32"); None stays None.

    Raises:
        ModelError: another word.
    """
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if word is not None and word not in known:
        raise ModelError(f"unknown dtype '{word}'", "one of: " + ", ".join(known), id="model.dtype")
    return None if word is None else known[word]
