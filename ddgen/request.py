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
    tile:              "x", "y" or "xy": the axes along which the picture's ends meet; "" = none.
    transparent:       the picture is drawn on the model's key colour, which is then cut out: RGBA.
    variation:         how far the noise lies on the way to that of `variation_seed` (slerp), 0 to 1.
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
    tile: str = ""
    transparent: bool = False
    variation: float = 0.0
    variation_seed: int | None = None


@dataclass(frozen=True)
class Edit:
    """The part of a job that another picture plays; the picture itself is handed over beside the job.

    verb:           the command, as "inpaint".
    image:          sha256 of the picture's pixels; mask: of what is made anew of it ("" = everything).
    strength:       the fraction of the steps that is run, from x0 + sigma eps on; None = all, from noise alone.
    image_guidance: for networks that read the picture beside the noise; None for the others.
    window:         side in pixels of the windows that the network sees one by one; 0 = all at once.
    """

    verb: str
    image: str = ""
    mask: str = ""
    strength: float | None = None
    image_guidance: float | None = None
    window: int = 0


@dataclass(frozen=True)
class Steer:
    """One ControlNet of a job: the kind of its picture, both by sha256, weight and part of the steps."""

    kind: str
    image: str
    model: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Job:
    """Exactly one image: nothing is left to decide but the arithmetic.

    Fields as in Request; eta None = the sampler's own. toward, toward_weight: another prompt, and how far the
    text's states lie on the way to its. edit: None for a picture made from its prompt alone.
    """

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
    tile: str = ""
    transparent: bool = False
    variation: float = 0.0
    variation_seed: int = 0
    toward: str = ""
    toward_weight: float = 0.0
    edit: Edit | None = None
    controls: tuple[Steer, ...] = ()
