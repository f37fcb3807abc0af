"""Open a checkpoint, file or folder: what it is and holds, from headers and configs alone. Torch-free."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddgen.errors import ModelError
from ddgen.nets.config import PatchConfig
from ddgen.weights import keymap, spec
from ddgen.weights.arch import Arch
from ddgen.weights.folder import Folder, merged, read_folder, weight_headers
from ddgen.weights.header import Header, open_regular
from ddgen.weights.infer import edm_range, infer_arch, infer_prediction
from ddgen.weights.keymap import Take
from ddgen.weights.spec import Spec
from ddgen.weights.split import Part, Split, Stored, first_stage_part, split, stored_as, text_part, unet_part
from ddgen.weights.unpickle import read_weights_header


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    layout:   "ldm" or "diffusers", of a single file; "folder".
    arch:     what its own Spec, its config files or its shapes say; None for a file without a U-Net.
    parts:    "unet", "first_stage", "text.0", ... -> {native name: where it lies}.
    said:     what it tells beyond shapes: fields of a Spec ("prediction", "schedule", "zero_negative", ...).
    own:      the Spec in its header or its ddgen.json, if it was written by ddgen.
    """

    path: Path
    layout: str
    arch: Arch | None
    parts: dict[str, Part]
    metadata: dict[str, str]
    said: dict[str, Any] = field(default_factory=dict)
    own: Spec | None = None
    ema: Part = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    headers: tuple[Header, ...] = ()

    def part(self, name: str) -> Part:
        """Return a part's tensors.

        Raises:
            ModelError: the checkpoint does not hold it.
        """
        if name not in self.parts:
            held = ", ".join(sorted(self.parts)) or "nothing"
            message = f"model '{self.path.name}' holds no {name} (it holds {held})"
            raise ModelError(message, "give a whole checkpoint", id="model.parts")
        return self.parts[name]

    def averaged(self) -> "Checkpoint":
        """Return the checkpoint with its averaged U-Net (EMA) in place of the trained one, and the other way
        round.

        Raises:
            ModelError: it holds none, or a part of one.
        """
        trained = self.parts.get("unet", {})
        if not self.ema or trained.keys() - self.ema.keys():
            held = f"{len(self.ema)} of {len(trained)}" if self.ema else "no"
            raise ModelError(
                f"model '{self.path.name}' holds {held} averaged (EMA) tensors", "drop --ema", id="model.ema"
            )
        return replace(self, parts=self.parts | {"unet": self.ema}, ema=trained)


OPENED = 4
_opened: dict[Path, Checkpoint] = {}
"""The last files: a command asks for its model's several times."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint.

    Raises:
        ModelError: missing, damaged, refused, or nothing that ddgen knows.
    """
    path = Path(path)
    if path.is_dir():
        with _about(path):
            return _open_folder(read_folder(path))
    with open_regular(path) as (_, identity):
        known = _opened.get(path)
    if known is None or known.headers[0].identity != identity:
        with _about(path):
            known = _open_file(path)
        while len(_opened) >= OPENED:
            del _opened[next(iter(_opened))]
        _opened[path] = known
    return known


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Errors inside name what is opened. Its names, shapes and configs are a stranger's: what no network has
    is told in one line, wherever it was noticed."""
    try:
        yield
    except ModelError as error:
        if path.name in error.message:
            raise
        raise ModelError(f"model '{path.name}': {error.message}", error.hint, id=error.id) from None
    except (KeyError, IndexError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise ModelError(
            f"model '{path.name}' has names or shapes that no network has which ddgen knows",
            "get the file from its source again",
            id="model.layout",
        ) from error


def _open_file(path: Path) -> Checkpoint:
    header = read_weights_header(path)
    found = split(header)
    own = spec.spec_from_json(header.metadata[spec.KEY], path) if spec.KEY in header.metadata else None
    arch: Arch | None = None
    said: dict[str, Any] = {}
    if own is not None:
        arch = own.arch
    elif "unet" in found.parts:
        arch = infer_arch(found, header.tensors)
        said = _said_by_file(arch, found, header)
    return Checkpoint(
        path,
        found.layout,
        arch,
        found.parts,
        header.metadata,
        said,
        own,
        found.ema,
        found.ignored,
        found.unknown,
        (header,),
    )


def _said_by_file(arch: Arch, found: Split, header: Header) -> dict[str, Any]:
    said: dict[str, Any] = {}
    prediction = infer_prediction(arch, found, header)
    if prediction is not None:
        said["prediction"] = prediction
    if "ztsnr" in header.tensors:
        said["schedule"] = spec.SCALED_LINEAR | {"zero_terminal_snr": True}
    elif "edm_vpred.sigma_max" in header.tensors:
        said["schedule"] = {"kind": "edm", **edm_range(header)}
    elif "v_pred" in header.tensors:
        said["schedule"] = dict(spec.SCALED_LINEAR)
    return said


def _open_folder(folder: Folder) -> Checkpoint:
    path, arch = folder.path, folder.arch
    headers: list[Header] = []
    parts: dict[str, Part] = {}
    left: set[str] = set()

    def load(
        name: str,
        where: str,
        stem: str,
        build: Callable[[Mapping[str, Header], Callable[[Take], Stored]], Part],
    ) -> None:
        found = weight_headers(path / where, stem)
        names = merged(found)

        def stored(take: Take) -> Stored:
            return stored_as(names[take.names[0]], take)

        parts[name] = build(names, stored)
        taken = {item for one in parts[name].values() for item in one.take.names}
        left.update(f"{where}/{item}" for item in set(names) - taken)
        headers.extend(found)

    load("unet", "unet", "diffusion_pytorch_model", lambda names, stored: unet_part(names, "", stored)[1])
    if (path / "vae").is_dir():
        load(
            "first_stage",
            "vae",
            "diffusion_pytorch_model",
            lambda names, stored: first_stage_part(names, "", stored)[1],
        )
    for i, name in enumerate(folder.text_folders):
        load(f"text.{i}", name, "model", _text_of_folder)

    own, said = None, _said_by_folder(folder)
    if "format" in folder.settings:
        own = spec.spec_from_json(json.dumps(folder.settings), path)
        arch = own.arch
    elif folder.settings:
        arch = _arch_by_settings(arch, folder.settings)
    junk = tuple(sorted(name for name in left if keymap.ignored(name.partition("/")[2])))
    unknown = tuple(sorted(left.difference(junk)))
    return Checkpoint(path, "folder", arch, parts, {}, said, own, {}, junk, unknown, tuple(headers))


def _text_of_folder(names: Mapping[str, Header], stored: Callable[[Take], Stored]) -> Part:
    if any(name.startswith("text_model.") for name in names):
        return text_part(names, "text_model.", "hf", stored)
    return text_part(names, "", "hf", stored) | {
        name: stored(Take((name,))) for name in names if name == "text_projection.weight"
    }


def _said_by_folder(folder: Folder) -> dict[str, Any]:
    said: dict[str, Any] = {}
    scheduler = folder.scheduler
    words = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    if scheduler.get("prediction_type") in words:
        said["prediction"] = words[scheduler["prediction_type"]]
    if "EDM" in str(scheduler.get("_class_name", "")):
        said["prediction"] = "edm"
        said["schedule"] = {
            "kind": "edm",
            "sigma_min": float(scheduler.get("sigma_min", 0.002)),
            "sigma_max": float(scheduler.get("sigma_max", 80.0)),
        }
        said["sigma_data"] = float(scheduler.get("sigma_data", 0.5))
    elif scheduler.get("beta_schedule") in ("scaled_linear", "linear"):
        said["schedule"] = {
            "kind": scheduler["beta_schedule"],
            "beta_start": float(scheduler.get("beta_start", 0.0001)),
            "beta_end": float(scheduler.get("beta_end", 0.02)),
        }
        if scheduler.get("rescale_betas_zero_snr") is True:
            said["schedule"]["zero_terminal_snr"] = True
    if isinstance(folder.index.get("force_zeros_for_empty_prompt"), bool):
        said["zero_negative"] = folder.index["force_zeros_for_empty_prompt"]
    return said | _said_by_settings(folder.settings)


def _said_by_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a hand-written ddgen.json (one without "format") says beyond shapes; prose in its tables is
    left out."""
    said = {name: settings[name] for name in ("name", "prediction", "x0_clamp") if name in settings}
    if isinstance(settings.get("schedule"), dict):
        said["schedule"] = {
            key: value
            for key, value in settings["schedule"].items()
            if key not in ("formula", "network_time")
        }
    defaults = dict(settings.get("defaults", {})) if isinstance(settings.get("defaults"), dict) else {}
    if isinstance(settings.get("image_size"), list) and len(settings["image_size"]) == 2:
        defaults["width"], defaults["height"] = settings["image_size"]
    return said | ({"defaults": defaults} if defaults else {})


def _arch_by_settings(arch: Arch, settings: dict[str, Any]) -> Arch:
    stage = settings.get("first_stage", {})
    if stage.get("kind") == "patch":
        arch = replace(
            arch, first_stage=PatchConfig(factor=int(stage["factor"]), in_channels=int(stage["channels"]))
        )
    count = int(settings.get("position_channels", {}).get("count", 0))
    if count:
        unet = replace(arch.unet, in_channels=arch.unet.in_channels - count, position_channels=count)
        arch = replace(arch, unet=unet)
    return arch
