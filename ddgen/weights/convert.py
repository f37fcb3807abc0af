"""From one layout to another, tensor by tensor: lossless for what both hold, the rest is named.

    file or folder  ->  one file under LDM names, or a folder in diffusers' layout (its configs: export.py)
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddgen.errors import ModelError
from ddgen.io.files import publish
from ddgen.nets.config import KLConfig, TinyConfig
from ddgen.text.config import TowerSpec
from ddgen.text.tokens import Tokenizer
from ddgen.weights import export, keymap
from ddgen.weights.arch import FAMILIES, Arch
from ddgen.weights.checkpoint import Checkpoint, Reader, spec_metadata, write_file
from ddgen.weights.keymap import Outline, Take
from ddgen.weights.reader import DTYPES
from ddgen.weights.spec import Spec, spec_to_json
from ddgen.weights.split import Part, Stored

UNET_PREFIX = "model.diffusion_model."
FIRST_STAGE_PREFIX = "first_stage_model."


@dataclass(frozen=True)
class Report:
    """What a conversion did. dropped: tensors that the other layout has no place for; unsaid: what it cannot
    say of the model, a line each."""

    written: tuple[Path, ...]
    tensors: int
    size: int  # bytes
    dropped: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A tensor of the new file: made by `take` from `sources`, tensors of the old one."""

    sources: tuple[Stored, ...]
    take: Take

    @property
    def shape(self) -> tuple[int, ...]:
        return self.take.shape(stored.shape for stored in self.sources)


def to_file(found: Checkpoint, spec: Spec, target: Path, *, dtype: torch.dtype | None = None) -> Report:
    """Write a checkpoint as one file under LDM names, with its Spec in the header; `dtype` None keeps what is
    stored.

    Raises:
        ModelError: the checkpoint is damaged. OutputError: the file cannot be written.
    """
    towers = file_towers(spec.arch)
    spec = replace(spec, arch=replace(spec.arch, text=towers))
    made: dict[str, Made] = {}
    for name, part in found.parts.items():
        made |= file_part(name, part, towers)
    size = write(target, made, spec_metadata(spec), dtype)
    return Report((target,), len(made), size, beside(found))


def beside(found: Checkpoint) -> tuple[str, ...]:
    """Return the tensors of a checkpoint that belong to no part: junk, strangers, the second U-Net."""
    second = sorted(stored.take.names[0] for stored in found.ema.values())
    return (*found.ignored, *found.unknown, *second)


def file_towers(arch: Arch) -> tuple[TowerSpec, ...]:
    """Return the towers with the prefix and layout that single files of this family use."""
    known = FAMILIES.get(arch.name)
    if known is None or len(known.text) != len(arch.text):
        return arch.text
    return tuple(
        replace(tower, prefix=rule.prefix, layout=rule.layout)
        for tower, rule in zip(arch.text, known.text, strict=True)
    )


def file_part(name: str, part: Part, towers: tuple[TowerSpec, ...]) -> dict[str, Made]:
    """Return the tensors that a part (`unet`, `first_stage`, `text.0`, ...) makes of a single file, by their
    names there."""
    if not name.startswith("text."):
        prefix = UNET_PREFIX if name == "unet" else FIRST_STAGE_PREFIX
        return {prefix + native: Made((stored,), Take((native,))) for native, stored in part.items()}
    tower = towers[int(name.removeprefix("text."))]
    if tower.layout == "openclip":
        takes = keymap.to_openclip(part)
        return {
            tower.prefix + new: Made(tuple(part[native] for native in take.names), take)
            for new, take in takes.items()
        }
    beside = tower.prefix.removesuffix("text_model.")
    return {
        (beside if native == "text_projection.weight" else tower.prefix) + native: Made(
            (stored,), Take((native,))
        )
        for native, stored in part.items()
    }


def to_folder(found: Checkpoint, spec: Spec, target: Path, *, dtype: torch.dtype | None = None) -> Report:
    """Write a checkpoint as a folder in diffusers' layout, with its Spec in ddgen.json; `dtype` None keeps
    what is stored.

    Raises:
        ModelError: the checkpoint is damaged, or of a shape that diffusers cannot have. OutputError: the
            folder cannot be written.
    """
    arch, names = export.folder_arch(spec.arch)
    lean = replace(spec, arch=arch)
    jobs = [("unet", "unet", "diffusion_pytorch_model", export.unet_config(arch))]
    if "first_stage" in found.parts:
        jobs.append(
            ("first_stage", "vae", "diffusion_pytorch_model", export.first_stage_config(arch.first_stage))
        )
    jobs += [
        (f"text.{i}", name, "model", export.text_config(arch.text[i]))
        for i, name in enumerate(names)
        if f"text.{i}" in found.parts
    ]

    written, tensors, size, dropped = [], 0, 0, list(beside(found))
    for part, name, stem, config in jobs:
        made, left = _folder_part(part, found.part(part), arch)
        dropped += [f"{part}: {native}" for native in left]
        written.append(target / name / f"{stem}.safetensors")
        size += write(written[-1], made, {"format": "pt"}, dtype)
        tensors += len(made)
        _publish_json(target / name / "config.json", config)
    for i, name in enumerate(names):
        _write_tokenizer(target / name.replace("text_encoder", "tokenizer"), arch.text[i])
    for name, config in (
        ("scheduler/scheduler_config.json", export.scheduler_config(lean)),
        ("model_index.json", export.model_index(lean, names)),
        ("ddgen.json", json.loads(spec_to_json(lean))),
    ):
        if config is not None:
            _publish_json(target / name, config)
    return Report(tuple(written), tensors, size, tuple(sorted(dropped)), export.unsaid(lean))


def _folder_part(name: str, part: Part, arch: Arch) -> tuple[dict[str, Made], list[str]]:
    """Return a part's tensors under the names of its folder, and those that have no place there."""
    made: dict[str, Made] = {}
    left: list[str] = []
    if name == "unet":
        vector = "add_embedding" if arch.vector_ids else "class_embedding"
        table = keymap.unet_table(Outline.of(arch.unet), vector)
    elif isinstance(arch.first_stage, KLConfig):
        table = keymap.kl_table(arch.first_stage)
    for native, stored in part.items():
        rank = None
        if name.startswith("text."):
            config = arch.text[int(name.removeprefix("text."))].config
            last = f"encoder.layers.{config.layers}."
            unread = native.startswith(last) or (
                native == "text_projection.weight" and config.projection_dim is None
            )
            new = None if unread else native if native == "text_projection.weight" else "text_model." + native
        elif name == "first_stage" and isinstance(arch.first_stage, TinyConfig):
            new = keymap.tiny_name(native, layout="diffusers")
        else:
            new = keymap.rename(native, table)
            rank = keymap.kl_rank(native, "diffusers") if name == "first_stage" else None
        if new is None:
            left.append(native)
        else:
            made[new] = Made((stored,), Take((native,), rank=rank))
    return made, left


def _write_tokenizer(folder: Path, tower: TowerSpec) -> None:
    for name, data in Tokenizer().files().items():
        publish(folder / name, data, force=True)
    for name, config in export.tokenizer_configs(tower).items():
        _publish_json(folder / name, config)


def _publish_json(path: Path, data: dict[str, Any]) -> None:
    publish(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode(), force=True)


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
