"""A Spec: all that is needed to run a checkpoint; as JSON, it is in every file that ddgen writes. Torch-free.

    metadata["ddgen"] = {"format": 1, "name": ..., "arch": {...}, "prediction": ..., "schedule": {...}, ...}
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddgen.errors import ModelError, nearest
from ddgen.text.config import TowerSpec
from ddgen.weights.arch import Arch, arch_from_json, arch_to_json

FORMAT = 1
KEY = "ddgen"  # where the JSON lies in a header's metadata
FILE = "ddgen.json"  # and in a folder
PREDICTIONS = ("eps", "v", "x0", "flow", "edm")

# Stable Diffusion's training schedule; every family of it shares these numbers.
SCALED_LINEAR = {"kind": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Defaults:
    """What is used where the request says nothing. width, height in pixels; guidance 1 = off."""

    width: int = 512
    height: int = 512
    steps: int = 25
    guidance: float = 7.5
    guidance_rescale: float = 0.0
    sampler: str = "dpmpp_2m"
    spacing: str = "karras"
    eta: float | None = None


@dataclass(frozen=True)
class Source:
    """Where weights come from: a local path, or a repository of the hub and a file in it (no file: the whole
    folder layout)."""

    path: Path | None = None
    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    sha256: str | None = None
    size: int | None = None  # bytes


@dataclass(frozen=True)
class Addition:
    """A file that changes a model for this run: kind "lora" (times `weight`), "embedding" or "vae"."""

    kind: str
    path: Path
    weight: float = 1.0

    @property
    def label(self) -> str:
        """What digests of a picture's weights call it; no directory, so that equal runs say equal things."""
        strength = f" x {self.weight:g}" if self.kind == "lora" else ""
        return f"{self.kind}:{self.path.name}{strength}"


@dataclass(frozen=True)
class Spec:
    """A checkpoint, ready to be assembled.

    prediction:    what the network outputs, a row of diffusion/prediction.py.
    schedule:      what diffusion/schedule.py makes a Schedule from.
    sigma_data:    deviation of x0 that the "edm" prediction was scaled for; 1 for the others.
    x0_clamp:      None, or {"kind": "static", "min", "max"} | {"kind": "dynamic", ...}: networks on pixels
        burn without it.
    ground:        None, or {"kind": "key", "suffix", "red", "green", "blue"}: words that, put behind a prompt, make
        the model draw on a ground of that colour, for pictures that are to be cut out.
    zero_negative: without a negative prompt, the unconditional side is zeros instead of the encoded empty
        text (SDXL base).
    distilled:     trained to run without guidance.
    additions:     what this run puts on the model; never written with it.
    clip_skip:     which text layer from the end this run reads at least, 1 = the last; None: the model's own.
    changes:       what this run's flags changed about the rules, for the metadata: clip_skip, prediction, ema.
    ema:           this run takes the averaged U-Net that a file holds beside the trained one.
    refiner:       the model that this run hands over to, after the fraction `refiner_start` of the times.
    """

    name: str
    arch: Arch
    prediction: str = "eps"
    schedule: dict[str, Any] = field(default_factory=lambda: dict(SCALED_LINEAR))
    sigma_data: float = 1.0
    x0_clamp: dict[str, Any] | None = None
    ground: dict[str, Any] | None = None
    zero_negative: bool = False
    distilled: bool = False
    defaults: Defaults = field(default_factory=Defaults)
    source: Source = field(default_factory=Source)
    additions: tuple[Addition, ...] = ()
    clip_skip: int | None = None
    ema: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    refiner: "Spec | None" = None
    refiner_start: float = 0.8
    licence: str = ""
    credits: str = ""
    note: str = ""

    @property
    def divisor(self) -> int:
        """Width and height must be multiples of this, in pixels."""
        return self.arch.first_stage.factor * self.arch.unet.divisor

    @property
    def towers(self) -> tuple[TowerSpec, ...]:
        """The text towers as this run reads them: never later than the model itself does."""
        skip = 1 if self.clip_skip is None else self.clip_skip
        return tuple(dataclasses.replace(tower, layer=min(tower.layer, -skip)) for tower in self.arch.text)


_PLAIN = (
    "name",
    "prediction",
    "schedule",
    "sigma_data",
    "x0_clamp",
    "ground",
    "zero_negative",
    "distilled",
    "licence",
    "credits",
    "note",
)


def spec_to_json(spec: Spec) -> str:
    """Return the Spec as one line of JSON; where its weights came from is left out, so that equal models give
    equal bytes."""
    data: dict[str, Any] = {"format": FORMAT}
    for name in _PLAIN:
        value = getattr(spec, name)
        if value is not None and value is not False and value != "":
            data[name] = value
    data["arch"] = arch_to_json(spec.arch)
    data["defaults"] = dataclasses.asdict(spec.defaults)
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def spec_from_json(text: str, path: Path) -> Spec:
    """Read the Spec of the file or folder at `path` from its JSON.

    Raises:
        ModelError: not JSON, made by a later ddgen, an unknown field, a wrong type.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad(path, "is not JSON") from None
    if not isinstance(data, dict):
        raise _bad(path, "is not a JSON object")
    if data.get("format") != FORMAT:
        raise ModelError(
            f"model '{path.name}' was written by another version of ddgen", "update ddgen", id="model.spec"
        )
    fields = {name: data.pop(name) for name in _PLAIN if name in data}
    arch = arch_from_json(data.pop("arch", None))
    defaults = defaults_from(data.pop("defaults", {}), path)
    data.pop("format")
    if data:
        raise _bad(path, f"has an unknown field {next(iter(data))[:40]!a}")
    if "name" not in fields:
        raise _bad(path, "lacks a name")
    check_fields(fields, path)
    return Spec(arch=arch, defaults=defaults, source=Source(path=path), **fields)


def check_fields(fields: dict[str, Any], path: Path) -> None:
    """Refuse values of a wrong type among the plain fields of a Spec.

    Raises:
        ModelError: naming the field.
    """
    for name, value in fields.items():
        if name in ("schedule", "x0_clamp"):
            good = _flat(value) or (name == "x0_clamp" and value is None)
        elif name == "ground":
            good = value is None or (_flat(value) and _is_key(value))
        elif name == "sigma_data":
            good = type(value) in (int, float) and 0 < value <= 100
        elif name in ("zero_negative", "distilled"):
            good = isinstance(value, bool)
        else:
            good = isinstance(value, str) and len(value) <= 2000
        if not good:
            raise _bad(path, f"has a wrong '{name}'")
    prediction = fields.get("prediction", "eps")
    if prediction not in PREDICTIONS:
        raise _bad(path, f"has prediction {prediction[:20]!a}, known are {', '.join(PREDICTIONS)}")


def defaults_from(data: Any, path: Path, base: Defaults | None = None) -> Defaults:
    """Read Defaults from a JSON or TOML table, over those of `base`.

    Raises:
        ModelError: an unknown name or a wrong type.
    """
    base = Defaults() if base is None else base
    if not isinstance(data, dict):
        raise _bad(path, "has defaults that are not a table")
    types: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,)}
    kinds = {item.name: types.get(item.type, (int, float)) for item in dataclasses.fields(Defaults)}
    for name, value in data.items():
        if name not in kinds:
            close = nearest(name, kinds)
            raise _bad(
                path,
                f"has an unknown default {name[:40]!a}" + (f" (did you mean '{close}'?)" if close else ""),
            )
        if not (type(value) in kinds[name] or (name == "eta" and value is None)):
            raise _bad(path, f"has a wrong default '{name}'")
        if isinstance(value, int | float) and not 0 <= value <= 1e5:
            raise _bad(path, f"has a default '{name}' out of range")
    return dataclasses.replace(base, **data)


def _flat(value: Any) -> bool:
    """Whether `value` is a small table of plain values."""
    return (
        isinstance(value, dict)
        and len(value) <= 16
        and all(type(item) in (str, int, float, bool) for item in value.values())
        and "kind" in value
    )


def _is_key(value: dict[str, Any]) -> bool:
    """Whether a flat table names a colour that can be keyed out, and the words that ask for it."""
    shades = [value.get(name) for name in ("red", "green", "blue")]
    return (
        value.keys() == {"kind", "suffix", "red", "green", "blue"}
        and value["kind"] == "key"
        and isinstance(value["suffix"], str)
        and all(type(shade) is int and 0 <= shade <= 255 for shade in shades)
        and max(shades) - min(shades) >= 128
    )


def _bad(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"the settings of model '{path.name}' cannot be used: the table {reason}",
        "check the file",
        id="model.spec",
    )
