"""What steers a run by pictures: `--control TYPE:IMAGE[:WEIGHT[:START:END]]` with `--control-model FILE`, and
`--image-prompt FILE[:WEIGHT]` with `--image-prompt-model FILE`. Read and checked before a model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddgen.app import canvas, steering
from ddgen.app.adjust import parse_lora
from ddgen.app.verbs import ControlFile, PromptPicture
from ddgen.cli import editing
from ddgen.errors import UsageError
from ddgen.request import Job, Steer
from ddgen.weights.digest import digest
from ddgen.weights.image_prompt import check_reader, tower_folder

def prepare(
    params: Mapping[str, Any], jobs: Sequence[Job]
) -> tuple[list[Job], list[ControlFile], list[PromptPicture]]:
    """Return the jobs with a record of what steers them, the controls, and the image prompts.

    Raises:
        UsageError: what cannot be read, or does not fit together. InputError: a picture. ModelError: a
        network's file.
    """
    controls, models = params.get("control") or (), params.get("control_model") or ()
    steering.pair(len(controls), len(models))
    found = []
    for text, model in zip(controls, models, strict=True):
        wanted = steering.parse(text)
        pixels = editing.read_picture(wanted.path).pixels
        found.append(steering.steer(wanted, pixels, Path(model), jobs[0].width, jobs[0].height))
    shown = _image_prompts(params)
    steers = (*(record for record, _ in found), *(record for record, _ in shown))
    return [replace(job, controls=steers) for job in jobs], [file for _, file in found], [one for _, one in shown]


def _image_prompts(params: Mapping[str, Any]) -> list[tuple[Steer, PromptPicture]]:
    typed, models = params.get("image_prompt") or (), params.get("image_prompt_model") or ()
    if len(models) not in (len(typed), 1) or (models and not typed):
        raise UsageError(
            f"{len(typed)} --image-prompt and {len(models)} --image-prompt-model are given",
            "give one --image-prompt-model FILE for all, or one for each, in the same order",
            id="usage.image-prompt",
        )
    if params.get("image_encoder") and not typed:
        raise UsageError("--image-encoder needs --image-prompt", "add one", id="usage.image-prompt")
    found = []
    for text, name in zip(typed, models * (len(typed) if len(models) == 1 else 1), strict=True):
        path, weight = parse_lora(text, "--image-prompt")
        model = Path(name)
        check_reader(model)
        tower = tower_folder(params.get("image_encoder"), model)
        picture = editing.read_picture(path).pixels
        seen = f"{digest(model)}+{digest(tower / 'model.safetensors')}"
        record = Steer("image-prompt", canvas.digest(picture), seen, weight)
        found.append((record, PromptPicture(model, tower, picture, weight)))
    return found
