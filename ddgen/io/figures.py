"""Figures: pictures with words beside them, for the commands that show how diffusion works. Torch-free.

    Cell     a picture (H, W, 3) uint8 and the lines of text under it
    table    rows of cells with a title, labels above the columns and beside the rows
    encode   one PNG, or several frames as an animated GIF or WebP

Small pictures are enlarged by whole numbers, pixel by pixel, so that a picture of 64 pixels and its label can
both be read; large ones are scaled down until the sheet stays below 32 megapixels.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddgen.io.images import animate, png_info
from ddgen.io.metadata import Metadata

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

KINDS = {".png": "png", ".gif": "gif", ".webp": "webp"}
MAX_PIXELS = 32 * 2**20
LAST_PAUSE, ANIMATED_QUALITY = 2000, 85  # milliseconds of the last frame; of WebP
LEAST = 160  # pixels: a picture's longer side, so that a label fits under it
KEYWORD = "ddgen-figure"  # the PNG text that tells how a figure was made, as JSON
INK, FAINT, FRAME, PAPER = "#111111", "#5a5a5a", "#cccccc", "white"
# Fonts with more scripts than the one in Pillow, which has ASCII only; found where the system keeps its
# fonts.
WIDE_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf")


@dataclass(frozen=True)
class Cell:
    """One picture of a figure; the first of its lines is set darker than the others."""

    pixels: Pixels
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A part of a figure: rows of cells. above: a label per column; beside: one per row; title: over the
    whole block."""

    rows: Sequence[Sequence[Cell]]
    title: str = ""
    above: Sequence[str] = ()
    beside: Sequence[str] = ()


def table(blocks: Sequence[Block], title: str = "", notes: Sequence[str] = ()) -> Pixels:
    """Return a figure: the title, the blocks one below the other, and lines of explanation at the end."""
    cells = [cell for block in blocks for row in block.rows for cell in row]
    columns = max(len(row) for block in blocks for row in block.rows)
    factor = _factor(cells)
    width, height = (max(round(side * factor) for side in sides) for sides in _sides(cells))
    size = max(13, min(30, round(width / 12)))
    gap, line = size, round(size * 1.35)
    labels = [label for block in blocks for label in block.beside]
    left = gap + (
        min(_longest(labels, size), max(round(width * 0.6), _longest(_words(labels), size))) + gap
        if labels
        else 0
    )
    across = left + columns * (width + gap)
    pen = _Pen(across, gap, line, size)
    if title:
        pen.text(gap, title, round(size * 1.3), INK, across - 2 * gap)
        pen.down(round(line * 1.5))
    for block in blocks:
        if block.title:
            pen.text(gap, block.title, size, INK, across - 2 * gap)
            pen.down(round(line * 1.2))
        if block.above:
            for column, label in enumerate(block.above):
                pen.text(left + column * (width + gap), label, size, INK, width, centre=True)
            pen.down(round(line * 1.1))
        for i, row in enumerate(block.rows):
            under = max(len(cell.lines) for cell in row)
            if block.beside:
                pen.block(gap, block.beside[i], size, left - 2 * gap + 1, height)
            for column, cell in enumerate(row):
                x = left + column * (width + gap)
                pen.picture(x, _resized(cell.pixels, factor))
                for k, text in enumerate(cell.lines):
                    pen.text(x, text, size, FAINT if k else INK, width, below=height + 3 + k * line)
            pen.down(height + under * line + gap)
    for note in notes:
        pen.text(gap, note, size, FAINT, across - 2 * gap)
        pen.down(line)
    return pen.finished()


def encode(
    frames: Sequence[Pixels], kind: str, metadata: Metadata | None = None, figure: str = "", pause: int = 80
) -> bytes:
    """Return a PNG of the first frame, or an endless animation of all: "gif" or "webp".

    figure: how it was made, as JSON (PNG only). pause: milliseconds a frame; the last is held longer.
    """
    texts = metadata if metadata is not None else Metadata()
    if kind != "png":
        return animate(frames, kind, [pause] * (len(frames) - 1) + [LAST_PAUSE], texts, ANIMATED_QUALITY)
    info = png_info(texts)
    if figure:
        info.add_itxt(KEYWORD, figure)
    buffer = io.BytesIO()
    Image.fromarray(frames[0]).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def small(pixels: Pixels, side: int) -> Pixels:
    """Return a picture whose longer side is at most `side` pixels (Lanczos)."""
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def number(value: float) -> str:
    """Return a number in three digits for a label: 14.6, 0.00468, 9.9e-06."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def level(sigma: float) -> tuple[str, str, str]:
    """Return the three lines that tell a noise level: sigma, alpha_bar = 1 / (1 + sigma^2), SNR = 1 /
    sigma^2."""
    snr = "infinite" if sigma == 0 else number(sigma**-2)
    return f"sigma {number(sigma)}", f"alpha_bar {number(1 / (1 + sigma**2))}", f"SNR {snr}"


class _Pen:
    """Draws downwards on a sheet that grows with what is drawn."""

    def __init__(self, width: int, top: int, line: int, size: int) -> None:
        self.sheet = Image.new("RGB", (width, 64), PAPER)
        self.draw = ImageDraw.Draw(self.sheet)
        self.y, self.line, self.size = top, line, size

    def _reach(self, bottom: int) -> None:
        if bottom > self.sheet.height:
            taller = Image.new("RGB", (self.sheet.width, bottom), PAPER)
            taller.paste(self.sheet, (0, 0))
            self.sheet, self.draw = taller, ImageDraw.Draw(taller)

    def down(self, pixels: int) -> None:
        """Move down."""
        self.y += pixels
        self._reach(self.y)

    def text(
        self, x: int, text: str, size: int, ink: str, room: int, *, below: int = 0, centre: bool = False
    ) -> None:
        """Write one line, made smaller and then cut until it fits."""
        shown, font = _fitted(text, size, room)
        self._reach(self.y + below + round(size * 1.5))
        shift = round((room - font.getlength(shown)) / 2) if centre else 0
        self.draw.text((x + shift, self.y + below), shown, fill=ink, font=font)

    def block(self, x: int, text: str, size: int, room: int, height: int) -> None:
        """Write words into a column, line by line, in the middle of a row's height."""
        lines = _wrapped(text, size, room)
        top = max(0, (height - len(lines) * self.line) // 2)
        for k, line in enumerate(lines):
            self.text(x, line, size, INK, room, below=top + k * self.line)

    def picture(self, x: int, pixels: Pixels) -> None:
        """Put a picture in a thin frame: many are white at their edges."""
        height, width = pixels.shape[:2]
        self._reach(self.y + height + 1)
        self.draw.rectangle((x - 1, self.y - 1, x + width, self.y + height), outline=FRAME)
        self.sheet.paste(Image.fromarray(pixels), (x, self.y))

    def finished(self) -> Pixels:
        """Return the sheet, cut below the last thing on it."""
        self._reach(self.y + self.size // 2)
        return np.asarray(self.sheet.crop((0, 0, self.sheet.width, self.y + self.size // 2)))


def _sides(cells: Sequence[Cell]) -> tuple[list[int], list[int]]:
    return [cell.pixels.shape[1] for cell in cells], [cell.pixels.shape[0] for cell in cells]


def _factor(cells: Sequence[Cell]) -> float:
    """Return how many times larger the pictures are shown: a whole number, or a fraction where they are too
    many."""
    widths, heights = _sides(cells)
    longest = max(*widths, *heights)
    area = max(widths) * max(heights) * len(cells)
    times = max(1, math.ceil(LEAST / longest))
    return times if area * times**2 <= MAX_PIXELS else math.sqrt(MAX_PIXELS / area)


def _resized(pixels: Pixels, factor: float) -> Pixels:
    if factor >= 1:
        return pixels.repeat(int(factor), 0).repeat(int(factor), 1)
    return small(pixels, max(1, round(max(pixels.shape[:2]) * factor)))


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text[:500]).split())


@cache
def _font(size: int, ascii: bool) -> Font:
    for name in () if ascii else WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _set(text: str, size: int) -> tuple[str, Font]:
    """Return a text and a font that can show it; where no font has its letters, their plain forms or '?'."""
    shown = _plain(text)
    font = _font(size, shown.isascii())
    if not shown.isascii() and font is _font(size, True):
        folded = unicodedata.normalize("NFKD", shown)
        shown = "".join(c if c.isascii() else "?" for c in folded if not unicodedata.combining(c))
    return shown, font


def _fitted(text: str, size: int, room: int) -> tuple[str, Font]:
    shown, font = _set(text, size)
    while font.getlength(shown) > room and size > 11:
        size -= 1
        shown, font = _set(text, size)
    if font.getlength(shown) > room:
        while shown and font.getlength(shown + "...") > room:
            shown = shown[:-1]
        shown += "..."
    return shown, font


def _longest(texts: Sequence[str], size: int) -> int:
    pairs = (_set(text, size) for text in texts)
    return max((math.ceil(font.getlength(shown)) for shown, font in pairs), default=0)


def _words(texts: Sequence[str]) -> list[str]:
    return [word[:40] for text in texts for word in _plain(text).split()]


def _wrapped(text: str, size: int, room: int) -> list[str]:
    lines: list[str] = []
    for word in _plain(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _longest([longer], size) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
