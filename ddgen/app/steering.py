"""`TYPE:IMAGE[:WEIGHT[:START:END]]` and, for image prompts, `IMAGE[:WEIGHT]`, as flags or in a job line: read, and
made into what steers a job. Torch-free.

Numbers are split from the right, so that a path may hold colons.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.app import canvas, maps
from ddgen.app.adjust import parse_lora
from ddgen.app.named import Networks
from ddgen.app.verbs import ControlFile, PromptPicture
from ddgen.errors import UsageError, choose
from ddgen.request import Steer
from ddgen.weights.control import control_part
from ddgen.weights.digest import digest
from ddgen.weights.image_prompt import check_reader
from ddgen.weights.vision import find_tower

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

    Bring = Callable[[Pixels], Pixels]
    """A picture of any size -> the same as the jobs see it."""


@dataclass(frozen=True)
class Wanted:
    """One control as it was typed."""

    kind: str
    path: str
    weight: float
    start: float
    end: float


def parse(text: str) -> Wanted:
    """Read one control.

    Raises:
        UsageError: what cannot be read, or is out of range.
    """
    kind, _, rest = text.partition(":")
    choose("control type", kind, maps.KINDS)
    parts = rest.split(":")
    numbers: list[float] = []
    while len(parts) > 1 and len(numbers) < 3 and _number(parts[-1]) is not None:
        numbers.insert(0, float(parts.pop()))
    path = ":".join(parts)
    if not path or len(numbers) == 2:
        mend = "use TYPE:IMAGE, TYPE:IMAGE:0.8 or TYPE:IMAGE:0.8:0:0.5"
        raise UsageError(f"--control '{text}' cannot be read", mend, id="usage.control")
    weight, start, end = (*numbers, 0.0, 1.0)[:3] if len(numbers) == 1 else (numbers or [1.0, 0.0, 1.0])
    if not (0 <= weight <= 2 and 0 <= start < end <= 1):
        mend = "use a weight of 0 to 2, and a part of the steps as 0:0.5"
        raise UsageError(f"--control '{text}' is out of range", mend, id="usage.control")
    return Wanted(kind, path, weight, start, end)


def pair(typed: int, models: int) -> None:
    """Refuse controls without networks, and networks without controls.

    Raises:
        UsageError: the numbers differ.
    """
    if typed != models:
        raise UsageError(
            f"{typed} --control and {models} --control-model are given",
            "give one --control-model FILE for each --control, in the same order",
            id="usage.control",
        )


def steer(wanted: Wanted, pixels: "Pixels", model: Path, bring: "Bring") -> tuple[Steer, ControlFile]:
    """Return the record of a control, and what is loaded for it.

    Raises:
        ModelError: the network's file.
    """
    control_part(model)
    shown = maps.control_map(bring(pixels), wanted.kind)
    said = (wanted.weight, wanted.start, wanted.end)
    return Steer(wanted.kind, canvas.digest(shown), digest(model), *said), ControlFile(model, shown, *said)


def readers_of(typed: Sequence[str], networks: Networks) -> list[Path]:
    """Return the IP-Adapter of each image prompt.

    Raises:
        UsageError: as many as neither one nor all, or some without a prompt.
    """
    models = networks.readers
    if len(models) not in (len(typed), 1) or (models and not typed):
        raise UsageError(
            f"{len(typed)} --image-prompt and {len(models)} --image-prompt-model are given",
            "give one --image-prompt-model FILE for all, or one for each, in the same order",
            id="usage.image-prompt",
        )
    return list(models) * (len(typed) if len(models) == 1 else 1)


def show(
    text: str, read: "Callable[[str], Pixels]", model: Path, networks: Networks, *, kept: bool = False
) -> tuple[Steer, PromptPicture]:
    """Return the record of an image prompt, and what is loaded for it. read: a path -> its picture.

    Raises:
        UsageError: a weight out of range. InputError: the picture. ModelError: a network's file.
    """
    path, weight = parse_lora(text, "--image-prompt")
    check_reader(model)
    tower = find_tower(networks.encoder, model)
    picture = read(path)
    seen = f"{digest(model)}+{digest(tower.weights)}"
    return Steer("image-prompt", canvas.digest(picture), seen, weight), PromptPicture(model, tower, picture, weight, kept)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
