"""What a job line says of pictures, as it says it. Torch-free, and free of numpy: most lines say nothing.

Reading the pictures, and what becomes of them, is inputs.py's matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("init", "mask", "control", "image_prompt", "strength", "image_guidance", "fit")


@dataclass(frozen=True, slots=True)
class Networks:
    """The files that read what steers: of each control, of the image prompts (one for all, or of each), and the
    folder of the tower that sees for the latter; None = beside them."""

    controls: tuple[Path, ...] = ()
    readers: tuple[Path, ...] = ()
    encoder: str | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a task reads beside its prompt. said: the line's own words, for the list of failed items. networks:
    what reads what steers."""

    folder: Path
    said: tuple[tuple[str, Any], ...]
    networks: Networks = Networks()

    def get(self, name: str, default: Any = None) -> Any:
        """Return what the line says of a name."""
        return dict(self.said).get(name, default)


def take(settings: dict[str, Any], folder: Path, networks: Networks) -> tuple[Inputs | None, dict[str, Any]]:
    """Part a line's settings into what concerns pictures, None for nothing, and the rest."""
    said = tuple((name, settings[name]) for name in NAMES if name in settings)
    rest = {name: value for name, value in settings.items() if name not in NAMES}
    return (Inputs(folder, said, networks) if said else None), rest


def settings_of(inputs: Inputs) -> Mapping[str, Any]:
    """Return what a line must say to name the same pictures again."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.said}
