"""What a checkpoint is, told from headers and config files alone (and one small norm of SD 2). Torch-free."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddgen.weights import spec as specs
from ddgen.weights.arch import Arch
from ddgen.weights.layout import Checkpoint, open_checkpoint
from ddgen.weights.split import Part

MAX_METADATA = 200  # characters of a value that are shown


@dataclass(frozen=True)
class PartInfo:
    """One part. dtypes: element type -> number of tensors; size in bytes as stored."""

    name: str
    tensors: int
    parameters: int
    size: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """What a file or folder holds.

    family:     the Arch's name, "custom" for one we have no name for, None without a U-Net.
    prediction: what the checkpoint itself tells, None where it does not.
    unknown:    tensors that no part has a place for.
    """

    path: str
    family: str | None
    layout: str
    prediction: str | None
    parts: tuple[PartInfo, ...]
    ema: int
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]
    files: int
    size: int
    metadata: dict[str, str]
    arch: Arch | None

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; an architecture that we have no name for is spelt out."""
        data = asdict(self)
        data["parameters"] = self.parameters
        data["arch"] = None if self.arch is None else specs.arch_to_json(self.arch)
        return data


def inspect(path: str | Path) -> Inspection:
    """Describe a checkpoint.

    Raises:
        ModelError: missing, damaged, refused, or nothing that ddgen knows.
    """
    found = open_checkpoint(path)
    said = found.own.prediction if found.own is not None else found.said.get("prediction")
    return Inspection(
        path=str(found.path),
        family=None if found.arch is None else found.arch.name,
        layout=found.layout,
        prediction=said,
        parts=tuple(_part(name, part) for name, part in sorted(found.parts.items(), key=_order)),
        ema=len(found.ema),
        ignored=found.ignored,
        unknown=found.unknown,
        files=len(found.headers),
        size=sum(header.size for header in found.headers),
        metadata=_metadata(found),
        arch=found.arch,
    )


def _order(item: tuple[str, Part]) -> tuple[int, str]:
    return ("unet", "first_stage").index(item[0]) if item[0] in ("unet", "first_stage") else 2, item[0]


def _part(name: str, part: Part) -> PartInfo:
    seen = {
        (stored.header.path, item): stored.header.tensors[item]
        for stored in part.values()
        for item in stored.take.names
    }
    dtypes: dict[str, int] = {}
    for info in seen.values():
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + 1
    return PartInfo(
        name,
        len(seen),
        sum(info.count for info in seen.values()),
        sum(info.stop - info.start for info in seen.values()),
        dict(sorted(dtypes.items())),
    )


def _metadata(found: Checkpoint) -> dict[str, str]:
    shown = {}
    for key, value in sorted(found.metadata.items()):
        if key != specs.KEY:
            shown[key] = value if len(value) <= MAX_METADATA else value[:MAX_METADATA] + "..."
    return shown
