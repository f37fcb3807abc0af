"""What the words of a prompt do to its picture, and what guidance does: looked up in one ordinary run.

    heat of a word    its cross-attention softmax(q k^T / sqrt(d)), mean over heads, layers, steps and the
    word's tokens
    estimates         D_uncond, D_cond and D = D_uncond + s (D_cond - D_uncond) from the same x_t

The weights are computed a second time, by hooks that exist only while they are wanted
(nets/attention.watched): a run that nobody watches has no such code in it. Ref: Tang et al. 2022 (DAAM),
arXiv 2210.04885, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ddgen.app import pipeline as pipelines
from ddgen.app.conditions import bind
from ddgen.io import figures, images
from ddgen.nets.attention import watched

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ddgen.app.pipeline import OnStep, Pipeline
    from ddgen.diffusion.samplers import Step
    from ddgen.diffusion.spacing import Grid
    from ddgen.io.images import Pixels
    from ddgen.request import Job
    from ddgen.text.words import Word

MAX_WORDS = 24
PER_ROW = 6
# From no attention to the most: black, violet, red, orange, pale yellow; equal steps of lightness.
HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)


@dataclass(frozen=True)
class Seen:
    """What one run showed.

    heats:     (words, h, w) attention to each word at each place, as it is.
    estimates: at the step asked for, with labels; sigma: the level of its x_t.
    """

    picture: Pixels
    heats: NDArray[np.float32]
    estimates: list[figures.Cell]
    sigma: float

    @property
    def shares(self) -> list[float]:
        """Return how the attention to the shown words is divided among them, in percent."""
        sums = self.heats.sum((1, 2))
        return [float(100 * value / max(float(sums.sum()), 1e-12)) for value in sums]


class Heats:
    """Adds up what the network's places read of each word."""

    def __init__(
        self, words: Sequence[Word], states: int, size: tuple[int, int], device: torch.device
    ) -> None:
        self.size, self.states, self.layers = size, states, 0
        self.choice = torch.zeros(states, len(words), device=device)  # (states of the text, words)
        for column, word in enumerate(words):
            self.choice[list(word.places), column] = 1 / len(word.places)
        self.total = torch.zeros(len(words), *size, device=device)

    def add(self, weights: Tensor, size: tuple[int, int]) -> None:
        """Add one layer's (B, places, states) weights over a map of `size`; the conditional row is the
        last."""
        row = weights[-1].float()
        # A text shorter than its negative one is read several times over.
        folded = row.unflatten(-1, (-1, self.states)).sum(1)  # (places, states)
        maps = (folded @ self.choice).T.unflatten(-1, size)  # (words, H, W)
        self.total += interpolate(maps[None], self.size, mode="bilinear", align_corners=False)[0]
        self.layers += 1

    def mean(self) -> NDArray[np.float32]:
        """Return the mean over all that was added."""
        return (self.total / max(1, self.layers)).cpu().numpy()


@torch.inference_mode()
def watch(pipeline: Pipeline, job: Job, words: Sequence[Word], states: int, at: int, on_step: OnStep) -> Seen:
    """Make a job's picture and look: attention at every step, the estimates at step `at` (from 1)."""
    factor = pipeline.spec.arch.first_stage.factor
    heats = Heats(words, states, (job.height // factor, job.width // factor), pipeline.device)
    before: list[Tensor] = []
    grids: list[Grid] = []

    def start(x: Tensor, grid: Grid) -> None:
        grids.append(grid)
        if at == 1:
            before.append(x)

    def step(step: Step, steps: int) -> None:
        if step.index == at - 2:
            before.append(step.x)
        on_step(step, steps)

    with watched(pipeline.denoiser.network, heats.add):
        (picture,) = pipelines.run(pipeline, [job], step, on_start=start)
    (x,), (grid,) = before, grids
    sigma = grid.sigmas[at - 1]
    return Seen(picture, heats.mean(), estimates(pipeline, job, x, sigma, grid), sigma)


def estimates(pipeline: Pipeline, job: Job, x: Tensor, sigma: float, grid: Grid) -> list[figures.Cell]:
    """Return the estimates of x0 from one x_t: without the prompt, with it, their difference, and guided.

    A network that is given the scale as a number has one estimate only.
    """

    def estimate(**changes: object) -> Tensor:
        variant = replace(job, **changes)  # type: ignore[arg-type]
        return pipeline.first_stage.decode(bind(pipeline, [variant], grid)(x, sigma))[0]

    guided = figures.Cell(images.to_uint8(estimate()), ("guided", f"scale {job.guidance:g}"))
    if pipeline.spec.arch.unet.guidance_dim:
        return [guided]
    # Scale 0 leaves D_uncond of the guided sum, scale 1 leaves D_cond.
    plain = {"guidance_rescale": 0.0, "guidance_interval": None}
    uncond, cond = estimate(guidance=0.0, **plain), estimate(guidance=1.0, **plain)
    change = cond - uncond
    change = change / change.abs().max().clamp(min=1e-6)
    made = [
        figures.Cell(
            images.to_uint8(uncond), ("unconditional", "negative prompt" if job.negative else "no prompt")
        ),
        figures.Cell(images.to_uint8(cond), ("conditional", "the prompt")),
        figures.Cell(images.to_uint8(change), ("conditional - unconditional", "grey: no difference")),
    ]
    return [*made, guided] if job.guidance != 1 else made


def figure(job: Job, words: Sequence[Word], tokens: Sequence[str], seen: Seen, at: int) -> Pixels:
    """Return the whole story as one picture."""
    shown = [figures.Cell(seen.picture, ("the picture", f"seed {job.seed}"))]
    for word, heat, share in zip(words, seen.heats, seen.shares, strict=True):
        shown.append(
            figures.Cell(overlay(seen.picture, heat), (word.text, f"{share:.0f} % of the attention"))
        )
    rows = [shown[start : start + PER_ROW] for start in range(0, len(shown), PER_ROW)]
    listed = " | ".join(tokens)
    name = f"What guidance does: estimates at step {at} of {job.steps}, sigma {figures.number(seen.sigma)}"
    return figures.table(
        [
            figures.Block(rows, f"What each word does: {len(tokens)} tokens, {listed}"),
            figures.Block([seen.estimates], name),
        ],
        job.prompt,
        (
            "Light: where a word is read most (cross-attention, mean over steps, layers and heads);",
            "each map has its own scale, the percentages compare the words.",
            "guided = unconditional + scale (conditional - unconditional): what the prompt adds, made stronger.",
        ),
    )


def overlay(picture: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Return a picture in grey under a map of heat, from the map's least (dark) to its most (light)."""
    height, width = picture.shape[:2]
    low, high = float(heat.min()), float(heat.max())
    scaled = (heat - low) / max(high - low, 1e-12)
    wide = np.asarray(
        Image.fromarray(scaled.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    ).clip(0, 1)
    places = wide * (len(HEAT) - 1)
    below = np.minimum(places.astype(int), len(HEAT) - 2)
    colour = HEAT[below] + (places - below)[..., None] * (HEAT[below + 1] - HEAT[below])
    grey = picture.mean(-1, keepdims=True)
    return (0.35 * grey + 0.65 * colour).round().clip(0, 255).astype(np.uint8)
