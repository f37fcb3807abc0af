"""`ddgen models`: what is known and what is here; look into a checkpoint, check it, change its layout."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ddgen.cli import console, flags, pulling
from ddgen.cli.progress import MODES
from ddgen.errors import OutputError, UsageError, choose
from ddgen.weights import hub, registry
from ddgen.weights.adapter_header import AdapterInspection, inspect_adapter
from ddgen.weights.inspect import Inspection, inspect

EXAMPLES = """Examples:
  ddgen models
  ddgen models pull sd15
  ddgen models inspect model.safetensors
  ddgen models convert model.safetensors folder/
  ddgen models verify sticker
"""
LAYOUTS = ("auto", "file", "folder")

Name = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A name of 'ddgen models', a file or a folder.", show_default=False),
]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name of 'ddgen models', or org/repo[@revision][:file].", show_default=False
    ),
]
File = Annotated[Path, typer.Argument(metavar="PATH", help="A file or a folder.", show_default=False)]
Hash = Annotated[bool, flags.switch(flags.TALK, "Also read the files for their sha256.", "--hash")]
Layout = Annotated[
    str,
    flags.value(
        flags.OUTPUT, "NAME", "file, folder, auto. [auto: a file if TARGET ends in .safetensors]", "--layout"
    ),
]
Target = Annotated[
    Path, typer.Argument(metavar="TARGET", help="A .safetensors file or a folder.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Declare the command and those below it."""
    below = typer.Typer(
        invoke_without_command=True,
        rich_markup_mode=None,
        help="List, fetch, verify and convert models.",
        epilog=EXAMPLES,
    )
    below.callback()(models)
    below.command("list")(list_)
    below.command("inspect")(inspect_)
    below.command("convert")(convert)
    below.command("verify")(verify)
    below.command("pull")(pull)
    below.command("remove")(remove)
    below.command("path")(path)
    app.add_typer(below, name="models")


def models(context: typer.Context, json: flags.Json = False, debug: flags.Debug = False) -> None:
    """List, fetch, verify and convert models; without a command, list them."""
    if context.invoked_subcommand is None:
        list_(json=json)


def list_(
    weights_file: flags.WeightsFile = None, json: flags.Json = False, debug: flags.Debug = False
) -> None:
    """List the models of weights.toml: name, size on this machine, licence."""
    rows = []
    for entry in registry.entries(weights_file).values():
        size = _size(hub.located(entry.source))
        if json:
            console.out_json(_entry_json(entry, size))
            continue
        here = _human(size) if size is not None else "-"
        licence = _licence(entry, size is not None) + ("" if entry.commercial else " (non-commercial)")
        rows.append((entry.name, here, licence, entry.title))
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
    for row in rows:
        console.out(
            "  ".join(
                (*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3])
            ).rstrip()
        )


def _licence(entry: registry.Entry, here: bool) -> str:
    """Return the licence that weights.toml gives, else the one in the file's own header."""
    said = entry.said.get("licence", "")
    return said if said or not here else registry.resolve(entry).licence.partition(" (")[0]


def _entry_json(entry: registry.Entry, size: int | None) -> dict[str, Any]:
    source = entry.source
    return {
        "type": "model",
        "name": entry.name,
        "kind": entry.kind,
        "aliases": list(entry.aliases),
        "title": entry.title,
        "arch": entry.arch,
        "licence": _licence(entry, size is not None),
        "commercial": entry.commercial,
        "repo": source.repo,
        "file": source.file,
        "path": None if (path := hub.located(source)) is None else str(path),
        "size": size,
    }


def _size(path: Path | None) -> int | None:
    """Return the bytes of a file, or of the files of a folder, None if it is not there."""
    if path is None or not path.exists():
        return None
    return (
        path.stat().st_size
        if path.is_file()
        else sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    )


def _human(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def inspect_(path: File, hash: Hash = False, json: flags.Json = False, debug: flags.Debug = False) -> None:
    """Tell what a checkpoint, LoRA or embedding is, from its header alone.

    Family, layout, parts, dtypes, parameters, ranks, metadata."""
    adapter = inspect_adapter(path)
    if adapter is not None:
        _tell_adapter(adapter, hash=hash, json=json)
        return
    found = inspect(path)
    digests = _digests(path) if hash else {}
    if json:
        console.out_json({"type": "inspection", **found.to_json(), **({"sha256": digests} if hash else {})})
        return
    for line in _lines(found):
        console.out(line)
    for name, digest in digests.items():
        console.out(f"sha256      {digest}  {name}")


def _tell_adapter(found: AdapterInspection, *, hash: bool, json: bool) -> None:
    from ddgen.weights.digest import digest

    digests = {Path(found.path).name: digest(found.path, fresh=True)} if hash else {}
    if json:
        console.out_json({"type": "inspection", **asdict(found), **({"sha256": digests} if hash else {})})
        return
    kinds = ", ".join(f"{count} {name}" for name, count in found.kinds.items())
    ranks = ", ".join(f"{rank} ({count} modules)" for rank, count in found.ranks.items())
    parts = ", ".join(f"{count} {name}" for name, count in found.modules.items())
    lines = [
        ("kind", found.kind + (f" ({kinds})" if kinds else "")),
        ("family", found.family or "not told by the file"),
        ("size", f"{_human(found.size)}, {found.tensors} tensors"),
        ("parameters", f"{found.parameters:,} ({', '.join(found.dtypes)})"),
        ("rank", ranks),
        ("modules", parts),
        ("vectors", str(found.vectors or "")),
        ("words", ", ".join(found.words)),
        ("tags", ", ".join(found.tags)),
        ("unknown", _some(found.unknown)),
    ]
    for key, value in [*lines, *(("metadata", f"{key} = {value}") for key, value in found.metadata.items())]:
        if value:
            console.out(f"{key:<12}{value}")
    for name, sha256 in digests.items():
        console.out(f"sha256      {sha256}  {name}")


def _lines(found: Inspection) -> list[str]:
    lines = [
        f"family      {found.family or 'none (no U-Net)'}",
        f"layout      {found.layout}",
        f"size        {_human(found.size)} in {found.files} file{'s' if found.files > 1 else ''}",
        f"prediction  {found.prediction or 'not told by the file'}",
        f"parameters  {found.parameters:,}",
    ]
    for part in found.parts:
        kinds = ", ".join(f"{count} {name}" for name, count in part.dtypes.items())
        lines.append(f"  {part.name:<12}{part.parameters:>14,}  {part.tensors} tensors ({kinds})")
    if found.ema:
        lines.append(f"  {'ema':<12}{'':>14}  {found.ema} tensors, a second U-Net")
    if found.ignored:
        lines.append(f"ignored     {_some(found.ignored)}")
    if found.unknown:
        lines.append(f"unknown     {_some(found.unknown)}")
    return [*lines, *(f"metadata    {key} = {value}" for key, value in found.metadata.items())]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" (+{len(names) - 3} more)" if len(names) > 3 else "")


def _digests(path: Path) -> dict[str, str]:
    from ddgen.weights.digest import digest
    from ddgen.weights.layout import open_checkpoint

    return {header.path.name: digest(header.path, fresh=True) for header in open_checkpoint(path).headers}


def convert(
    model: Name,
    target: Target,
    layout: Layout = "auto",
    dtype: flags.Dtype = None,
    ema: flags.Ema = False,
    force: flags.Force = False,
    weights_file: flags.WeightsFile = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Write a model in the other layout: one file, or a folder as diffusers reads it.

    Dtypes stay unless --dtype is given. What the other layout has no place for is named."""
    from ddgen.weights import convert as converting
    from ddgen.weights.checkpoint import open_checkpoint

    choose("layout", layout, LAYOUTS)
    kept = converting.parse_dtype(dtype)
    to_file = target.suffix == ".safetensors" if layout == "auto" else layout == "file"
    if not force and (target.exists() if to_file else target.is_dir() and any(target.iterdir())):
        raise OutputError(f"'{target}' exists", "use --force to replace it", id="output.exists")
    spec = registry.find(model, weights_file=weights_file)
    if spec.source.path is None:
        raise registry.absent(spec.name)
    write = converting.to_file if to_file else converting.to_folder
    found = open_checkpoint(spec.source.path)
    report = write(found.averaged() if ema else found, spec, target, dtype=kept)
    if report.dropped:
        console.warn(
            f"{len(report.dropped)} tensors have no place in what was written: {_some(report.dropped)}"
        )
    for line in report.unsaid:
        console.warn(f"other programs cannot know: {line}")
    if json:
        record = {"type": "converted", "path": str(target), "files": [str(item) for item in report.written]}
        console.out_json(
            record
            | {"tensors": report.tensors, "bytes": report.size}
            | {"dropped": list(report.dropped), "unsaid": list(report.unsaid)}
        )
    else:
        console.out(str(target))


def verify(
    model: Name, weights_file: flags.WeightsFile = None, json: flags.Json = False, debug: flags.Debug = False
) -> None:
    """Read all of a model: digests, names and shapes, and that every number is finite."""
    from ddgen.app.verify import verify as check

    for checked in check(registry.find(model, weights_file=weights_file)):
        if json:
            console.out_json({"type": "checked", "what": checked.what, "found": checked.found})
        else:
            console.out(f"{checked.what:<12} {checked.found}")


def pull(
    model: Reference,
    progress: flags.Progress = None,
    offline: flags.Offline = False,
    weights_file: flags.WeightsFile = None,
    debug: flags.Debug = False,
) -> None:
    """Fetch a model from the hub, or check that the copy that is here is whole; print where it lies."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
    mode = choose("progress", progress or "auto", MODES)
    known = registry.entries(weights_file)
    source, entry = registry.hub_source(model, known), registry.entry_of(model, known)
    if source is None:
        console.out(str(_place(model, weights_file)))
        return
    if entry is None:
        console.out(str(pulling.pull(source, model, mode)))
    else:
        licence = entry.said.get("licence", "")
        console.out(str(pulling.pull(source, entry.name, mode, licence, commercial=entry.commercial)))


def remove(
    model: Reference,
    weights_file: flags.WeightsFile = None,
    json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Delete a fetched model from this machine; models that came in another way are left alone."""
    from ddgen.weights.fetch import remove as forget

    source = registry.hub_source(model, registry.entries(weights_file))
    if source is None:
        path = _place(model, weights_file)
        raise UsageError(
            f"model '{model}' did not come from the hub", f"it lies at '{path}'", id="usage.remove"
        )
    freed = forget(source, model)
    if json:
        console.out_json({"type": "removed", "model": model, "bytes": freed})
    else:
        console.out(f"{_human(freed)} freed")


def path(model: Reference, weights_file: flags.WeightsFile = None, debug: flags.Debug = False) -> None:
    """Print where a model's weights lie."""
    console.out(str(_place(model, weights_file)))


def _place(model: str, weights_file: str | None) -> Path:
    """Return where a model's weights lie; an autoencoder's too.

    Raises:
        ModelError: an unknown name, or not on this machine.
    """
    known = registry.entries(weights_file)
    entry = registry.entry_of(model, known)
    if entry is not None and entry.kind == "vae":
        return registry.find_vae(model, weights_file=weights_file)
    found = registry.find(model, weights_file=weights_file).source.path
    if found is None:
        raise registry.absent(model)
    return found
