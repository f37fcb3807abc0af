"""What was asked for: a Request as typed, a Job as exactly one image with everything resolved.

    Request --plan--> Job, Job, ...

None means "not said": the spec's default is taken, never guessed by truthiness (`--guidance 0`, `--seed 0` mean what they say).
"""

from dataclasses import dataclass

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_SIDE = 4096
MAX_PIXELS = 16 * 2**20
MAX_BATCH = 64
MAX_PROMPT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Request:
    """One call of `sample`: some prompts and the settings they share.

    prompts:           each makes `num` images.
    seed:              first seed of every prompt (image i uses seed + i); a tuple is crossed with the prompts and excludes `num`; None draws one.
    width, height:     pixels, before `scale`.
    guidance:          classifier-free guidance scale; 1 (and 0) = off.
    guidance_interval: (low, high) as fractions of the steps, 0 = first; guidance is off outside.
    sigmas:            an explicit grid in place of spacing and steps.
    scale:             the finished picture is enlarged so many times (Lanczos).
    rng:               whose noise: "ddgen", or as "diffusers", "a1111" or "comfy" draw it.
    prompt_syntax:     "a1111" (weights, changes over the steps, AND, BREAK) or "plain" (every character is itself).
    """

    prompts: tuple[str, ...]
    negative: str | None = None
    num: int = 1
    seed: int | tuple[int, ...] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    sampler: str | None = None
    spacing: str | None = None
    sigmas: tuple[float, ...] | None = None
    eta: float | None = None
    scale: int = 1
    prompt_syntax: str = "a1111"
    rng: str = "ddgen"


@dataclass(frozen=True)
class Job:
    """Exactly one image: nothing is left to decide but the arithmetic. Fields as in Request; eta None = the sampler's own."""

    prompt: str
    negative: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    sampler: str
    spacing: str
    sigmas: tuple[float, ...] | None
    eta: float | None
    scale: int
    model: str
    prompt_syntax: str = "a1111"
    rng: str = "ddgen"
