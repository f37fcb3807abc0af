"""Names of models -> Specs, from weights.toml. Torch-free.

    [sd15]
    aliases = ["sd1.5"]
    arch = "SD15"                       # a constant of arch.py; left out where the file's own header tells
    repo = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    file = "v1-5-pruned-emaonly.safetensors"
    prediction = "eps"
    licence = "creativeml-openrail-m"
    defaults = { width = 512, height = 512, steps = 25, guidance = 7.5 }

Instead of repo and file: `path` (relative to the weights.toml that says so) or `packaged` (inside ddgen).
Entries of --weights-file, $DDGEN_WEIGHTS and the user's config directory, in this order, go before the
packaged ones; the current directory is never read.
"""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ddgen.errors import InputError, ModelError, nearest
from ddgen.weights import spec
from ddgen.weights.arch import FAMILIES, Arch
from ddgen.weights.layout import Checkpoint, open_checkpoint
from ddgen.weights.spec import Defaults, Source, Spec

PACKAGE = Path(__file__).resolve().parents[1]
VARIABLE = "DDGEN_WEIGHTS"
FILE = "weights.toml"


@dataclass(frozen=True)
class Entry:
    """One table of a weights.toml, checked but not resolved.

    kind: "model", or "vae": an autoencoder alone. said: the plain fields of a Spec that it sets.
    """

    name: str
    home: Path
    kind: str = "model"
    aliases: tuple[str, ...] = ()
    arch: str | None = None
    said: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    source: Source = field(default_factory=Source)
    commercial: bool = True
    default: bool = False
    title: str = ""


_SAID = (
    "prediction",
    "schedule",
    "sigma_data",
    "x0_clamp",
    "zero_negative",
    "distilled",
    "licence",
    "credits",
    "note",
)
_SOURCE = ("path", "packaged", "repo", "file", "revision", "sha256", "size")
_OWN = ("kind", "aliases", "arch", "defaults", "commercial", "default", "title")
_TEXT = (
    "kind",
    "arch",
    "path",
    "packaged",
    "repo",
    "file",
    "revision",
    "sha256",
    "title",
    "prediction",
    "licence",
    "credits",
    "note",
)
_FLAGS = ("commercial", "default", "zero_negative", "distilled")


def weights_files(weights_file: str | Path | None = None) -> list[Path]:
    """Return the weights.toml files to read, the first to win first.

    Raises:
        InputError: one that was named is not there.
    """
    found = []
    for named, origin in (
        (weights_file, "--weights-file"),
        (os.environ.get(VARIABLE) or None, f"${VARIABLE}"),
    ):
        if named is not None:
            if not Path(named).is_file():
                raise InputError(
                    f"{origin} '{named}' is not a file", "check the path", id="input.weights-file"
                )
            found.append(Path(named))
    user = user_config_dir() / FILE
    if user.is_file():
        found.append(user)
    return [*found, packaged_file()]


def packaged_file() -> Path:
    """Return the weights.toml that came with ddgen: package data of a wheel, or at the root of the
    checkout."""
    inside = PACKAGE / FILE
    return inside if inside.is_file() else PACKAGE.parent / FILE


def user_config_dir() -> Path:
    """Return the directory of the user's own settings."""
    import platformdirs

    return Path(platformdirs.user_config_dir("ddgen", appauthor=False))


def entries(weights_file: str | Path | None = None) -> dict[str, Entry]:
    """Return every known entry by name; an entry of an earlier file hides one of the same name.

    Raises:
        InputError: a file that is not TOML, or an entry with a wrong field.
    """
    found: dict[str, Entry] = {}
    for path in weights_files(weights_file):
        for entry in read_entries(path):
            found.setdefault(entry.name, entry)
    return found


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of one weights.toml.

    Raises:
        InputError: not TOML, or an entry with a wrong field.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"'{path}' cannot be read: {error}", "mend the file", id="input.weights-file"
        ) from None
    for name, table in tables.items():
        yield _entry(path, name, table)


def _entry(path: Path, name: str, table: Any) -> Entry:
    def wrong(reason: str) -> InputError:
        return InputError(f"'{path}': entry '{name}' {reason}", "mend the file", id="input.weights-file")

    if not isinstance(table, dict):
        raise wrong("is not a table")
    known = (*_SAID, *_SOURCE, *_OWN)
    for key, value in table.items():
        if key not in known:
            close = nearest(key, known)
            raise wrong(f"has an unknown field '{key}'" + (f"; did you mean '{close}'?" if close else ""))
        if (key in _TEXT and not isinstance(value, str)) or (key in _FLAGS and not isinstance(value, bool)):
            raise wrong(f"has a wrong '{key}'")
    if "arch" in table and table["arch"] not in FAMILIES:
        raise wrong(f"has arch '{table['arch']}', known are {', '.join(FAMILIES)}")
    aliases = table.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise wrong("has aliases that are not a list of names")
    digest = table.get("sha256")
    if digest is not None and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        raise wrong("has a 'sha256' that is not 64 hex digits")
    size = table.get("size")
    if size is not None and (type(size) is not int or size <= 0):
        raise wrong("has a 'size' that is not a number of bytes")
    if sum(key in table for key in ("path", "packaged", "repo")) != 1:
        raise wrong("must have exactly one of path, packaged, repo")
    kind = table.get("kind", "model")
    if kind not in ("model", "vae"):
        raise wrong(f"has kind '{kind}', known are model and vae")
    if kind == "model" and "repo" in table and "arch" not in table:
        raise wrong("has a repo but no arch")
    local = PACKAGE / table["packaged"] if "packaged" in table else None
    if "path" in table:
        local = path.parent / Path(table["path"]).expanduser()
    try:
        said = {key: table[key] for key in _SAID if key in table}
        spec.check_fields(said, Path(name))
        spec.defaults_from(table.get("defaults", {}), Path(name))
    except ModelError as error:
        raise wrong(error.message.partition(": ")[2]) from None
    return Entry(
        name,
        path,
        kind,
        tuple(aliases),
        table.get("arch"),
        said,
        table.get("defaults", {}),
        Source(local, table.get("repo"), table.get("file"), table.get("revision"), digest, size),
        table.get("commercial", True),
        table.get("default", False),
        table.get("title", ""),
    )


def default_name(weights_file: str | Path | None = None) -> str:
    """Return the name of the model that is used when none is asked for."""
    return next(entry.name for entry in entries(weights_file).values() if entry.default)


def find(model: str | None = None, *, weights_file: str | Path | None = None) -> Spec:
    """Return the Spec of a model: a name or alias of weights.toml, or the path of a file or folder; None is
    the default.

    Raises:
        ModelError: an unknown name (the nearest one is named), or a path that holds no model.
        InputError: a wrong weights.toml.
    """
    known = entries(weights_file)
    if model is None:
        model = default_name(weights_file)
    entry = known.get(model) or next((item for item in known.values() if model in item.aliases), None)
    if entry is not None:
        return resolve(entry)
    if looks_like_path(model):
        return describe(Path(model).expanduser(), known)
    close = nearest(model, [*known, *(alias for item in known.values() for alias in item.aliases)])
    hint = (f"did you mean '{close}'? " if close else "") + "('ddgen models' lists all)"
    raise ModelError(f"model '{model}' is not in the registry", hint, id="model.unknown-name")


def looks_like_path(model: str) -> bool:
    """Whether `model` is meant as a path: it has a separator or a weights suffix, or is there (a registry
    name goes first)."""
    suffixes = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
    return (
        os.sep in model
        or model.startswith(("~", "."))
        or model.lower().endswith(suffixes)
        or os.path.exists(model)
    )


def resolve(entry: Entry) -> Spec:
    """Return the Spec of an entry; one without `arch` is read from its file's header, and the entry's fields
    go before it.

    Raises:
        ModelError: the entry's file is missing or tells no Spec.
    """
    if entry.kind != "model":
        raise ModelError(
            f"model '{entry.name}' is an autoencoder alone",
            f"give it with --vae {entry.name}",
            id="model.kind",
        )
    if entry.arch is not None:
        base = Spec(entry.name, FAMILIES[entry.arch])
    else:
        assert entry.source.path is not None  # _entry asks for an arch with a repo
        base = describe(entry.source.path, {})
    defaults = replace(base.defaults, **entry.defaults)
    return replace(base, name=entry.name, defaults=defaults, source=entry.source, **entry.said)


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
        base = resolve(entry)
        return (
            replace(base, licence="", credits="", note="", distilled=False)
            if entry in fitting
            else replace(
                base, licence="", credits="", note="", distilled=False, schedule=dict(spec.SCALED_LINEAR)
            )
        )
    width = 64 * arch.first_stage.factor
    return Spec(arch.name, arch, defaults=Defaults(width=width, height=width))


def spec_field_names() -> tuple[str, ...]:
    """Return the names a weights.toml entry may use."""
    return (*_SAID, *_SOURCE, *_OWN, *(item.name for item in fields(Defaults)))
