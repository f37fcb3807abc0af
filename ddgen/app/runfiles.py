"""The files of a training run: tensors are safetensors, facts are JSON, nothing is pickled.

The state is one file, replaced at once, so that a run killed at any moment goes on from the last whole one;
what the log holds beyond it is cut off then.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddgen.errors import InputError, ModelError
from ddgen.io.files import publish
from ddgen.weights.checkpoint import Reader, open_checkpoint, save_tensors, spec_metadata, write_file
from ddgen.weights.convert import FIRST_STAGE_PREFIX, UNET_PREFIX, file_part, file_towers
from ddgen.weights.header import read_header
from ddgen.weights.keymap import Take
from ddgen.weights.split import Stored

if TYPE_CHECKING:
    from ddgen.weights.spec import Spec

STATE, MODEL, LOG, CURVE = "state.safetensors", "model.safetensors", "log.jsonl", "loss.svg"
SAMPLES = "samples"
KEY = "ddgen_run"
PREFIXES = {"unet": UNET_PREFIX, "first_stage": FIRST_STAGE_PREFIX}


def write_state(out: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the state of a run, replacing the one before at once."""
    save_tensors(out / STATE, tensors, {KEY: json.dumps(facts)})


def read_state(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the state of a run.

    Raises:
        ModelError: a damaged file. InputError: a file of another kind.
    """
    try:
        header = read_header(out / STATE)
    except ModelError as error:
        mend = "remove it to begin anew, or give another --out"
        raise ModelError(error.message, mend, id=error.id) from None
    if KEY not in header.metadata:
        raise InputError(
            f"'{out / STATE}' is not the state of a training run", "choose another --out", id="input.run"
        )
    with Reader() as reader:
        tensors = {
            name: reader.read(Stored(header, Take((name,)), header.tensors[name].shape))
            for name in header.tensors
        }
    return tensors, json.loads(header.metadata[KEY])


def write_model(out: Path, spec: "Spec", trained: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write a whole checkpoint under LDM names, in float16: the trained parts ("unet", "first_stage") and, from the
    model's own file, everything else."""
    assert spec.source.path is not None
    found = open_checkpoint(spec.source.path)
    towers = file_towers(spec.arch)
    made, fresh = {}, {}
    for name, part in found.parts.items():
        if name not in trained:
            made |= file_part(name, part, towers)
    for name, state in trained.items():
        fresh |= {PREFIXES[name] + key: value for key, value in state.items()}
    plan = {name: (torch.float16, tuple(value.shape)) for name, value in fresh.items()}
    plan |= {name: (torch.float16, item.shape) for name, item in made.items()}
    with Reader() as reader:

        def produce(name: str) -> Tensor:
            if name in fresh:
                return fresh[name].to(torch.float16)
            pieces = [reader.read(stored, torch.float16) for stored in made[name].sources]
            return made[name].take.apply(pieces[0] if len(pieces) == 1 else torch.cat(pieces))

        write_file(out / MODEL, plan, produce, spec_metadata(spec))
    return out / MODEL


def append(out: Path, report: Mapping[str, Any]) -> None:
    """Add a line to the log, and draw the curve again."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(report) + "\n")
    publish(out / CURVE, curve(read_log(out)).encode(), force=True)


def read_log(out: Path) -> list[dict[str, Any]]:
    """Return the reports of a run; what is none, as a line that a kill cut short, is left out."""
    if not (out / LOG).exists():
        return []
    found = []
    for line in (out / LOG).read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            report = json.loads(line)
        except ValueError:
            continue
        if isinstance(report, dict) and all(isinstance(report.get(key), int | float) for key in ("step", "loss", "fixed")):
            found.append(report)
    return found


def truncate(out: Path, step: int) -> None:
    """Forget reports of steps that the state does not hold, all where there is none yet."""
    if not (out / LOG).exists():
        return
    kept = [report for report in read_log(out) if report["step"] <= step]
    publish(out / LOG, "".join(json.dumps(report) + "\n" for report in kept).encode(), force=True)


def curve(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return the loss over the steps as an SVG: the training loss grey, the averaged weights' on the fixed
    set black, both logarithmic."""
    width, height, margin = 640, 320, 44
    points = [report for report in reports if report["loss"] > 0 and report["fixed"] > 0]
    if not points:
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"/>\n'
    values = [math.log10(report[key]) for report in points for key in ("loss", "fixed")]
    low, high, last = (
        math.floor(min(values)),
        math.ceil(max(values) + 1e-9),
        max(report["step"] for report in points),
    )

    def line(key: str, colour: str) -> str:
        places = " ".join(
            f"{margin + (width - 2 * margin) * report['step'] / last:.1f},"
            f"{margin + (height - 2 * margin) * (high - math.log10(report[key])) / max(1, high - low):.1f}"
            for report in points
        )
        return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    step = (height - 2 * margin) / max(1, high - low)
    labels = "".join(
        f'<text x="6" y="{margin + 4 + step * (high - power):.0f}">{10.0**power:g}</text>'
        for power in range(low, high + 1)
    )
    size = f'width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{labels}{line("loss", "#aaa")}'
        f"{line('fixed', 'black')}"
        f'<text x="{width - margin}" y="{height - 12}" text-anchor="end">step {last}</text></svg>\n'
    )
