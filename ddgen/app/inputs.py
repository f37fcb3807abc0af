"""Pictures that a job line names: `init`, what is edited; `mask`, what of it is made anew; `control` and
`image_prompt`, what steers. Torch-free.

    {"prompt": "a red penguin", "init": "in/penguin.png", "strength": 0.6}       as `ddgen edit`
    {"prompt": "a fox", "init": "in/empty.png", "mask": "in/half.png"}           as `ddgen inpaint`
    {"prompt": "a house", "control": "canny:in/house.png:0.8"}                   as `sample --control`
    {"prompt": "a house", "image_prompt": "in/style.png:0.6"}                    as `sample --image-prompt`

A path is relative to the prompt file and never leaves its directory, not by a link either: a prompt file is
a stranger's. The job holds what was seen as sha256; the pictures themselves are read again when their turn
comes, so that a batch of ten thousand holds none.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.app import canvas, plan, steering, verbs
from ddgen.app.canvas import FITS, Frame
from ddgen.app.named import NAMES, Inputs
from ddgen.errors import InputError, UsageError, choose
from ddgen.request import Edit, Job, Request, Steer
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.app.canvas import Mask
    from ddgen.app.steering import Bring
    from ddgen.io.images import Pixels

STEERS = {"control", "image_prompt"}
FEATHER = 4  # pixels inside a mask over which the new becomes full


def jobs(inputs: Inputs, request: Request, spec: Spec) -> Iterator[Job]:
    """Return the jobs of a request that works on pictures; what a plain one is to `plan.plan`.

    Raises:
        UsageError: settings that do not go together. InputError: a picture. ModelError: a control's network.
    """
    _check(inputs, request, spec)
    if inputs.get("init") is None:
        for job in plan.plan(request, spec):
            yield replace(job, controls=_steering(inputs, _fitting(inputs, job)).records)
        return
    pixels, alpha = _open(inputs, "init", inputs.get("init"))
    high, wide = pixels.shape[:2]
    if request.width is None and request.height is None:
        width, height = canvas.work_size(spec, wide, high)
        request = replace(request, width=width, height=height)
    planned = plan.plan(request, spec)
    strength = inputs.get("strength")
    if inputs.get("mask") is not None:
        record = Edit("inpaint", canvas.digest(pixels), canvas.digest(_mask(inputs, pixels, alpha)), strength)
        for job in planned:
            _, bring = _framing(pixels, job)
            yield replace(job, edit=record, controls=_steering(inputs, bring).records)
        return
    guided = None
    if verbs.reads(spec.arch) == "image":
        guided = inputs.get("image_guidance", verbs.INSTRUCTED)
    elif strength is None:
        strength = verbs.STRENGTH
    for job in planned:
        bring = _fitting(inputs, job)
        record = Edit("edit", canvas.digest(bring(pixels)), "", strength, guided)
        yield replace(job, edit=record, controls=_steering(inputs, bring).records)


def draw(inputs: Inputs, job: Job) -> verbs.Draw:
    """Return what makes pictures of a job, or of others of the same edit and controls.

    Raises:
        InputError: a picture is gone, or not what it was when the job was planned.
    """
    bring, image, record = _fitting(inputs, job), None, None
    if inputs.get("init") is not None:
        assert job.edit is not None
        pixels, alpha = _open(inputs, "init", inputs.get("init"))
        if job.edit.verb == "inpaint":
            mask, (frame, bring) = _mask(inputs, pixels, alpha), _framing(pixels, job)
            record = replace(job.edit, image=canvas.digest(pixels), mask=canvas.digest(mask))
            found = _steering(inputs, bring)
            _same((job.edit, job.controls), (record, found.records))
            feather = canvas.feathered(mask, FEATHER)
            return verbs.inside(pixels, mask, frame, feather, controls=found.controls, pictures=found.pictures)
        image = bring(pixels)
        record = replace(job.edit, image=canvas.digest(image))
    found = _steering(inputs, bring)
    _same((job.edit, job.controls), (record, found.records))
    return verbs.whole(image, found.controls, found.pictures)


def find(folder: Path, name: str, path: str) -> Path:
    """Return the file that a line names.

    Raises:
        InputError: outside the folder, or no plain file.
    """
    try:
        inside, found = folder.resolve(), (folder / path).resolve()
        if Path(path).is_absolute() or not found.is_relative_to(inside):
            raise InputError(
                f"{name} '{path}' leaves the directory of the prompt file",
                "put it beside or below the prompt file, or give --inputs DIR",
                id="prompts.path",
            )
        mode = found.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links is a RuntimeError
        words = ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
        raise InputError(f"{name} '{path}': {words}", "check the path", id="prompts.path") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{name} '{path}' is no plain file", "check the path", id="prompts.path")
    return found


def read_mask(name: str, levels: "Pixels", width: int, height: int) -> "Mask":
    """Return what a mask's picture covers: white is made anew.

    Raises:
        InputError: of another size than the picture.
    """
    if levels.shape[:2] != (height, width):
        found = f"{levels.shape[1]}x{levels.shape[0]}"
        raise InputError(
            f"mask '{name}' is {found}, the picture is {width}x{height}",
            "give one of the picture's size",
            id="input.mask",
        )
    return levels.mean(2) >= 127.5


def alpha_mask(name: str, alpha: "Pixels | None", mend: str = "name a mask of its own") -> "Mask":
    """Return what is transparent.

    Raises:
        InputError: the picture has no alpha.
    """
    if alpha is None:
        raise InputError(f"image '{name}' has no alpha", mend, id="input.mask")
    return alpha < 128


def _check(inputs: Inputs, request: Request, spec: Spec) -> None:
    said = {name for name, _ in inputs.said}
    if "init" not in said and said - STEERS:
        name = next(name for name in NAMES if name in said - STEERS)
        raise UsageError(f"'{name}' needs 'init'", 'name a picture: "init": "in.png"', id="usage.inputs")
    if "init" in said and request.transparent:
        raise UsageError("'init' and 'transparent' do not go together", "drop one of them", id="usage.inputs")
    if "mask" in said:
        against = said & {"fit", "image_guidance"}
        against |= {name for name in ("width", "height") if getattr(request, name) is not None}
        against |= {"scale"} if request.scale != 1 else set()
        against |= {"tile"} if request.tile else set()
        if against:
            what = f"'mask' and '{sorted(against)[0]}' do not go together"
            raise UsageError(what, "drop one of them; the result has the size of 'init'", id="usage.inputs")
    if "strength" in said:
        verbs.check_strength(inputs.get("strength"))
    choose("fit", inputs.get("fit", "crop"), FITS)
    kind = verbs.reads(spec.arch)
    if kind == "image" and "mask" in said:
        raise UsageError(
            f"model '{spec.name}' is made for instructions, not to inpaint", "choose another --model", id="usage.model"
        )
    if "image_guidance" in said:
        if kind != "image":
            mend = "drop it, or choose an InstructPix2Pix --model"
            raise UsageError(f"model '{spec.name}' has no --image-guidance", mend, id="usage.image-guidance")
        if not 0 <= inputs.get("image_guidance") <= plan.MAX_GUIDANCE:
            what = f"--image-guidance {inputs.get('image_guidance'):g} is out of range"
            raise UsageError(what, "use 1 to 2", id="usage.range")


def _open(inputs: Inputs, name: str, path: str) -> "tuple[Pixels, Pixels | None]":
    found = find(inputs.folder, name, path)
    status = found.stat()
    return _read(found, path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)  # the lines of a sweep, and the pictures of a line, follow one another
def _read(path: Path, name: str, changed: int, size: int) -> "tuple[Pixels, Pixels | None]":
    from ddgen.io import images

    layers = images.read_layers(name, path.read_bytes())
    for layer in layers:
        if layer is not None and layer.flags.owndata:
            layer.flags.writeable = False
    return layers


def _mask(inputs: Inputs, pixels: "Pixels", alpha: "Pixels | None") -> "Mask":
    path = inputs.get("mask")
    if path == "alpha":
        return alpha_mask(inputs.get("init"), alpha)
    levels, _ = _open(inputs, "mask", path)
    return read_mask(path, levels, pixels.shape[1], pixels.shape[0])


@dataclass(frozen=True)
class Found:
    """What steers a job, and the records of it."""

    records: tuple[Steer, ...] = ()
    controls: tuple[verbs.ControlFile, ...] = ()
    pictures: tuple[verbs.PromptPicture, ...] = ()


def _fitting(inputs: Inputs, job: Job) -> "Bring":
    """Return what brings pictures to a job's size."""
    how = inputs.get("fit", "crop")
    return lambda pixels: canvas.fit(pixels, job.width, job.height, how)


def _framing(picture: "Pixels", job: Job) -> "tuple[Frame, Bring]":
    """Return how the network sees a picture whole, and what lays others over it and brings them there."""
    high, wide = picture.shape[:2]
    frame = Frame((0, 0, wide, high), job.width, job.height)
    return frame, lambda pixels: frame.cut(canvas.fit(pixels, wide, high, "crop"))


def _steering(inputs: Inputs, bring: "Bring") -> Found:
    typed: tuple[str, ...] = inputs.get("control", ())
    prompts: tuple[str, ...] = inputs.get("image_prompt", ())
    networks = inputs.networks
    controls, pictures = [], []
    if typed:
        steering.pair(len(typed), len(networks.controls))
        for text, model in zip(typed, networks.controls, strict=True):
            wanted = steering.parse(text)
            pixels, _ = _open(inputs, "control", wanted.path)
            controls.append(steering.steer(wanted, pixels, model, bring))
    if prompts:
        readers = steering.readers_of(prompts, networks)
        for text, model in zip(prompts, readers, strict=True):
            pictures.append(
                steering.show(text, lambda path: _open(inputs, "image_prompt", path)[0], model, networks, kept=True)
            )
    return Found(
        tuple(record for record, _ in (*controls, *pictures)),
        tuple(file for _, file in controls),
        tuple(one for _, one in pictures),
    )


def _same(planned: object, seen: object) -> None:
    if planned != seen:
        raise InputError(
            "a picture that the line names was changed since the batch was checked", "run it again", id="prompts.path"
        )
