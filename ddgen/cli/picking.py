"""`--best K`: what it asks for, and the scorer that answers.

The embedded scorer knows stickers; for another model a CLIP can be named with --scorer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.app.plan import check_keep
from ddgen.cli import console, settings
from ddgen.errors import InputError, UsageError
from ddgen.weights import registry
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.app.produce import Pick


@dataclass(frozen=True)
class Choice:
    """Keep so many of so many. scorer: a folder with a CLIP, "" = the embedded one."""

    keep: int
    of: int
    scorer: str = ""


def read(best: str | None, scorer: str | None, of: int) -> Choice | None:
    """Read --best and --scorer; None: all are kept. of: pictures of each prompt.

    Raises:
        UsageError: no number from 1 to `of`, or --scorer alone. InputError: no such folder.
    """
    if best is None:
        if scorer is not None:
            raise UsageError("--scorer needs --best", "add --best 1", id="usage.best")
        return None
    keep = settings.read_flag("--best", best, settings.whole)
    check_keep(keep, of)
    check_folder(scorer)
    return Choice(keep, of, scorer or "")


def check_folder(scorer: str | None) -> None:
    """Refuse a --scorer that is no folder.

    Raises:
        InputError: it is not.
    """
    if scorer is not None and not Path(scorer).is_dir():
        raise InputError(
            f"'{scorer}' is no folder", "give one that transformers or open_clip wrote", id="input.scorer"
        )


def load(choice: Choice, spec: Spec) -> "Pick":
    """Load the scorer.

    Raises:
        ModelError: its files are missing or damaged.
    """
    from ddgen.app import scoring
    from ddgen.app.produce import Pick

    remark(choice.scorer, spec)
    return Pick(choice.keep, choice.of, scoring.Scores(scoring.load(choice.scorer or None)))


def remark(folder: str, spec: Spec) -> None:
    """Say where the embedded scorer is out of its field."""
    if not folder and spec.name != registry.default_name():
        console.warn("the embedded scorer knows stickers; for other pictures name a CLIP: --scorer DIR")
