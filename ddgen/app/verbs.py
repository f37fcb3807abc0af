"""What the editing commands ask of the engine: pictures of any size in, one or several runs, pictures out.
Torch-free at import.

edit, vary, upscale   the picture at the network's size, begun later
inpaint               a part of the picture, laid back into it
outpaint              part after part, each beside what is known
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddgen.app import canvas
from ddgen.app.canvas import Box, Frame
from ddgen.errors import UsageError
from ddgen.request import MAX_SEED, Job
from ddgen.weights.arch import Arch
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.app.canvas import Mask, Weight
    from ddgen.app.control import Control
    from ddgen.app.image_prompt import ImagePrompt
    from ddgen.app.pipeline import OnStep, Pipeline
    from ddgen.io.images import Pixels
    from ddgen.weights.vision import TowerFiles

Draw = Callable[["Pipeline", Sequence[Job], "OnStep"], "list[Pixels]"]
"""(pipeline, batch of jobs, on_step) -> one picture a job."""

Run = Callable[["Pipeline", Sequence[Job], "OnStep", "Source | None"], "list[Pixels]"]

STRENGTH = 0.75  # the usual one
INSTRUCTED = 1.5  # the usual --image-guidance of networks that follow instructions
TILED_FROM = 1.5  # times the area that the model is made for


@dataclass(frozen=True)
class Source:
    """The picture that a batch of jobs works on, at the jobs' size.

    image: (H, W, 3) uint8. mask: (H, W) bool, True = made anew; None = everything.
    """

    image: "Pixels"
    mask: "Mask | None" = None


def reads(arch: Arch) -> str:
    """Return what the network reads beside x_t, told by its input channels: "", "mask" or "image".

    Raises:
        UsageError: neither.
    """
    channels, found = arch.first_stage.channels, arch.unet.in_channels
    kinds = {channels: "", 2 * channels + 1: "mask", 2 * channels: "image"}
    if found not in kinds:
        raise UsageError(
            f"the network reads {found} channels, of which {channels} are understood",
            "choose another --model",
            id="usage.model",
        )
    return kinds[found]


def kept_steps(steps: int, strength: float | None) -> int:
    """Return how many of the steps an edit of some strength runs, as diffusers counts them, but never
    none."""
    return steps if strength is None else max(1, min(int(steps * strength), steps))


def steps_of(jobs: Sequence[Job], runs: int = 1) -> int:
    """Return how many steps the jobs of an edit take together."""
    return sum(
        runs * kept_steps(job.steps, job.edit.strength if job.edit is not None else None) for job in jobs
    )


def check_strength(strength: float) -> None:
    """Refuse a strength that means nothing.

    Raises:
        UsageError: 0, which would change nothing, or out of range.
    """
    if strength == 0:
        raise UsageError("--strength 0 would change nothing", "use 0.05 to 1", id="usage.strength")
    if not 0 < strength <= 1:
        raise UsageError(
            f"--strength {strength:g} is out of range",
            "use 0.05 to 1",
            id="usage.strength",
        )


@dataclass(frozen=True)
class ControlFile:
    """A ControlNet to load, and the picture that it reads, at the jobs' size; the rest as in
    app/control.py."""

    path: Path
    picture: "Pixels"
    weight: float
    start: float
    end: float


@dataclass(frozen=True)
class PromptPicture:
    """A picture as a prompt, of any size: the IP-Adapter that reads it, the tower that sees it. kept: adapter and
    tower stay for the pictures of later runs."""

    adapter: Path
    tower: "TowerFiles"
    picture: "Pixels"
    weight: float
    kept: bool = False


def steered(controls: Sequence[ControlFile], pictures: Sequence[PromptPicture]) -> Run:
    """Return what runs jobs steered by controls and image prompts, which are loaded once."""
    loaded: list[Control] = []
    shown: list[ImagePrompt] = []

    def run(
        pipeline: "Pipeline", jobs: Sequence[Job], on_step: "OnStep", source: Source | None
    ) -> "list[Pixels]":
        from ddgen.app import pipeline as pipelines

        if not controls and not pictures:
            return pipelines.run(pipeline, jobs, on_step, source)
        from ddgen.app import control, image_prompt

        if not loaded and not shown:
            windowed = jobs[0].edit is not None and bool(jobs[0].edit.window)
            loaded.extend(
                control.load(pipeline, file, windowed=windowed, tile=jobs[0].tile) for file in controls
            )
            shown.extend(image_prompt.load(pipeline, pictures) if pictures else ())
        return pipelines.run(pipeline, jobs, on_step, source, controls=loaded, pictures=shown)

    return run


def whole(
    image: "Pixels | None", controls: Sequence[ControlFile] = (), pictures: Sequence[PromptPicture] = ()
) -> Draw:
    """Return what makes pictures from one at the jobs' size, or from none, steered by controls and image
    prompts."""
    run = steered(controls, pictures)

    def draw(pipeline: "Pipeline", jobs: Sequence[Job], on_step: "OnStep") -> "list[Pixels]":
        return run(pipeline, jobs, on_step, None if image is None else Source(image))

    return draw


def enlarged(
    image: "Pixels",
    width: int,
    height: int,
    upscaler: Path | None = None,
    original: "Pixels | None" = None,
    *,
    controls: Sequence[ControlFile] = (),
    pictures: Sequence[PromptPicture] = (),
) -> Draw:
    """Return what makes pictures from one at the jobs' size, near width x height.

    upscaler: a network that makes that one from the original. controls: their pictures are at the jobs' size.
    """
    found: list[Draw] = [] if upscaler is not None else [whole(image, controls, pictures)]

    def draw(pipeline: "Pipeline", jobs: Sequence[Job], on_step: "OnStep") -> "list[Pixels]":
        if not found:
            from ddgen.app import upscaler as upscalers

            assert upscaler is not None and original is not None
            network, job = upscalers.load(upscaler, pipeline.device), jobs[0]
            larger = upscalers.enlarged(network, original, job.width, job.height, job.tile)
            found.append(whole(larger, controls, pictures))
        return [canvas.resize(made, width, height, jobs[0].tile) for made in found[0](pipeline, jobs, on_step)]

    return draw


def inside(
    picture: "Pixels",
    mask: "Mask",
    frame: Frame,
    weight: "Weight",
    *,
    match: bool = False,
    controls: Sequence[ControlFile] = (),
    pictures: Sequence[PromptPicture] = (),
) -> Draw:
    """Return what makes a masked part of a picture anew; all else of it is kept, bit for bit.

    weight: how much of the new is seen, 0 outside the mask. match: its colours are shifted to meet those around.
    controls: their pictures are at the frame's size.
    """
    run = steered(controls, pictures)

    def draw(pipeline: "Pipeline", jobs: Sequence[Job], on_step: "OnStep") -> "list[Pixels]":
        if not mask.any():
            return [picture for _ in jobs]
        made = run(pipeline, jobs, on_step, Source(frame.cut(picture), frame.cut_mask(mask)))
        return [frame.put(picture, part, weight, match=match) for part in made]

    return draw


def frames_of(spec: Spec, boxes: Sequence[Box]) -> list[Frame]:
    """Return windows with the sizes at which the network sees them."""
    return [Frame(box, *canvas.work_size(spec, box[2] - box[0], box[3] - box[1])) for box in boxes]


def outside(
    picture: "Pixels",
    new: "Mask",
    frames: Sequence[Frame],
    *,
    controls: Sequence[ControlFile] = (),
    pictures: Sequence[PromptPicture] = (),
) -> Draw:
    """Return what fills the new parts of a canvas window by window; what was made becomes known to the next.

    controls: their pictures are of the canvas's size.
    """
    seen = [[replace(file, picture=frame.cut(file.picture)) for file in controls] for frame in frames]
    kept = [replace(shown, kept=True) for shown in pictures]  # for every window

    def draw(pipeline: "Pipeline", jobs: Sequence[Job], on_step: "OnStep") -> "list[Pixels]":
        return [one(pipeline, job, on_step) for job in jobs]

    def one(pipeline: "Pipeline", job: Job, on_step: "OnStep") -> "Pixels":
        found, todo = picture, new.copy()
        for number, (frame, steering) in enumerate(zip(frames, seen, strict=True)):
            here = np.zeros_like(todo)
            here[frame.place] = todo[frame.place]
            seed = (job.seed + (number << 32)) & MAX_SEED  # each window has noise of its own
            part = replace(job, width=frame.width, height=frame.height, seed=seed)
            weight = here.astype(np.float32)
            fill = inside(found, here, frame, weight, match=True, controls=steering, pictures=kept)
            (found,) = fill(pipeline, [part], on_step)
            todo &= ~here
        return found

    return draw
