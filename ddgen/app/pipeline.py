"""Jobs in, pictures out: the one road from a prompt to pixels.

    text.encode -> SeededNoise -> guided(denoiser) -> sampler over sigmas -> first_stage.decode -> uint8

Every station is a module of its own; this file only joins them. It writes no file, prints nothing and keeps no state between calls
but the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ddgen.app import plan
from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoise, Denoiser
from ddgen.diffusion.guidance import guided, interval_from_steps
from ddgen.diffusion.noise import NoiseSource, SeededNoise
from ddgen.diffusion.samplers import SAMPLERS, Step
from ddgen.diffusion.spacing import Grid, make_grid, make_spacing
from ddgen.errors import NumericsError
from ddgen.io import images
from ddgen.nets.layers import timestep_embedding
from ddgen.request import Job, Request
from ddgen.weights import registry

if TYPE_CHECKING:
    from PIL import Image

OnStep = Callable[[Step, int], None]
"""Called after every step with the Step and the number of steps; it may raise to stop."""


class TextEncoder(Protocol):
    """Prompts in, states out; ddgen/text/clip.py and library.py are two."""

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...


class FirstStage(Protocol):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, channels, H / factor, W / factor) and back."""

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass
class Pipeline:
    """A checkpoint ready to sample: its Spec and its parts, on one device.

    digests: sha256 of every weights file by part, for metadata and job ids.
    """

    spec: registry.Spec
    text: TextEncoder
    denoiser: Denoiser
    first_stage: FirstStage
    device: torch.device
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls, model: str | None = None, *, device: str = "auto", dtype: str = "auto", text_backend: str = "native"
    ) -> Pipeline:
        """Load a model by name or path (default: the embedded one).

        Raises:
            ModelError: an unknown name, or weights that are missing, damaged or of another shape.
            ResourceError: a device that is not there.
        """
        from ddgen.app.assemble import assemble

        return assemble(registry.find(model), device=device, dtype=dtype, text_backend=text_backend)


@torch.inference_mode()
def run(pipeline: Pipeline, jobs: Sequence[Job], on_step: OnStep | None = None) -> list[np.ndarray]:
    """Make one picture per job in one tensor batch: (H, W, 3) uint8 arrays, in order.

    Jobs must agree in size and in all that shapes the grid (sampler, spacing, steps, sigmas, eta, rescale, interval); prompt, seed
    and guidance may differ.

    Raises:
        NumericsError: a picture came out non-finite; nothing of the batch is returned.
    """
    latents = sample(pipeline, jobs, on_step)
    pixels = pipeline.first_stage.decode(latents)
    bad = [str(job.seed) for job, image in zip(jobs, pixels, strict=True) if not torch.isfinite(image).all()]
    if bad:
        raise NumericsError(f"seed {', '.join(bad)}: non-finite values; not saved", "run with --dtype float32", id="numerics.pixels")
    return [images.enlarge(images.to_uint8(image), job.scale) for job, image in zip(jobs, pixels, strict=True)]


def sample(pipeline: Pipeline, jobs: Sequence[Job], on_step: OnStep | None = None) -> Tensor:
    """Return the clean latents of a batch of jobs: (B, C, H / f, W / f) float32."""
    job = jobs[0]
    cond, uncond = condition(pipeline, jobs)
    grid = make_grid(job.sigmas) if job.sigmas is not None else make_spacing(job.spacing, pipeline.denoiser.schedule, job.steps)
    denoise = guided(
        pipeline.denoiser,
        cond,
        uncond,
        scale=1.0 if uncond is None else torch.tensor([job.guidance for job in jobs], device=pipeline.device),
        rescale=job.guidance_rescale,
        interval=None if job.guidance_interval is None else interval_from_steps(grid.sigmas, *job.guidance_interval),
    )
    stage = pipeline.spec.arch.first_stage
    shape = (stage.channels, job.height // stage.factor, job.width // stage.factor)
    noise = SeededNoise([job.seed for job in jobs], shape, pipeline.device)
    x = noise.initial() * grid.initial_scale
    for step in walk(job, denoise, x, grid, noise):
        if on_step is not None:
            on_step(step, grid.steps)
    return step.x


def walk(job: Job, denoise: Denoise, x: Tensor, grid: Grid, noise: NoiseSource) -> Iterator[Step]:
    """Start the job's sampler at x on the grid."""
    info = SAMPLERS[job.sampler]
    options = {"eta": job.eta} if info.eta is not None and job.eta is not None else {}
    return info.fn(denoise, x, grid.sigmas, noise, **options)


def condition(pipeline: Pipeline, jobs: Sequence[Job]) -> tuple[Conditioning, Conditioning | None]:
    """Encode the prompts, and the negative prompts if any job is guided; sizes join the vector where the network reads them."""
    guided_jobs = any(job.guidance != 1.0 for job in jobs)
    cond = with_ids(pipeline, pipeline.text.encode([job.prompt for job in jobs]), jobs)
    if not guided_jobs:
        return cond, None
    return cond, with_ids(pipeline, pipeline.text.encode([job.negative for job in jobs]), jobs, negative=True)


AESTHETIC_SCORE = {False: 6.0, True: 2.5}
"""What SDXL's refiner is told of the picture wanted and (True) of the one to avoid."""


def with_ids(pipeline: Pipeline, cond: Conditioning, jobs: Sequence[Job], *, negative: bool = False) -> Conditioning:
    """Append the numbers that the network reads beside the pooled text, each as a sinusoid 256 wide.

    Ref: Podell et al. 2023, arXiv 2307.01952, section 2.2.
    """
    names = pipeline.spec.arch.vector_ids
    if not names:
        return cond
    rows = []
    for job in jobs:
        values = {
            "original_height": job.height,
            "original_width": job.width,
            "crop_top": 0,
            "crop_left": 0,
            "target_height": job.height,
            "target_width": job.width,
            "aesthetic_score": AESTHETIC_SCORE[negative],
        }
        ids = torch.tensor([float(values[name]) for name in names], device=cond.context.device)
        rows.append(timestep_embedding(ids, 256).flatten())
    ids = torch.stack(rows).to(cond.vector.dtype)
    return Conditioning(cond.context, torch.cat([cond.vector, ids], dim=1))


def generate(pipeline: Pipeline, request: Request, on_step: OnStep | None = None) -> list[Image.Image]:
    """Make all the pictures of a request, one after the other, as Pillow images.

    Raises:
        UsageError: a setting that is unknown or out of range.
        NumericsError: a picture came out non-finite.
    """
    jobs = plan.plan(request, pipeline.spec)
    return [images.to_pillow(picture) for job in jobs for picture in run(pipeline, [job], on_step)]
