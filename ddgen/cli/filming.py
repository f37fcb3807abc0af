"""`ddgen sample --filmstrip`: how one picture came out of noise, written beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddgen.app import filmstrip
from ddgen.cli import drawing
from ddgen.cli.sample_run import Draw
from ddgen.errors import UsageError
from ddgen.io import figures, metadata
from ddgen.request import Job

if TYPE_CHECKING:
    from ddgen.app.pipeline import OnStep, Pipeline


def prepare(
    output: str | None, steps: str | None, jobs: Sequence[Job], values: Mapping[str, Any], *, force: bool
) -> Draw | None:
    """Return what makes the picture and its filmstrip, after looking for all that stands against it; None: no
    filmstrip is asked for.

    output, steps: of --filmstrip and --filmstrip-steps.

    Raises:
        UsageError: several pictures, a step that the run does not have, a format that it cannot have.
        OutputError: a place that cannot be written, a name that is taken.
    """
    if output is None:
        if steps is not None:
            raise UsageError(
                "--filmstrip-steps is given without --filmstrip", "add --filmstrip FILE", id="usage.filmstrip"
            )
        return None
    if len(jobs) != 1:
        raise UsageError(
            f"--filmstrip shows one picture, not {len(jobs)}",
            "give one prompt and one seed",
            id="usage.filmstrip",
        )
    (job,) = jobs
    path = drawing.check(output, "filmstrip", tuple(figures.KINDS), force=force, flag="--filmstrip")
    if path is None:
        raise UsageError("--filmstrip needs a file", "use --filmstrip film.png", id="usage.filmstrip")
    if values["output"] and Path(values["output"]) == path:
        raise UsageError(
            "--filmstrip and --output name the same file", "choose another", id="usage.filmstrip"
        )
    kind = figures.KINDS[path.suffix.lower()]
    asked = None if steps is None else drawing.whole_numbers("--filmstrip-steps", steps, "1,10,25")
    count = filmstrip.COLUMNS if kind == "png" else filmstrip.FRAMES
    chosen = filmstrip.chosen(job.steps, asked, count)

    def draw(loaded: "Pipeline", batch: Sequence[Job], on_step: "OnStep") -> list[Any]:
        from ddgen.app import pipeline

        film = filmstrip.Filmstrip(loaded, job, chosen)

        def watch(step: Any, steps: int) -> None:
            film.step(step, steps)
            on_step(step, steps)

        pictures = pipeline.run(loaded, batch, watch, on_start=film.start)
        film.finish(pictures[0])
        write(film, path, kind, values, force=force)
        return pictures

    return draw


def write(
    film: filmstrip.Filmstrip, path: Path, kind: str, values: Mapping[str, Any], *, force: bool
) -> None:
    """Write the filmstrip, marked as an AI picture, and tell its path; not among the bytes of the picture
    itself."""
    mark = (
        metadata.Metadata()
        if values["metadata"] == "none"
        else metadata.Metadata(xmp=metadata.xmp_packet(""))
    )
    pages = [film.strip()] if kind == "png" else film.frames()
    data = figures.encode(pages, kind, mark, pause=120)
    drawing.write(path, data, "filmstrip", force=force, aside=values["output"] == "-")
