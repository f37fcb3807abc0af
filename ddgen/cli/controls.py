"""What steers a run by pictures: `--control TYPE:IMAGE[:WEIGHT[:START:END]]` with `--control-model FILE`, and
`--image-prompt FILE[:WEIGHT]` with `--image-prompt-model FILE`. Read and checked before a model is loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddgen.app import steering
from ddgen.app.named import Networks
from ddgen.app.verbs import ControlFile, PromptPicture
from ddgen.cli import editing
from ddgen.errors import UsageError
from ddgen.request import Job

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

FLAGS = ("control", "control_model", "image_prompt", "image_prompt_model", "image_encoder")


@dataclass(frozen=True)
class Steered:
    """Jobs with a record of what steers them, the controls, and the image prompts."""

    jobs: list[Job]
    controls: Sequence[ControlFile] = ()
    pictures: Sequence[PromptPicture] = ()


def prepare(params: Mapping[str, Any], jobs: list[Job], bring: "Callable[[Pixels], Pixels]") -> Steered:
    """Read what steers jobs, if anything does. bring: a control's picture of any size -> the same as the jobs see it.

    Raises:
        UsageError: what cannot be read, or does not fit together. InputError: a picture. ModelError: a
        network's file.
    """
    if not any(params.get(name) for name in FLAGS):
        return Steered(jobs)
    controls, prompts = params.get("control") or (), params.get("image_prompt") or ()
    networks = Networks(
        tuple(Path(model) for model in params.get("control_model") or ()),
        tuple(Path(model) for model in params.get("image_prompt_model") or ()),
        params.get("image_encoder"),
    )
    steering.pair(len(controls), len(networks.controls))
    found = []
    for text, model in zip(controls, networks.controls, strict=True):
        wanted = steering.parse(text)
        found.append(steering.steer(wanted, editing.read_picture(wanted.path).pixels, model, bring))
    if networks.encoder and not prompts:
        raise UsageError("--image-encoder needs --image-prompt", "add one", id="usage.image-prompt")
    shown = [
        steering.show(text, lambda path: editing.read_picture(path).pixels, model, networks)
        for text, model in zip(prompts, steering.readers_of(prompts, networks), strict=True)
    ]
    steers = (*(record for record, _ in found), *(record for record, _ in shown))
    return Steered(
        [replace(job, controls=steers) for job in jobs], [file for _, file in found], [one for _, one in shown]
    )
