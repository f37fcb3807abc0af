"""Names of models and paths of files -> Specs. Torch-free.

A name or an alias of weights.toml (entries.py), `org/repo[@revision][:file]` of the hub (hub.py), the path
of a file or folder, or the name of one in the user's model_dirs (shelves.py): one with a Spec of its own says
everything itself, any other is described by its shapes and config files and takes the defaults of the first
entry of its family.
"""

import os
from dataclasses import replace
from pathlib import Path

from ddgen.errors import ModelError, nearest
from ddgen.weights import hub, shelves, spec
from ddgen.weights.arch import FAMILIES, Arch
from ddgen.weights.entries import (
    PACKAGE,
    VARIABLE,
    Entry,
    entries,
    packaged_file,
    read_entries,
    user_config_dir,
    weights_files,
)
from ddgen.weights.layout import Checkpoint, open_checkpoint
from ddgen.weights.spec import Defaults, Source, Spec

__all__ = [
    "PACKAGE",
    "VARIABLE",
    "Entry",
    "Spec",
    "default_name",
    "describe",
    "entries",
    "entry_of",
    "find",
    "find_vae",
    "held",
    "hub_source",
    "packaged_file",
    "read_entries",
    "resolve",
    "user_config_dir",
    "weights_files",
]

SUFFIXES = shelves.SUFFIXES


def default_name(weights_file: str | Path | None = None) -> str:
    """Return the name of the model that is used when none is asked for."""
    return next(entry.name for entry in entries(weights_file).values() if entry.default)


def find(model: str | None = None, *, weights_file: str | Path | None = None) -> Spec:
    """Return the Spec of a model: a name or alias of weights.toml, the path of a file or folder, or the name
    of a file in the user's model_dirs; None is the default.

    Raises:
        ModelError: an unknown name (the nearest one is named), one that two files have, or a path that holds
        no model.
        InputError: a wrong weights.toml.
    """
    known = entries(weights_file)
    if model is None:
        model = default_name(weights_file)
    entry = entry_of(model, known)
    if entry is not None:
        return resolve(entry)
    source = hub_source(model, known)
    if source is not None:
        path = hub.located(source)
        if path is None:
            raise absent(model)
        return replace(describe(path, known), name=model, source=replace(source, path=path))
    shelved = None if os.path.exists(Path(model).expanduser()) else shelves.search("model_dirs", model)
    if shelved is not None or looks_like_path(model):
        return describe(shelved or Path(model).expanduser(), known)
    aliases = [alias for item in known.values() for alias in item.aliases]
    close = nearest(model, [*known, *aliases, *shelves.names("model_dirs")])
    hint = f"did you mean '{close}'? ('ddgen models' lists all)" if close else "'ddgen models' lists all"
    raise ModelError(f"model '{model}' is not in the registry", hint, id="model.unknown-name")


def entry_of(model: str, known: dict[str, Entry]) -> Entry | None:
    """Return the entry of a name or an alias."""
    return known.get(model) or next((item for item in known.values() if model in item.aliases), None)


def hub_source(model: str, known: dict[str, Entry]) -> Source | None:
    """Return the place on the hub that a name, an alias or `org/repo[@revision][:file]` stands for; None if
    it stands for none."""
    entry = entry_of(model, known)
    if entry is not None:
        return entry.source if entry.source.repo is not None else None
    if os.path.exists(Path(model).expanduser()) or model.lower().endswith(SUFFIXES) and ":" not in model:
        return None
    return hub.parse_reference(model)


def find_vae(name: str, *, weights_file: str | Path | None = None) -> Path:
    """Return the file of an autoencoder: an entry of kind "vae", a path, or a name in the user's model_dirs.

    Raises:
        ModelError: an unknown name, or one that is not on this machine.
    """
    known = entries(weights_file)
    entry = entry_of(name, known)
    source = hub_source(name, known)
    path = (
        entry.source.path
        if entry is not None and source is None
        else hub.located(source)
        if source is not None
        else None
    )
    if entry is not None or source is not None:
        if path is None:
            raise absent(name)
        return path
    shelved = None if os.path.exists(Path(name).expanduser()) else shelves.search("model_dirs", name)
    if shelved is not None or looks_like_path(name):
        return shelved or Path(name).expanduser()
    close = nearest(name, [item.name for item in known.values() if item.kind == "vae"])
    hint = f"did you mean '{close}'?" if close else "give the path of a file, or a name of 'ddgen models'"
    raise ModelError(f"autoencoder '{name}' is not in the registry", hint, id="model.unknown-name")


def absent(name: str) -> ModelError:
    """Return the error of a model that would have to be fetched first."""
    return ModelError(
        f"model '{name}' is not on this machine", f"get it with: ddgen models pull {name}", id="model.absent"
    )


def looks_like_path(model: str) -> bool:
    """Whether `model` is meant as a path: it has a separator or a weights suffix, or is there (a registry
    name goes first)."""
    return (
        os.sep in model
        or model.startswith(("~", "."))
        or model.lower().endswith(SUFFIXES)
        or os.path.exists(model)
    )


def resolve(entry: Entry) -> Spec:
    """Return the Spec of an entry, with the place of its weights if they are on this machine.

    An entry without `arch` is read from its file's header; the entry's fields go before it.

    Raises:
        ModelError: the entry's file is missing, damaged, or tells no Spec.
    """
    if entry.kind != "model":
        raise ModelError(
            f"model '{entry.name}' is an autoencoder alone",
            f"give it with --vae {entry.name}",
            id="model.kind",
        )
    if entry.arch is None:
        assert entry.source.path is not None  # _entry asks for an arch with a repo
        return _declared(entry, describe(entry.source.path, {}))
    source = replace(entry.source, path=hub.located(entry.source))
    return held(_declared(entry, Spec(entry.name, FAMILIES[entry.arch], source=source)))


def _declared(entry: Entry, base: Spec) -> Spec:
    """Return `base` with what the entry says."""
    defaults = replace(base.defaults, **entry.defaults)
    source = replace(entry.source, path=base.source.path)
    return replace(base, name=entry.name, defaults=defaults, source=source, **entry.said)


def held(spec: Spec) -> Spec:
    """Return a family's Spec with the Arch as the copy on this machine, if any, holds it: towers may lack an
    unused block, or lie elsewhere in the file."""
    path = spec.source.path
    found = None if path is None else open_checkpoint(path).arch
    if path is None or found is None or found.unet != spec.arch.unet:
        return spec  # loading will say what differs
    stage = found.first_stage if path.is_dir() else spec.arch.first_stage
    return replace(spec, arch=replace(spec.arch, first_stage=stage, text=found.text or spec.arch.text))


def describe(path: Path, known: dict[str, Entry]) -> Spec:
    """Return the Spec of a file or folder: its own, or the first entry's of the same architecture with what
    the file itself says.

    Raises:
        ModelError: missing, damaged, or without a U-Net.
    """
    found = open_checkpoint(path)
    if found.own is not None:
        return replace(found.own, source=Source(path=path))
    if found.arch is None:
        held = ", ".join(sorted(found.parts))
        raise ModelError(
            f"model '{path.name}' holds only {held}, no U-Net", "give a whole checkpoint", id="model.parts"
        )
    base = _like(found, found.arch, known)
    said = dict(found.said)
    defaults = spec.defaults_from(said.pop("defaults", {}), path, base.defaults)
    said.pop("name", None)
    spec.check_fields(said, path)
    return replace(base, name=path.stem, arch=found.arch, defaults=defaults, source=Source(path=path), **said)


def _like(found: Checkpoint, arch: Arch, known: dict[str, Entry]) -> Spec:
    """Return the Spec of the first known entry with this architecture and, if the file tells, this
    prediction."""
    family = [entry for entry in known.values() if entry.arch == arch.name]
    wanted = found.said.get("prediction")
    fitting = [entry for entry in family if wanted in (None, entry.said.get("prediction", "eps"))]
    for entry in fitting or family:
        base = _declared(entry, Spec(entry.name, arch))
        schedule = base.schedule if entry in fitting else dict(spec.SCALED_LINEAR)
        return replace(base, licence="", credits="", note="", distilled=False, schedule=schedule)
    width = 64 * arch.first_stage.factor
    return Spec(arch.name, arch, defaults=Defaults(width=width, height=width))
