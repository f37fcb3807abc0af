"""Where the figures of `noise`, `compare`, `explain`, `plot` and `sample --filmstrip` go: looked at before
the work, written after it."""

from pathlib import Path

from ddgen.cli import console, process
from ddgen.errors import UsageError
from ddgen.io import files


def check(
    output: str | None, name: str, suffixes: tuple[str, ...], *, force: bool, flag: str = "--output"
) -> Path | None:
    """Return the file that a figure goes to (None: standard output); without `output`, a free name in the
    current directory.

    suffixes: those that the command can write, the usual one first.

    Raises:
        UsageError: a suffix that is not among them. OutputError: a place that cannot be written, a name that
            is taken.
    """
    from ddgen.app.naming import taken

    if output == "-":
        if process.is_terminal(1):
            raise UsageError(
                "refusing to write a picture to a terminal", "use --output FILE", id="usage.stdout-terminal"
            )
        if console.manners.json:
            raise UsageError(
                "--json and --output '-' both want standard output", "drop one of them", id="usage.stdout"
            )
        return None
    if output is None or output.endswith("/") or Path(output).is_dir():
        path = _free(Path(output or "") / (name + suffixes[0]))
    else:
        path = Path(output)
    if path.suffix.lower() not in suffixes:
        found = f"unknown format '{path.suffix}'" if path.suffix else "names no format"
        raise UsageError(
            f"{flag} '{output}': {found}", f"use a file in {', '.join(suffixes)}", id="usage.format"
        )
    files.refuse_special(path)
    if files.exists(path) and not force:
        raise taken(path)
    files.probe_directory(path.parent)
    return path


def write(
    path: Path | None, data: bytes, kind: str, *, force: bool, aside: bool = False, **more: object
) -> None:
    """Write a figure and tell its path, as a line or as JSON with what else there is to tell; aside: on
    standard error."""
    from ddgen.app.naming import taken

    if path is None:
        console.out_bytes(data)
        return
    try:
        files.publish(path, data, force=force)
    except FileExistsError as error:
        raise taken(path) from error
    if aside:
        console.say(f"ddgen: {path}")
    elif console.manners.json:
        console.out_json({"type": kind, "path": str(path), **more})
    else:
        console.out(str(path))


def numbers(flag: str, text: str, example: str) -> tuple[float, ...]:
    """Read a list of numbers, as `example`.

    Raises:
        UsageError: something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{flag} '{text}' is not a list of numbers", f"use some as {example}", id="usage.value"
        ) from None


def whole_numbers(flag: str, text: str, example: str) -> tuple[int, ...]:
    """Read a list of whole numbers, as `example`.

    Raises:
        UsageError: something else.
    """
    found = numbers(flag, text, example)
    if any(value != value or value % 1 for value in found):
        raise UsageError(
            f"{flag} '{text}' is not a list of whole numbers", f"use some as {example}", id="usage.value"
        )
    return tuple(int(value) for value in found)


def _free(wanted: Path) -> Path:
    path, number = wanted, 1
    while files.exists(path):
        number += 1
        path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
    return path
