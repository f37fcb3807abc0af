"""The report of an evaluation, the models side by side: as text, and as one page that needs nothing else and runs nothing.

Every text goes through html.escape, pictures are data, and a Content-Security-Policy forbids scripts and connections.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

from ddgen.app import verdicts
from ddgen.app.evaluate import Figures, ordered, question, trusted
from ddgen.app.keying import Pixels
from ddgen.app.metrics import interval

SHOWN = 96  # pixels


def page(figures: Sequence[Figures], checked: dict[str, tuple[int, int]]) -> bytes:
    """Return the page. checked: the evaluator's own right verdicts, by kind."""
    head = files("ddgen.app").joinpath("report.html").read_text(encoding="utf-8")
    return "".join((head, *_tables(figures, checked), *_pictures(figures), "</body></html>\n")).encode()


def lines(figures: Sequence[Figures], checked: dict[str, tuple[int, int]]) -> Iterator[str]:
    """Yield the tables as text, the models side by side."""
    for table in (_follows(figures, checked), _varies(figures)):
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        for row in table:
            yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        yield ""


def _follows(figures: Sequence[Figures], checked: dict[str, tuple[int, int]]) -> list[list[str]]:
    """Return a heading and a row for each kind of the suite."""
    table = [["asked for", "evaluator on real pictures", *(item.model for item in figures)]]
    kinds = {kind: None for item in figures for kind in item.right}
    for kind in ordered(kinds):
        right, total = checked.get(question(kind), (0, 0))
        own = f"{right / total:.0%} of {total}" if total else "not checked"
        known = trusted(checked, kind)
        table.append([kind, own, *(_accuracy(item.right.get(kind, (0, 0)), known) for item in figures)])
    return table


def _varies(figures: Sequence[Figures]) -> list[list[str]]:
    """Return a heading and a row for each measure of variety and likeness; what each means: docs/training.md."""
    first = figures[0]
    table = [["measure", "training pictures", *(item.model for item in figures)]]
    for name in ("precision", "recall", "density", "coverage"):
        table.append([name, "", *("-" if item.prdc is None else f"{getattr(item.prdc, name):.2f}" for item in figures)])
    table += [
        [
            "distance inside a prompt, or a thing",
            f"{first.intra_real:.3f}",
            *("-" if item.intra is None else f"{item.intra:.3f}" for item in figures),
        ],
        ["nearer than their 1st percentile", "1%", *(f"{item.copies:.0%}" for item in figures)],
        ["CLIP score (embedded scorer)", "", *(f"{item.clip:.3f}" for item in figures)],
    ]
    for prompt, (_, real, seeds) in first.variety.items():
        made = [f"{item.variety[prompt][0]:.2f}" for item in figures]
        table.append([f"Vendi score, {seeds} seeds: {prompt}", f"{real:.2f}", *made])
    return table


def _tables(figures: Sequence[Figures], checked: dict[str, tuple[int, int]]) -> Iterator[str]:
    yield f"<h1>ddgen eval: {escape(', '.join(item.model for item in figures))}</h1><h2>Does it follow the prompt?</h2>"
    yield from _table(_follows(figures, checked))
    yield "<p class=dim>In brackets: the 95 % interval (Wilson). Where the evaluator is right on less than 90 % of real pictures, "
    yield "no accuracy is reported. It was trained on emoji sets that the models were never shown.</p>"
    yield "<h2>Does it vary, and is it more than a copy?</h2>"
    yield from _table(_varies(figures))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "<table>"
    for number, row in enumerate(rows):
        cell = "td" if number else "th"
        yield "<tr>" + "".join(f"<{cell} class=n>{escape(text)}</{cell}>" for text in row) + "</tr>"
    yield "</table>"


def _accuracy(counts: tuple[int, int], known: bool) -> str:
    right, total = counts
    if not total:
        return "-"
    if not known:
        return "no accuracy reported"
    low, high = interval(right, total)
    return f"{right / total:.0%} of {total} ({low:.0%} to {high:.0%})"


def _pictures(figures: Sequence[Figures]) -> Iterator[str]:
    """Yield the pictures by row of the suite, one model's under the other's."""
    before = ""
    for same_row in zip(*(item.shown for item in figures), strict=True):
        row = same_row[0][0]
        if row.kind != before:
            before = row.kind
            yield f"<h3>{escape(row.kind)}</h3>"
        for item, (_, pictures, seen, nearest) in zip(figures, same_row, strict=True):
            of = f"<br><span class=dim>{escape(item.model)}</span>" if len(figures) > 1 else ""
            yield f"<div class=row><p>{escape(row.prompt)}{of}</p>"
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
