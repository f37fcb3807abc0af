"""The model behind a picture, as its run had changed it: adapters, embeddings, another autoencoder, other rules.
Torch-free.

    what the picture says  ->  what adjust() is told

A picture names files without their directories; they are looked for by name in the user's own folders, and
taken only if their sha256 is the one that the picture says. No path is ever read from a picture.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddgen.app.adjust import adjust
from ddgen.errors import ModelError
from ddgen.io.foreign import Found
from ddgen.weights import shelves
from ddgen.weights.digest import digest
from ddgen.weights.spec import PREDICTIONS, Spec

_FILE = re.compile(r"(lora|embedding|vae):(.+?)(?: x (-?[0-9.]+(?:e-?[0-9]+)?))?")
_REFINER = re.compile(r"refiner from ([0-9.]+): .*")
_SHELF = {"lora": "lora_dirs", "embedding": "lora_dirs", "vae": "model_dirs"}


@dataclass(frozen=True)
class Named:
    """A file that a picture was made with. weight: of a LoRA, as it was typed; "" of the others."""

    kind: str
    name: str
    weight: str
    sha256: str

    @property
    def flag(self) -> str:
        """What to type for it."""
        return f"--{self.kind} {self.name}" + (f":{self.weight}" if self.weight else "")


def spec_of(found: Found, spec: Spec, given: Mapping[str, Any], weights_file: str | None = None) -> Spec:
    """Return the Spec of a model as a picture's run had it.

    given: what the user says instead, by the names of adjust(); a kind of file that is given is not looked for.

    Raises:
        ModelError: a file that the picture was made with is not here. UsageError: a value out of range.
    """
    said: dict[str, Any] = {**rules_said(found), **given}
    for kind, many in (("lora", "loras"), ("embedding", "embeddings"), ("vae", "vae")):
        if many not in given:
            files = [located(item) for item in files_said(found) if item.kind == kind]
            if files:
                said[many] = files[0] if kind == "vae" else files
    start = refiner_said(found)
    if start and "refiner" not in given:
        raise ModelError(
            "it was made with a refiner", f"give it with --refiner NAME --refiner-start {start}", id="model.refiner"
        )
    if start:
        said = {"refiner_start": float(start)} | said
    return adjust(spec, **said, weights_file=weights_file) if said else spec


def rules_said(found: Found) -> dict[str, Any]:
    """Return what the run had changed about the model's rules: clip_skip, prediction, ema."""
    said = found.record.get("changes") if found.record else {"clip_skip": found.rest.get("Clip skip")}
    if not isinstance(said, dict):
        return {}
    rules: dict[str, Any] = {}
    skip = str(said.get("clip_skip", ""))
    if re.fullmatch(r"[1-9][0-9]?", skip) and (found.record or skip != "1"):
        rules["clip_skip"] = int(skip)
    if said.get("prediction") in PREDICTIONS:
        rules["prediction"] = said["prediction"]
    if said.get("ema") is True:
        rules["ema"] = True
    return rules


def files_said(found: Found) -> Sequence[Named]:
    """Return the files beside the model's own that the picture's record names."""
    weights = found.record.get("weights") if found.record else None
    items = weights.items() if isinstance(weights, dict) else ()
    matches = ((_FILE.fullmatch(str(label)), str(sha256)) for label, sha256 in items)
    return [Named(match[1], match[2], match[3] or "", sha256) for match, sha256 in matches if match is not None]


def refiner_said(found: Found) -> str:
    """Return where a refiner had taken over, "" if there was none."""
    weights = found.record.get("weights") if found.record else None
    labels = map(_REFINER.fullmatch, weights) if isinstance(weights, dict) else ()
    return next((match[1] for match in labels if match is not None), "")


def located(item: Named) -> str:
    """Return a file by its name in the user's folders, as adjust() reads it.

    Raises:
        ModelError: none of that name, or another one.
    """
    path = shelves.search(_SHELF[item.kind], item.name)
    if path is None:
        raise ModelError(f"it was made with {item.kind} '{item.name}'", f"give it with {item.flag}", id="model.missing")
    if digest(path) != item.sha256:
        raise ModelError(
            f"it was made with another {item.kind} '{item.name}' than '{path}'",
            f"give it with {item.flag}",
            id="model.sha256",
        )
    return str(path) + (f":{item.weight}" if item.weight else "")
