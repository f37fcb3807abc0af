"""`ddgen data build stickers DIR`: make the training data of the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

from ddgen.app.concepts import concepts
from ddgen.cli import console
from ddgen.cli.progress import make_progress
from ddgen.errors import choose
from ddgen.io import files

DATA_SETS = ("stickers",)
EXAMPLES = """Examples:
  ddgen data build stickers data/stickers
  ddgen train data/stickers --out runs/mine --minutes 10
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Build the embedded model's training data."
    )
    group.command("build", epilog=EXAMPLES)(build)
    group.callback()(lambda: None)
    app.add_typer(group, name="data")


def build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The data set: stickers.", show_default=False)],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.", show_default=False)],
    packages: Annotated[
        Path | None,
        typer.Option(
            "--packages",
            metavar="DIR",
            help="Tarballs of npm pack; without, they are fetched.",
            show_default=False,
        ),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--concepts",
            metavar="FILE",
            help="What to draw, as ddgen/app/concepts.txt: lines 'ICON | name, other name | recolour scenes'. [those of the model that ships]",
            show_default=False,
        ),
    ] = None,
    progress: Annotated[
        str, typer.Option("--progress", metavar="MODE", help="auto, bar, log, json or none.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Render emoji of three free sets with captions, licences and digests.

    Needs resvg-py (pip install 'ddgen[train]') and, unless --packages is given, npm and a network.
    """
    console.manners.quiet = quiet
    choose("data set", name, DATA_SETS)
    files.probe_directory(directory)
    chosen = list(concepts() if listed is None else concepts(listed))
    from ddgen.app import stickers

    made, bar = 0, None
    try:
        for built in stickers.build(directory, packages, listed=chosen):
            if bar is None:
                bar = make_progress(progress, built.total, "pictures").__enter__()
            made += 1
            bar.advance(1, built.file)
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)
    console.say(f"ddgen: {made} pictures of {len(chosen)} concepts")
    console.out(str(directory / "metadata.jsonl"))
