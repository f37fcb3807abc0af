"""What each image of a batch is told at each step: prompts encoded once, bound to the denoiser before sampling starts.

    "a [red:green:0.5] apple AND a bowl"  ->  D = D_u + s (sum_i w_i (D_i - D_u)), with other texts before and after half of the steps

Changes over the steps are a choice among bound closures by sigma; the samplers know nothing of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ddgen.app.control import Control, changes, with_controls
from ddgen.app.windows import View
from ddgen.app.image_prompt import ImagePrompt, with_pictures
from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoise, Denoiser
from ddgen.diffusion.guidance import guided, guided_by_image, interval_from_steps, join, with_channels
from ddgen.diffusion.spacing import Grid
from ddgen.errors import UsageError
from ddgen.nets.layers import timestep_embedding
from ddgen.request import Job
from ddgen.text.prompt import Part, compose
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline

AESTHETIC_SCORE = 6.0
AESTHETIC_SCORE_NEGATIVE = 2.5
REMEMBERED = 1024  # distinct texts


class TextEncoder(Protocol):
    """Prompts in, states out; text/clip.py has one, text/library.py two."""

    def encode(self, prompts: Sequence[str], *, syntax: str = "a1111") -> Conditioning: ...

    def count_chunks(self, prompt: str, syntax: str = "a1111") -> int: ...


class Encodings:
    """A text encoder that encodes each distinct text once, and each by its own length."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.known: dict[tuple[str, str], Conditioning] = {}

    def rows(self, texts: Sequence[str], syntax: str) -> list[Conditioning]:
        """Return the conditioning of each text, one row each, 77 k states long as that text needs."""
        missing = [text for text in dict.fromkeys(texts) if (text, syntax) not in self.known]
        if len(self.known) + len(missing) > REMEMBERED:
            self.known.clear()
            missing = list(dict.fromkeys(texts))
        by_length: dict[int, list[str]] = {}
        for text in missing:
            by_length.setdefault(self.encoder.count_chunks(text, syntax), []).append(text)
        for group in by_length.values():
            encoded = self.encoder.encode(group, syntax=syntax)
            self.known |= {(text, syntax): encoded.select([i]) for i, text in enumerate(group)}
        return [self.known[text, syntax] for text in texts]


def bind(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    grid: Grid,
    beside: Tensor | None = None,
    controls: Sequence[Control] = (),
    pictures: Sequence[ImagePrompt] = (),
    view: View | None = None,
) -> Denoise:
    """Return denoise(x, sigma) for a batch of jobs that share a grid.

    beside: (1, K, h, w) channels that the network reads behind x_t. controls: networks that steer it.
    pictures: image prompts. view: what of the picture x is, for controls that read theirs window by window.

    Raises:
        UsageError: an unknown prompt syntax.
    """
    job = jobs[0]
    denoiser, scale = pipeline.denoiser, torch.tensor([job.guidance for job in jobs], device=pipeline.device)
    if pipeline.spec.arch.unet.guidance_dim:  # distilled with the scale as an input: no second branch
        denoiser, scale = _with_guidance_input(denoiser, scale), torch.ones_like(scale)
    positives = [compose(_words(job, pipeline.spec), grid.steps, job.prompt_syntax) for job in jobs]
    negatives = [compose(job.negative, grid.steps, job.prompt_syntax, conjunction=False)[0] for job in jobs]
    weights = _weights(positives).to(pipeline.device)
    composed = weights.shape[1] > 1 or bool((weights != 1).any())
    image_scale = jobs[0].edit.image_guidance if jobs[0].edit is not None else None
    by_image = beside is not None and image_scale is not None and (image_scale != 1 or bool((scale != 1).any()))
    unconditional = composed or by_image or bool((scale != 1).any())
    towards = [_toward(job, parts) for job, parts in zip(jobs, positives, strict=True)]
    if beside is not None:
        beside = beside.expand(len(jobs), -1, -1, -1)

    guide = partial(guided_by_image, beside=beside, image_scale=image_scale) if by_image else guided

    def segment(step: int) -> Denoise:
        """Bind the texts and controls of one step."""
        active = [control for control in controls if control.active(step, grid.steps)]
        reading = with_controls(with_pictures(denoiser, pipeline.denoiser.network, pictures), active, view)
        if beside is not None and not by_image:
            reading = with_channels(reading, beside)
        conds = [
            _encode(pipeline, jobs, [parts[min(i, len(parts) - 1)].at(step) for parts in positives], towards)
            for i in range(weights.shape[1])
        ]
        uncond = _encode(pipeline, jobs, [part.at(step) for part in negatives], negative=True) if unconditional else None
        if pictures:
            conds = [_shown(cond, True) for cond in conds]
            uncond = None if uncond is None else _shown(uncond, False)
        return guide(
            reading,
            conds,
            uncond,
            scale=scale,
            weights=weights if composed else None,
            rescale=job.guidance_rescale,
            interval=None if job.guidance_interval is None else interval_from_steps(grid.sigmas, *job.guidance_interval),
        )

    everything = [part for parts in positives for part in parts] + negatives
    ends = sorted({min(end, grid.steps) for part in everything for end, _ in part.timeline} | changes(controls, grid.steps))
    return _by_step(grid, [(end, segment(end)) for end in ends])


def _by_step(grid: Grid, segments: list[tuple[int, Denoise]]) -> Denoise:
    """Return a denoise that takes the first segment whose last step (from 1) has not passed; step i runs from sigmas[i - 1]."""
    if len(segments) == 1:
        return segments[0][1]
    floors = [grid.sigmas[end] for end, _ in segments]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        chosen = next((bound for floor, (_, bound) in zip(floors, segments, strict=True) if sigma > floor), segments[-1][1])
        return chosen(x, sigma)

    return denoise


def _words(job: Job, spec: Spec) -> str:
    """Return the text that a job's picture is made from: its prompt, and what asks for a ground to cut out."""
    return job.prompt + spec.ground["suffix"] if job.transparent and spec.ground is not None else job.prompt


def _weights(positives: Sequence[Sequence[Part]]) -> Tensor:
    """Return the (B, parts) weights of the compositions; an image with fewer parts than its neighbours has zeros."""
    most = max(len(parts) for parts in positives)
    return torch.tensor([[part.weight for part in parts] + [0.0] * (most - len(parts)) for parts in positives])


def _toward(job: Job, parts: Sequence[Part]) -> str | None:
    """Return the text that a job's own is mixed with.

    Raises:
        UsageError: one of the two changes over the steps or is composed of several.
    """
    if not job.toward_weight:
        return None
    other = compose(job.toward, job.steps, job.prompt_syntax)
    if any(len(side) > 1 or len(side[0].timeline) > 1 for side in (parts, other)):
        raise UsageError(
            "prompts with AND or changes over the steps have no middle", "use --prompt-syntax plain", id="usage.morph"
        )
    return other[0].at(1)


def _mix(row: Conditioning, other: Conditioning, weight: float) -> Conditioning:
    """Return the row `weight` of the way to the other one; the shorter text is repeated to the longer's length."""
    both = join(row, other)
    context = torch.lerp(both.context[:1], both.context[1:], weight)
    return Conditioning(context, None if both.vector is None else torch.lerp(both.vector[:1], both.vector[1:], weight))


def _encode(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    texts: Sequence[str],
    towards: Sequence[str | None] = (),
    *,
    negative: bool = False,
) -> Conditioning:
    """Return the conditioning of one text per job, with the sizes that the network reads beside it."""
    rows = pipeline.encodings.rows(texts, jobs[0].prompt_syntax)
    for i, other in enumerate(towards):
        if other is not None:
            (there,) = pipeline.encodings.rows([other], jobs[0].prompt_syntax)
            rows[i] = _mix(rows[i], there, jobs[i].toward_weight)
    if negative and pipeline.spec.zero_negative:
        rows = [_zeros(row) if not text else row for row, text in zip(rows, texts, strict=True)]
    cond = join(*rows)
    if not pipeline.spec.arch.vector_ids:
        return cond
    assert cond.vector is not None
    ids = torch.stack(
        [size_vector(pipeline.spec, job.width, job.height, negative=negative) for job in jobs]
    ).to(cond.vector)
    return Conditioning(cond.context, torch.cat([cond.vector, ids], dim=1))


def _shown(cond: Conditioning, pictured: bool) -> Conditioning:
    """Return the conditioning of rows that are shown the image prompts, or not."""
    return replace(cond, pictured=torch.full((len(cond),), pictured, device=cond.context.device))


def _zeros(row: Conditioning) -> Conditioning:
    return Conditioning(torch.zeros_like(row.context), None if row.vector is None else torch.zeros_like(row.vector))


def size_vector(
    spec: Spec,
    width: int,
    height: int,
    *,
    negative: bool = False,
    original: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
) -> Tensor:
    """Return the numbers that the network reads beside the pooled text, each as a sinusoid 256 wide, in one row.

    original: width and height of the picture before it was resized (None: as it is). crop: what was then cut off
        at its left and top, in pixels.
    Ref: Podell et al. 2023, arXiv 2307.01952, section 2.2.
    """
    values = {
        "original_height": height if original is None else original[1],
        "original_width": width if original is None else original[0],
        "crop_top": crop[1],
        "crop_left": crop[0],
        "target_height": height,
        "target_width": width,
        "aesthetic_score": AESTHETIC_SCORE_NEGATIVE if negative else AESTHETIC_SCORE,
    }
    ids = torch.tensor([float(values[name]) for name in spec.arch.vector_ids])
    return timestep_embedding(ids, 256).flatten()


def _with_guidance_input(denoiser: Denoiser, scale: Tensor) -> Denoiser:
    bound = copy.copy(denoiser)
    bound.network = partial(denoiser.network, guidance=scale)
    return bound
