"""`ddgen train --demo`: the whole story in minutes, with the loss falling and pictures growing in the terminal.

    step 350 of 1500, loss 0.231, 3 min left
    ▇▇▆▆▅▅▄▄▄▃▃▃▂▂▂▂▁▁▁▁
    (pictures in half blocks, a prompt under each)

The picture part stays in its place on a terminal with colours; elsewhere there are lines, as everywhere.
"""

import dataclasses
import math
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.cli import console, process
from ddgen.cli.progress import duration, make_progress
from ddgen.cli.training import given, hold
from ddgen.errors import UsageError
from ddgen.io import files

if TYPE_CHECKING:
    import typer

    from ddgen.io.images import Pixels

TAKEN = ("demo", "out", "steps", "minutes", "seed", "device", "progress", "quiet")
"""Parameters of `train` that go with --demo."""
ACROSS = 4  # pictures in a row
GROW_EVERY = 4  # reports between two looks at the pictures
BARS = "▁▂▃▄▅▆▇█"


def follow(context: "typer.Context") -> None:
    """Run the demo with what was given to `train`; refuse what it has no use for.

    Raises:
        UsageError: a flag that the demo does not take, or minutes that are no time.
    """
    told = {}
    for parameter in given(context):
        told[parameter.name] = context.params[parameter.name or ""]
        if parameter.name not in TAKEN:
            flag = next((word for word in parameter.opts if word.startswith("--")), "DATA")
            raise UsageError(f"--demo does not go with {flag}", "leave one of them out", id="usage.demo")
    minutes = told.get("minutes")
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise UsageError(
            f"--minutes {minutes}: must be above 0", "give a positive number", id="usage.number"
        )
    out = told.get("out") or Path("demo")
    files.probe_directory(out)
    context.call_on_close(hold(out).release)
    demo(
        out,
        steps=told.get("steps"),
        minutes=minutes,
        seed=context.params["seed"],
        device=context.params["device"],
        progress=context.params["progress"],
    )


def demo(
    out: Path, *, steps: int | None, minutes: float | None, seed: int, device: str, progress: str
) -> None:
    """Train the demo's model in a directory, show how it goes, and draw what it was never shown."""
    from ddgen.app import demo as story
    from ddgen.app import runfiles

    chosen = {"steps": steps, "minutes": minutes, "seed": seed}
    settings = dataclasses.replace(story.SETTINGS, **{k: v for k, v in chosen.items() if v is not None})
    console.say(f"ddgen: {story.PICTURES} pictures of shapes, the pairings of {story.held_out()} left out")
    trainer = story.prepare(out, settings, device)
    asked = story.prompts()
    screen = Screen(asked, settings.steps) if shows_pictures(progress) else None
    shown, number = trainer.step, 0
    with make_progress("none" if screen else progress, settings.steps - trainer.step, "steps") as bar:
        for report in trainer.run():
            bar.advance(report.step - shown, f"loss {report.loss:.4f}")
            shown, number = report.step, number + 1
            if screen is not None:
                grown = story.grow(trainer.sampler()) if number % GROW_EVERY == 1 else None
                screen.tell(report.step, report.loss, report.seconds, grown)
            console.detail(f"ddgen: step {report.step}, loss {report.loss:.4f}, fixed {report.fixed:.4f}")
    sampler = trainer.sampler()
    if screen is not None:
        screen.tell(trainer.step, None, trainer.seconds, story.grow(sampler))
        screen.leave()
    story.write_sheet(sampler, out / runfiles.SAMPLES / "shown.png", story.SHOWN)
    verdicts = story.examine(sampler, out)
    console.say("ddgen: pairings that were never shown, and how many pictures have their shape and colour:")
    for verdict in verdicts:
        console.say(f"  {verdict.prompt}: {verdict.right} of {verdict.asked}")
    console.say(f"ddgen: look at {out / runfiles.SAMPLES / story.HELD_OUT}, or draw one yourself:")
    console.say(f'  ddgen sample "{verdicts[0].prompt}" --model {out / runfiles.MODEL}')
    console.out(str(out / runfiles.MODEL))


def shows_pictures(progress: str) -> bool:
    """Whether pictures can stand in the terminal: it is one, with colours, and nobody asked for other progress."""
    wanted = progress == "auto" and not console.manners.quiet
    return wanted and process.is_terminal(2) and console.color_on()


class Screen:
    """The part of the terminal that is drawn anew at every report."""

    def __init__(self, prompts: Sequence[str], steps: int) -> None:
        self.prompts, self.steps = list(prompts), steps
        self.losses: list[float] = []
        self.pictures: list[Pixels] = []
        self.lines: list[str] = []
        process.at_end(lambda: "\x1b[?25h\n" if self.lines else "")
        console.keep_live(self)

    def tell(self, step: int, loss: float | None, seconds: float, pictures: "list[Pixels] | None") -> None:
        """Draw the new state. loss None: the last one still stands. pictures None: the last ones do."""
        self.hide()
        if loss is not None:
            self.losses.append(loss)
        if pictures is not None:
            self.pictures = pictures
        columns, rows = shutil.get_terminal_size()
        left = f", {duration(seconds / step * (self.steps - step))} left" if 0 < step < self.steps else ""
        told = f", loss {self.losses[-1]:.3f}" if self.losses else ""
        head = f"step {step} of {self.steps}{told}{left}"
        high = max(2, min(12, (rows - 4) // 2 - 2, (columns // ACROSS - 2) // 2))
        self.lines = [head[:columns], sparkline(self.losses, min(columns - 1, ACROSS * (2 * high + 2) - 2))]
        self.lines += grid(self.pictures, self.prompts, high, max(2 * high, min(24, columns // ACROSS - 2)))
        self.show()

    def show(self) -> None:
        """Draw the part where the cursor stands."""
        if self.lines:
            process.write_error("\x1b[?25l" + "\n".join(self.lines) + "\n")

    def hide(self) -> None:
        """Take the part off the screen."""
        if self.lines:
            process.write_error(f"\x1b[{len(self.lines)}A\r\x1b[J\x1b[?25h")

    def leave(self) -> None:
        """Let the part stand where it is."""
        console.keep_live(None)
        self.lines = []
        process.write_error("\x1b[?25h")


def sparkline(values: Sequence[float], width: int) -> str:
    """Return values as bars on a logarithmic scale, the last `width` of them or, of more, means."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    means = [
        math.log(max(1e-9, sum(values[a:b]) / (b - a))) for a, b in zip(edges, edges[1:], strict=False)
    ]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def grid(pictures: "Sequence[Pixels]", prompts: Sequence[str], high: int, wide: int) -> list[str]:
    """Return lines of half blocks, ACROSS pictures in a row, `high` lines each, below them two lines of prompt,
    `wide` characters for each."""
    apart = " " * (wide - 2 * high + 2)
    lines = []
    for start in range(0, len(pictures), ACROSS):
        parts = [blocks(picture, high) for picture in pictures[start : start + ACROSS]]
        lines += [apart.join(row) for row in zip(*parts, strict=True)]
        words = [
            (textwrap.wrap(console.safe(text), wide) + ["", ""])[:2]
            for text in prompts[start : start + ACROSS]
        ]
        lines += ["  ".join(word[i].ljust(wide) for word in words) for i in (0, 1)]
    return lines


def blocks(picture: "Pixels", high: int) -> list[str]:
    """Return a picture, (H, W, 3) uint8, as `high` lines of 2 high upper half blocks: the upper pixel is the
    colour of the character, the lower that of its ground."""
    import numpy as np
    from PIL import Image

    side = 2 * high
    small = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))
    lines = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(upper.tolist(), lower.tolist(), strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return lines
