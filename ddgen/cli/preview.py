"""`--preview`: the finished picture in the terminal, drawn by the chafa library: kitty, iTerm2 or sixel
graphics, else half blocks.

Which of them is told from the environment alone; nothing is asked of the terminal, so nothing is left in its
input.
"""

import array
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ddgen.cli import process
from ddgen.errors import UsageError

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

MAX_COLUMNS, MAX_ROWS = 60, 24
CELL_RATIO = 0.5
"""Width of a character cell by its height."""


def check() -> None:
    """Find out before the work begins whether a picture can be shown.

    Raises:
        UsageError: standard error is no terminal, or chafa is not installed.
    """
    if not process.is_terminal(2):
        raise UsageError(
            "--preview needs a terminal on standard error", "leave --preview out", id="usage.preview"
        )
    _chafa()


def show(pixels: "Pixels") -> None:
    """Draw a picture, (H, W, 3 or 4) uint8, on the terminal of standard error."""
    from ddgen.io.images import flat

    size = shutil.get_terminal_size()
    data = draw(
        flat(pixels), kind_of(os.environ), min(MAX_COLUMNS, size.columns), min(MAX_ROWS, max(4, size.lines - 3))
    )
    process.write_error(data.decode("utf-8", "surrogateescape") + "\n")


def kind_of(environment: Mapping[str, str]) -> str:
    """Return "kitty", "iterm2", "sixel" or "blocks" for a terminal's environment; inside tmux and screen,
    blocks.
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return "blocks"
    if "kitty" in term or "ghostty" in term or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if term.startswith(("foot", "mlterm", "contour", "yaft")) or "sixel" in term:
        return "sixel"
    return "blocks"


def draw(pixels: "Pixels", kind: str, columns: int, rows: int) -> bytes:
    """Return what makes a terminal of a kind show a picture within so many character cells."""
    chafa = _chafa()
    modes = {"kitty": "KITTY", "iterm2": "ITERM2", "sixel": "SIXELS", "blocks": "SYMBOLS"}
    height, width = pixels.shape[:2]
    config = chafa.CanvasConfig()
    config.width, config.height = columns, rows
    config.pixel_mode = chafa.PixelMode[f"CHAFA_PIXEL_MODE_{modes[kind]}"]
    config.canvas_mode = chafa.CanvasMode.CHAFA_CANVAS_MODE_TRUECOLOR
    if kind == "blocks":
        symbols = chafa.SymbolMap()
        symbols.add_by_tags(chafa.SymbolTags.CHAFA_SYMBOL_TAG_VHALF)
        config.set_symbol_map(symbols)
    else:
        config.cell_width, config.cell_height = 10, 20
    config.calc_canvas_geometry(width, height, CELL_RATIO)
    canvas = chafa.Canvas(config)
    flat = array.array("B", pixels.tobytes())
    canvas.draw_all_pixels(chafa.PixelType.CHAFA_PIXEL_RGB8, flat, width, height, width * 3)
    drawn: bytes = canvas.print(fallback=True)
    return drawn


def _chafa() -> Any:
    try:
        import chafa
    except ImportError:
        raise UsageError(
            "--preview needs chafa", "install it: pip install 'ddgen[preview]'", id="usage.preview"
        ) from None
    return chafa
