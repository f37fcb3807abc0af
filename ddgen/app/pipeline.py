"""Jobs in, pictures out: the one road from a prompt to pixels.

    text.encode -> SeededNoise -> guided(denoiser) -> sampler over sigmas -> first_stage.decode -> uint8

Every station is a module of its own; this file only joins them. It writes no file, prints nothing and keeps no state between calls
but the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ddgen.app import edit as editing
from ddgen.app import plan, windows
from ddgen.app.conditions import Encodings, TextEncoder, bind
from ddgen.app.memory import fit_decoding
from ddgen.app.control import Control
from ddgen.app.image_prompt import ImagePrompt
from ddgen.app.refine import cut, hand_over
from ddgen.app.verbs import Source
from ddgen.diffusion.denoiser import Denoise, Denoiser
from ddgen.diffusion.noise import NoiseSource, slerp
from ddgen.diffusion.rng import initial_scale, make_noise
from ddgen.diffusion.samplers import SAMPLERS, Step
from ddgen.diffusion.spacing import Grid, make_grid, make_spacing
from ddgen.errors import NumericsError
from ddgen.io import images
from ddgen.io.matte import key_out
from ddgen.nets.attention import remembering
from ddgen.nets.seamless import seamless
from ddgen.request import Job, Request
from ddgen.weights import registry
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from PIL import Image

OnStep = Callable[[Step, int], None]
"""Called after every step with the Step and the number of steps; it may raise to stop."""
OnStart = Callable[[Tensor, Grid], None]
"""Called before the first step with the state that it starts from and the grid."""


class FirstStage(Protocol):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, channels, H / factor, W / factor) and back."""

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass
class Pipeline:
    """A checkpoint ready to sample: its Spec and its parts, on one device.

    digests: sha256 of every weights file by part, for metadata and job ids.
    notes:   what of its LoRAs fits nothing in the model.
    refiner: what takes over from `spec.refiner_start` on.
    kept_small: weights are kept in 16 bits and brought layer by layer (`memory.keep_small`).
    """

    spec: Spec
    text: TextEncoder
    denoiser: Denoiser
    first_stage: FirstStage
    device: torch.device
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refiner: Pipeline | None = None
    kept_small: bool = False

    def __post_init__(self) -> None:
        self.encodings = Encodings(self.text)
        self.controls: dict[Path, nn.Module] = {}

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        loras: Sequence[str] = (),
        embeddings: Sequence[str] = (),
        vae: str | None = None,
        refiner: str | None = None,
        ema: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        text_backend: str = "native",
        offload: str = "auto",
    ) -> Pipeline:
        """Load a model by name or path (default: the embedded one), with LoRAs (FILE or FILE:WEIGHT), embeddings,
        another autoencoder, and a model that takes over for the last steps; ema: with the averaged U-Net that a
        file holds beside the trained one.

        Raises:
            ModelError: an unknown name, or weights that are missing, damaged or of another shape.
            ResourceError: a device that is not there.
        """
        from ddgen.app.adjust import adjust
        from ddgen.app.assemble import assemble

        spec = adjust(
            registry.find(model), loras=loras, embeddings=embeddings, vae=vae, ema=ema, refiner=refiner
        )
        return assemble(spec, device=device, dtype=dtype, text_backend=text_backend, offload=offload)


@torch.inference_mode()
def run(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    on_step: OnStep | None = None,
    source: Source | None = None,
    on_start: OnStart | None = None,
    controls: Sequence[Control] = (),
    pictures: Sequence[ImagePrompt] = (),
) -> list[np.ndarray]:
    """Make one picture per job in one tensor batch: (H, W, 3) uint8 arrays, (H, W, 4) for transparent ones, in order.

    Jobs must agree in size, edit, tile and in all that shapes the grid (sampler, spacing, steps, sigmas, eta, rescale, interval);
    prompt, seed, variation and guidance may differ. source: the picture that jobs with an `edit` work on.
    controls: networks that steer the model's. pictures: image prompts.

    Raises:
        NumericsError: a picture came out non-finite; nothing of the batch is returned.
    """
    networks = [part.denoiser.network for part in (pipeline, pipeline.refiner) if part is not None]
    reading = [*networks, *(control.network for control in controls)]
    arch, stage = pipeline.spec.arch, pipeline.first_stage
    ring = windows.seamless_axes(jobs[0], arch, least=windows.LEAST)
    with (
        seamless(reading, windows.seamless_axes(jobs[0], arch)),
        seamless([stage], ring),
        remembering(reading),
    ):
        shown = windows.seen(jobs[0], least=windows.LEAST)
        fit_decoding(stage, *shown, pipeline.device, kept_small=pipeline.kept_small, ring=ring)
        latents = sample(pipeline, jobs, on_step, source, on_start, controls, pictures)
        decoded = _decoded(pipeline, jobs, latents)
    bad = [str(job.seed) for job, picture in zip(jobs, decoded, strict=True) if picture is None]
    if bad:
        raise NumericsError(f"seed {', '.join(bad)}: non-finite values; not saved", "run with --dtype float32", id="numerics.pixels")
    return [_finished(pipeline.spec, job, picture) for job, picture in zip(jobs, decoded, strict=True)]


def _decoded(pipeline: Pipeline, jobs: Sequence[Job], latents: Tensor) -> list[np.ndarray | None]:
    """Return the pictures (H, W, 3) of latents, None for those with values that are not finite."""
    stage, arch = pipeline.first_stage, pipeline.spec.arch
    tiling = windows.tiling_of(jobs[0], arch, least=windows.LEAST)
    if tiling is not None:
        return [windows.decode(stage, one, arch.first_stage.factor, tiling) for one in latents.split(1)]
    return [images.to_uint8(image) if image.isfinite().all() else None for image in stage.decode(latents)]


def _finished(spec: Spec, job: Job, picture: np.ndarray) -> np.ndarray:
    """Return a decoded picture as the array that is saved: cut out of its ground, enlarged."""
    if job.transparent and spec.ground is not None:
        picture = key_out(picture, (spec.ground["red"], spec.ground["green"], spec.ground["blue"]))
    return images.enlarge(picture, job.scale)


def sample(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    on_step: OnStep | None = None,
    source: Source | None = None,
    on_start: OnStart | None = None,
    controls: Sequence[Control] = (),
    pictures: Sequence[ImagePrompt] = (),
) -> Tensor:
    """Return the clean latents of a batch of jobs: (B, C, H / f, W / f) float32."""
    job, arch = jobs[0], pipeline.spec.arch
    if job.sigmas is not None:
        grid = make_grid(job.sigmas)
    else:
        discard = SAMPLERS[job.sampler].discard
        grid = make_spacing(job.spacing, pipeline.denoiser.schedule, job.steps, discard=discard)
    grid = editing.later(grid, job.edit)
    begun = editing.begin(pipeline, source, job)
    beside = None if begun is None else begun.beside
    view = windows.View()
    bound = bind(pipeline, jobs, grid, beside, controls, pictures, view)
    denoise = editing.wrap(begun, jobs, bound, arch, view)
    shape = (arch.first_stage.channels, job.height // arch.first_stage.factor, job.width // arch.first_stage.factor)
    noise = make_noise(job.rng, [job.seed for job in jobs], shape, pipeline.device)
    eps = varied(jobs, noise.initial(), shape)
    x = eps * initial_scale(
        job.rng, grid, sampler=job.sampler, spacing=job.spacing, sigma_max=pipeline.denoiser.schedule.sigma_max
    )
    if begun is not None and job.edit is not None:
        x = editing.start(begun, job.edit, grid, eps, x)
    if on_start is not None:
        on_start(x, grid)
    steps = walk(job, denoise, x, grid, noise)
    other = pipeline.refiner
    if other is not None:
        steps = hand_over(
            lambda bound, state, part: walk(job, bound, state, part, noise),
            denoise,
            lambda: editing.wrap(begun, jobs, bind(other, jobs, grid), other.spec.arch),
            x,
            cut(grid, pipeline.denoiser.schedule, pipeline.spec.refiner_start),
        )
    for step in steps:
        if on_step is not None:
            on_step(step, grid.steps)
    return step.x


def varied(jobs: Sequence[Job], eps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the first normals of each job, moved toward those of its variation seed."""
    if not any(job.variation for job in jobs):
        return eps
    others = make_noise(jobs[0].rng, [job.variation_seed for job in jobs], shape, eps.device).initial()
    rows = zip(eps, others, (job.variation for job in jobs), strict=True)
    return torch.stack([slerp(a, b, amount) for a, b, amount in rows])


def walk(job: Job, denoise: Denoise, x: Tensor, grid: Grid, noise: NoiseSource) -> Iterator[Step]:
    """Start the job's sampler at x on the grid."""
    info = SAMPLERS[job.sampler]
    options = {"eta": job.eta} if info.eta is not None and job.eta is not None else {}
    return info.fn(denoise, x, grid.sigmas, noise, **options)


def generate(pipeline: Pipeline, request: Request, on_step: OnStep | None = None) -> list[Image.Image]:
    """Make all the pictures of a request, one after the other, as Pillow images.

    Raises:
        UsageError: a setting that is unknown or out of range.
        NumericsError: a picture came out non-finite.
    """
    jobs = plan.plan(request, pipeline.spec)
    return [images.to_pillow(picture) for job in jobs for picture in run(pipeline, [job], on_step)]
