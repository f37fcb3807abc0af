"""The report of an evaluation: one page that needs nothing else and runs nothing.

Every text goes through html.escape, pictures are data, and a Content-Security-Policy forbids scripts and connections.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

from ddgen.app import verdicts
from ddgen.app.evaluate import Figures, ordered, trusted
from ddgen.app.keying import Pixels
from ddgen.app.metrics import interval

SHOWN = 96  # pixels


def page(figures: Sequence[Figures], checked: dict[str, tuple[int, int]]) -> bytes:
    """Return the page. checked: the evaluator's own right verdicts, by kind."""
    head = files("ddgen.app").joinpath("report.html").read_text(encoding="utf-8")
    return "".join((head, *_tables(figures, checked), *_pictures(figures), "</body></html>\n")).encode()


def _tables(figures: Sequence[Figures], checked: dict[str, tuple[int, int]]) -> Iterator[str]:
    yield "<h1>ddgen eval</h1><h2>Does it follow the prompt?</h2>"
    yield _line("th", ["", "evaluator on real pictures", *(item.model for item in figures)], opening="<table>")
    kinds = {kind: None for item in figures for kind in item.right}
    for kind in ordered(kinds):
        right, total = checked.get(kind, (0, 0))
        own = f"{right / total:.0%} of {total}" if total else "not checked"
        yield _line("td", [kind, own, *(_accuracy(item.right.get(kind, (0, 0)), trusted(checked, kind)) for item in figures)])
    yield "</table><p class=dim>In brackets: the 95 % interval (Wilson). Where the evaluator is right on less than 90 % of real pictures, "
    yield "no accuracy is reported. It was trained on emoji sets that the models were never shown.</p>"
    yield "<h2>Does it vary, and is it more than a copy?</h2>"
    yield _line("th", ["", *(item.model for item in figures)], opening="<table>")
    measures = {
        "precision": lambda item: "-" if item.prdc is None else f"{item.prdc.precision:.2f}",
        "recall": lambda item: "-" if item.prdc is None else f"{item.prdc.recall:.2f}",
        "density": lambda item: "-" if item.prdc is None else f"{item.prdc.density:.2f}",
        "coverage": lambda item: "-" if item.prdc is None else f"{item.prdc.coverage:.2f}",
        "distance of two pictures of one prompt": lambda item: f"{item.intra:.3f} (training pictures of one thing: {item.intra_real:.3f})",
        "nearer to a training picture than the 1st percentile among these": lambda item: f"{item.copies:.0%}",
        "CLIP score (embedded scorer)": lambda item: f"{item.clip:.3f}",
        "Vendi score of one prompt": lambda item: "; ".join(
            f"{prompt}: {made:.2f} of {seeds} seeds (training: {real:.2f})" for prompt, (made, real, seeds) in item.variety.items()
        ),
    }
    for name, read in measures.items():
        yield _line("td", [name, *(read(item) for item in figures)])
    yield "</table>"


def _line(cell: str, texts: Sequence[str], opening: str = "") -> str:
    return f"{opening}<tr>" + "".join(f"<{cell} class=n>{escape(text)}</{cell}>" for text in texts) + "</tr>"


def _accuracy(counts: tuple[int, int], known: bool) -> str:
    right, total = counts
    if not total:
        return "-"
    if not known:
        return "no accuracy reported"
    low, high = interval(right, total)
    return f"{right / total:.0%} of {total} ({low:.0%} to {high:.0%})"


def _pictures(figures: Sequence[Figures]) -> Iterator[str]:
    for item in figures:
        yield f"<h2>{escape(item.model)}</h2>"
        before = ""
        for row, pictures, seen, nearest in item.shown:
            if row.kind != before:
                before = row.kind
                yield f"<h3>{escape(row.kind)}</h3>"
            yield f"<div class=row><p>{escape(row.prompt)}</p>"
            for picture, found in zip(pictures, seen, strict=True):
                good = found == verdicts.wanted(row)
                yield _figure(picture, "" if good else found, "right" if good else "wrong")
            if nearest is not None:
                yield _figure(nearest, "nearest training picture of the first", "real")
            yield "</div>"


def _figure(picture: Pixels, words: str, kind: str) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure class={kind}><img alt="" src="data:image/webp;base64,{data}"><figcaption>{escape(words)}</figcaption></figure>'
