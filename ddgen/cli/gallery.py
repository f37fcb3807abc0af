"""`ddgen gallery`: one self-contained, offline HTML page of a directory of pictures."""

from pathlib import Path
from typing import Annotated

import typer

from ddgen.app import gallery as pages
from ddgen.cli import console, flags, process
from ddgen.errors import DdgenError, InputError, OutputError, UsageError
from ddgen.io import files

EXAMPLES = """Examples:
  ddgen gallery out/
  ddgen gallery out/ -o page.html --title "Tulips, 20 and 30 steps"
"""

Directory = Annotated[str, typer.Argument(metavar="DIR", help="A directory of pictures.", show_default=False)]
Output = Annotated[
    str | None,
    flags.value(flags.OUTPUT, "FILE", "The page; '-' is standard output. [DIR/index.html]", "--output", "-o"),
]
Title = Annotated[
    str | None, flags.value(flags.OUTPUT, "TEXT", "Above the pictures. [the directory's name]", "--title")
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("gallery", epilog=EXAMPLES)(gallery)


def gallery(
    directory: Directory,
    output: Output = None,
    title: Title = None,
    force: flags.Force = False,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Write a page to look at a directory of pictures, with a filter, all settings and commands."""
    console.configure(color=color if color is not None else "auto", quiet=quiet, verbose=0, json=False)
    root = Path(directory)
    if not root.is_dir():
        what = "is no directory" if root.exists() else "no such directory"
        raise InputError(f"'{directory}': {what}", "give a directory of pictures", id="input.gallery")
    pictures = pages.find_pictures(root)
    if not pictures:
        raise InputError(
            f"'{directory}' holds no pictures",
            "make some: ddgen batch prompts.txt -o " + directory,
            id="input.gallery",
        )
    target = root / "index.html" if output is None else Path(output)
    own = (
        output is None and target.is_file() and b"<title>ddgen gallery</title>" in target.read_bytes()[:4096]
    )
    if output != "-":
        files.refuse_special(target)
        if files.exists(target) and not (force or own):
            raise OutputError(
                f"'{target}' exists", "use --force to replace it, or another --output", id="output.exists"
            )
    elif process.is_terminal(1):
        raise UsageError(
            "refusing to write a page to a terminal", "use --output FILE", id="usage.stdout-terminal"
        )

    def skipped(path: Path, error: DdgenError) -> None:
        console.warn(f"left out: {error.message}")

    name = title if title is not None else root.resolve().name or "pictures"
    data = pages.page(root, pictures, name, skipped)
    if output == "-":
        console.out_bytes(data)
        return
    files.publish(target, data, force=force or own)
    console.out(str(target))
