"""`ddgen meta`: what pictures say about themselves, by any of five tools: shown, as JSON, taken out, put into
other words.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from ddgen.cli import console, flags
from ddgen.errors import InputError, OutputError, UsageError, choose
from ddgen.io import containers, files, foreign, translate
from ddgen.io.metadata import Metadata

MAX_BYTES = 256 * 2**20
EXAMPLES = """Examples:
  ddgen meta show apple.png
  ddgen meta json out/*.png | jq .settings.seed
  ddgen meta scrub photo.jpg -o clean.jpg
  ddgen meta scrub out/*.png -o clean/
  ddgen meta convert comfy.png --to a1111 -o converted/
"""

Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="PNG, JPEG or WebP files.", show_default=False)
]
Output = Annotated[
    str | None,
    flags.value(
        flags.OUTPUT,
        "WHERE",
        "A directory for the new files, under the same names; of one picture also a file.",
        "--output",
        "-o",
    ),
]
Force = Annotated[
    bool,
    flags.switch(flags.OUTPUT, "Replace files; without --output, the files themselves.", "--force", "-f"),
]
To = Annotated[str, flags.value(flags.OUTPUT, "NAME", "ddgen, a1111, both. [both]", "--to")]
Quiet = Annotated[bool, flags.switch(flags.TALK, "Nothing but errors.", "--quiet", "-q")]
Debug = Annotated[bool, flags.switch(flags.TALK, "Show tracebacks.", "--debug")]


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(
        help="Show, convert or remove what pictures say about themselves.",
        rich_markup_mode=None,
        epilog=EXAMPLES,
    )
    group.command("show")(show)
    group.command("json")(json)
    group.command("scrub")(scrub)
    group.command("convert")(convert)
    app.add_typer(group, name="meta")


def show(paths: Files, quiet: Quiet = False, debug: Debug = False) -> None:
    """Show the prompt and settings of pictures, whichever tool wrote them."""
    for path, data in read_all(paths):
        found = interpreted(path, data)
        console.out(
            f"{path}: {found.tool}" if found is not None else f"{path}: says nothing that ddgen can read"
        )
        if found is None:
            continue
        rows = {"prompt": found.prompt, "negative": found.negative, **found.settings, **found.rest}
        for name, value in rows.items():
            if value not in ("", None):
                console.out(
                    f"  {name:<18} {value if isinstance(value, str) else repr(value)}".replace(
                        "\n", "\n" + " " * 21
                    )
                )


def json(paths: Files, quiet: Quiet = False, debug: Debug = False) -> None:
    """Print one JSON object a picture: the tool, prompt, settings in ddgen's words, and every raw text."""
    for path, data in read_all(paths):
        texts = containers.read_texts(data)
        found = foreign.interpret(texts)
        record: dict[str, object] = {"type": "metadata", "path": str(path), "tool": None}
        if found is not None:
            record |= {"tool": found.tool, "prompt": found.prompt, "negative": found.negative}
            record |= {"settings": found.settings, "rest": found.rest}
        console.out_json({**record, "texts": texts})


def scrub(
    paths: Files, output: Output = None, force: Force = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Take out everything that pictures say about themselves; pixels, colour profile and orientation stay."""
    rewrite(paths, output, force, lambda path, data: Metadata())


def convert(
    paths: Files,
    to: To = "both",
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say the same in the words of ddgen, of A1111, or both."""
    choose("form", to, translate.TARGETS)
    from ddgen.diffusion.samplers import SAMPLERS

    labels = {name: info.label for name, info in SAMPLERS.items()}

    def texts(path: Path, data: bytes) -> Metadata:
        found = interpreted(path, data)
        if found is None:
            raise InputError(
                f"'{path}' says nothing that ddgen can read", "see 'ddgen meta json'", id="input.metadata"
            )
        lost = [name for name in found.rest if name not in ("model", "Model", "Model hash", "RNG", "Version")]
        if lost and not found.record and not quiet:
            console.warn(f"'{path}': not carried over: {', '.join(lost[:12])}")
        return translate.texts_for(found, to, labels)

    rewrite(paths, output, force, texts)


def rewrite(
    paths: list[str], output: str | None, force: bool, texts: Callable[[Path, bytes], Metadata]
) -> None:
    """Write each file with other texts; all inputs are read and understood before the first is written, one
    at a time.

    Raises:
        UsageError: no place to write to, or one that does not fit. OutputError: a file that exists.
    """
    if output is None and not force:
        raise UsageError(
            "this would change the files themselves", "give --output DIR, or --force", id="usage.in-place"
        )
    file = as_file(output, paths)
    if output is not None:
        files.probe_directory(output if file is None else file.parent)
    for path, data in read_all(paths):
        try:
            made = containers.replace_texts(data, texts(path, data))
        except InputError as error:
            raise named(path, error) from None
        target = file or (path if output is None else Path(output) / path.name)
        if file is not None:
            check_kind(file, containers.kind_of(data))
        try:
            files.publish(target, made, force=force)
        except FileExistsError:
            raise OutputError(f"'{target}' exists", "use --force to replace it", id="output.exists") from None
        console.out(str(target))


KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def as_file(output: str | None, paths: list[str]) -> Path | None:
    """Return the file that --output names, None where it is a directory.

    Raises:
        UsageError: a file for several pictures.
    """
    if output is None or output.endswith("/") or Path(output).is_dir():
        return None
    if Path(output).suffix.lower() not in KINDS:
        return None
    if len(paths) > 1:
        what = f"{len(paths)} pictures do not fit into '{output}'"
        raise UsageError(what, "give a directory, as in --output clean/", id="usage.output-several")
    return Path(output)


def check_kind(file: Path, kind: str) -> None:
    """Refuse a name for another kind of file: metadata is written anew, pixels are not.

    Raises:
        UsageError: it is one.
    """
    if KINDS[file.suffix.lower()] != kind:
        mend = f"name it so, as in --output {file.with_suffix('.jpg' if kind == 'jpeg' else f'.{kind}').name}"
        raise UsageError(f"--output '{file}': the picture stays a {kind.upper()} file", mend, id="usage.format")


def interpreted(path: Path, data: bytes) -> foreign.Found | None:
    """Return what a picture says.

    Raises:
        InputError: no picture, or a damaged one.
    """
    try:
        return foreign.interpret(containers.read_texts(data))
    except InputError as error:
        raise named(path, error) from None


def read_all(paths: list[str]) -> Iterator[tuple[Path, bytes]]:
    """Yield each file's path and bytes.

    Raises:
        InputError: missing, unreadable, too large, or no picture.
    """
    for text in paths:
        path = Path(text)
        try:
            if not path.is_file():
                missing = not path.exists()
                raise InputError(
                    f"image '{path}': {'no such file' if missing else 'not a file'}",
                    "check the path",
                    id="input.image-missing",
                )
            if path.stat().st_size > MAX_BYTES:
                raise InputError(
                    f"image '{path}': over {MAX_BYTES // 2**20} MiB", "scale it down", id="input.image-size"
                )
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            words = (
                error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not a file name"
            )
            raise InputError(f"image '{text}': {words}", "check the path", id="input.image-missing") from None
        try:
            containers.read_texts(data)
        except InputError as error:
            raise named(path, error) from None
        yield path, data


def named(path: Path, error: InputError) -> InputError:
    """Return the error with the picture's name in front, once."""
    if error.message.startswith(("image '", "'")):
        return error
    return InputError(f"image '{path}': {error.message}", error.hint, id=error.id)
