"""From what was typed to what will be made: Request + Spec -> Job, Job, ... Torch-free.

Everything that can be wrong with a request is found here, before a library of a gigabyte is imported. Where
the pictures go is naming.py's matter.
"""

import math
import os
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from ddgen.diffusion.rng import RNGS
from ddgen.diffusion.samplers import SAMPLERS, parse_sampler
from ddgen.diffusion.spacing import spacing_name
from ddgen.errors import UsageError, choose
from ddgen.request import MAX_BATCH, MAX_PIXELS, MAX_PROMPT_BYTES, MAX_SEED, MAX_SIDE, MAX_STEPS, Job, Request
from ddgen.text.prompt import SYNTAXES
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.text.tokens import Tokenizer

MIN_SIDE = 64
MAX_IMAGES = 1_000_000
MAX_GUIDANCE = 100.0
MAX_SCALE = 16
MAX_RESULT_PIXELS = 64 * 2**20
TOKENS_PER_CHUNK = 75
TILES = ("", "x", "y", "xy")
AUTO_BATCH_PIXELS = 8 * 128 * 128


def plan(request: Request, spec: Spec, resolved: dict[str, Any] | None = None) -> Iterator[Job]:
    """Check a request against a model and return its jobs: prompt by prompt, each from the first seed on.

    resolved: what `resolve` says of it, where that is known.

    Raises:
        UsageError: a setting that is unknown, out of range or against another.
    """
    if not request.prompts:
        raise UsageError(
            "no prompt is given", 'write one, as in: ddgen sample "a red apple"', id="usage.prompt"
        )
    for prompt in (*request.prompts, request.negative or ""):
        check_prompt(prompt)
    seeds = _seeds(request)
    if len(request.prompts) * len(seeds) > MAX_IMAGES:
        raise UsageError(
            f"{len(request.prompts) * len(seeds)} images are over the limit of {MAX_IMAGES} a run",
            "split the run with --seed",
            id="usage.num",
        )
    shared = resolve(request, spec) if resolved is None else resolved
    return (Job(prompt=prompt, seed=seed, **shared) for prompt in request.prompts for seed in seeds)


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that no machine can read, or that nobody typed.

    Raises:
        UsageError: bytes that are not UTF-8 (Python holds them as surrogates), or more than 64 KiB.
    """
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError as error:
        at = len(prompt[: error.start].encode())
        byte = ord(prompt[error.start]) & 0xFF
        raise UsageError(
            f"prompt is not valid UTF-8 at byte {at} (\\x{byte:02x})",
            "put it into a file and pipe it in: iconv -f latin1 -t utf-8 FILE | ddgen sample -",
            id="usage.prompt-encoding",
        ) from error
    if size > MAX_PROMPT_BYTES:
        raise UsageError(
            f"prompt has {size} bytes, over the limit of {MAX_PROMPT_BYTES}",
            "shorten it",
            id="usage.prompt-size",
        )


def check_keep(keep: int, of: int) -> None:
    """Refuse to keep none, or more than are made.

    Raises:
        UsageError: it is so.
    """
    if not 1 <= keep <= of:
        pictures = "picture" if of == 1 else "pictures"
        mend = f"make more with --num, as --num {max(4, 4 * keep)}"
        raise UsageError(f"--best {keep} of {of} {pictures}", mend, id="usage.best")


def smallest(spec: Spec) -> int:
    """Return the least side of a picture, in pixels: 64, or that of a model made for less."""
    return min(MIN_SIDE, spec.defaults.width, spec.defaults.height)


def check_size(width: int, height: int, divisor: int, smallest: int = MIN_SIDE) -> None:
    """Refuse a picture size that the network cannot make.

    Raises:
        UsageError: too large, too small, or off the network's grid of `divisor` pixels.
    """
    if width * height > MAX_PIXELS:
        raise UsageError(
            f"{width}x{height} is over the {MAX_PIXELS // 2**20} megapixel limit",
            f"use at most {MAX_SIDE}x{MAX_SIDE}",
            id="usage.size",
        )
    for flag, side in (("--width", width), ("--height", height)):
        least = math.ceil(smallest / divisor) * divisor
        if not least <= side <= MAX_SIDE:
            raise UsageError(f"{flag} {side} is out of range", f"use {least} to {MAX_SIDE}", id="usage.size")
        if side % divisor:
            below, above = side // divisor * divisor, -(-side // divisor) * divisor
            either = f"{below} or {above}" if above <= MAX_SIDE else f"{below}"
            raise UsageError(
                f"{flag} {side} is not a multiple of {divisor}", f"use {either}", id="usage.size"
            )


def size_of_ratio(spec: Spec, across: float, down: float) -> tuple[int, int]:
    """Return (width, height) of the given ratio with about the area the model is made for, on its grid."""
    area = spec.defaults.width * spec.defaults.height
    width = math.sqrt(area * across / down)
    least = math.ceil(smallest(spec) / spec.divisor)
    sides = (max(least, round(side / spec.divisor)) * spec.divisor for side in (width, area / width))
    return next(sides), next(sides)


def remarks(request: Request, spec: Spec) -> list[str]:
    """Return what the user should know but need not mend."""
    found = []
    if request.guidance == 0:
        found.append("--guidance 0 means off, as 1 does")
    sampler, _ = _grid_names(request, spec)
    if request.eta is not None and SAMPLERS[sampler].eta is None:
        found.append(f"--eta has no effect with sampler '{sampler}'")
    # A token is a byte at least: a short prompt need not be tokenized, and the vocabulary not be read.
    candidates = [
        prompt for prompt in dict.fromkeys(request.prompts) if len(prompt.encode()) > TOKENS_PER_CHUNK
    ]
    steps = spec.defaults.steps if request.steps is None else request.steps
    counts = (token_count(prompt, request.prompt_syntax, steps) for prompt in candidates)
    long = [count for count in counts if count > TOKENS_PER_CHUNK]
    if long:
        chunks = -(-max(long) // TOKENS_PER_CHUNK)
        more = f" ({len(long)} prompts are that long)" if len(long) > 1 else ""
        found.append(f"prompt has {max(long)} tokens, read in {chunks} chunks of {TOKENS_PER_CHUNK}{more}")
    return found


def token_count(text: str, syntax: str = "a1111", steps: int = 1) -> int:
    """Return how many CLIP tokens a prompt comes to, without start and end; the most at any of the steps."""
    from ddgen.text.chunks import chunk_prompt
    from ddgen.text.prompt import compose

    texts = {words for part in compose(text, steps, syntax) for _, words in part.timeline}
    return max(chunk_prompt(words, _tokenizer(), syntax).count for words in texts) if text else 0


def batches(jobs: Iterator[Job], size: int | None) -> Iterator[list[Job]]:
    """Group jobs of one size and one grid into tensor batches; None chooses by the picture's area."""
    first = next(jobs, None)
    if first is None:
        return
    if size is None:
        size = max(1, min(16, AUTO_BATCH_PIXELS // (first.width * first.height)))
    batch = [first, *islice(jobs, size - 1)]
    while batch:
        yield batch
        batch = list(islice(jobs, size))


def check_batch_size(size: int) -> None:
    """Refuse a tensor batch of no or too many images.

    Raises:
        UsageError: out of range.
    """
    _in_range("--batch-size", size, 1, MAX_BATCH)


def check_quality(quality: int) -> None:
    """Refuse a quality that no encoder knows.

    Raises:
        UsageError: out of range.
    """
    _in_range("--quality", quality, 1, 100)


def check_alpha(jobs: Sequence[Job], format: str) -> None:
    """Refuse a format that cannot hold what is to be cut out.

    Raises:
        UsageError: JPEG has no alpha.
    """
    if format == "jpeg" and any(job.transparent for job in jobs):
        raise UsageError(
            "--transparent: JPEG files have no alpha channel", "use --format png", id="usage.transparent"
        )


def draw_seed() -> int:
    """Return a random seed below 2^32."""
    return int.from_bytes(os.urandom(4), "big")


def resolve(request: Request, spec: Spec) -> dict[str, Any]:
    """Check everything but prompts and seeds, and return the values that the request's jobs have of it.

    Raises:
        UsageError: a setting that is unknown, out of range or against another.
    """
    defaults = spec.defaults
    width = defaults.width if request.width is None else request.width
    height = defaults.height if request.height is None else request.height
    check_size(width, height, spec.divisor, smallest(spec))
    _in_range("--scale", request.scale, 1, MAX_SCALE)
    if width * height * request.scale**2 > MAX_RESULT_PIXELS:
        raise UsageError(
            f"{width * request.scale}x{height * request.scale} is over the 64 megapixel limit of a result",
            f"use at most --scale {math.isqrt(MAX_RESULT_PIXELS // (width * height))}",
            id="usage.scale",
        )
    sampler, spacing = _grid_names(request, spec)
    steps = defaults.steps if request.steps is None else request.steps
    if request.sigmas is not None:
        _check_sigmas(request)
        steps = len(request.sigmas) - 1
    _in_range("--steps", steps, 1, MAX_STEPS)
    guidance = defaults.guidance if request.guidance is None else request.guidance
    _in_range("--guidance", guidance, 0.0, MAX_GUIDANCE)
    rescale = defaults.guidance_rescale if request.guidance_rescale is None else request.guidance_rescale
    _in_range("--guidance-rescale", rescale, 0.0, 1.0)
    if request.guidance_interval is not None:
        low, high = request.guidance_interval
        if not 0.0 <= low < high <= 1.0:
            raise UsageError(
                f"--guidance-interval {low:g}:{high:g} is not a part of the steps",
                "use two fractions, as 0.1:0.8",
                id="usage.interval",
            )
    usual = SAMPLERS[sampler].eta
    eta = request.eta if request.eta is not None else defaults.eta if defaults.eta is not None else usual
    if eta is not None:
        _in_range("--eta", eta, 0.0, 1.0)
    return {
        "negative": "" if request.negative is None else request.negative,
        "width": width,
        "height": height,
        "steps": steps,
        "guidance": 1.0 if guidance == 0 else float(guidance),
        "guidance_rescale": float(rescale),
        "guidance_interval": request.guidance_interval,
        "sampler": sampler,
        "spacing": spacing,
        "sigmas": request.sigmas,
        "eta": None if usual is None or eta is None else float(eta),
        "scale": request.scale,
        "model": spec.name,
        "prompt_syntax": choose("prompt syntax", request.prompt_syntax, SYNTAXES),
        "rng": choose("rng", request.rng, RNGS),
        **_whims(request, spec),
    }


def _whims(request: Request, spec: Spec) -> dict[str, object]:
    """Resolve what plays with the noise and the canvas."""
    if request.transparent and spec.ground is None:
        raise UsageError(
            f"--transparent: model '{spec.name}' draws no ground that can be cut out",
            "drop it, or use --model sticker",
            id="usage.transparent",
        )
    if request.tile not in TILES:
        raise UsageError(f"--tile '{request.tile}' is unknown", "use x, y or xy", id="usage.tile")
    _in_range("--variation", request.variation, 0.0, 1.0)
    if request.variation and request.variation_seed is None:
        raise UsageError("--variation needs a seed to go to", "add --variation-seed 1", id="usage.variation")
    seed = 0 if request.variation_seed is None else request.variation_seed
    _in_range("--variation-seed", seed, 0, MAX_SEED)
    # Two runs that make the same picture say the same thing.
    return {
        "tile": request.tile,
        "transparent": request.transparent,
        "variation": float(request.variation),
        "variation_seed": seed if request.variation else 0,
    }


def _grid_names(request: Request, spec: Spec) -> tuple[str, str]:
    """Return sampler and spacing; A1111's "DPM++ 2M Karras" names both."""
    sampler, with_it = parse_sampler(spec.defaults.sampler if request.sampler is None else request.sampler)
    spacing = (
        request.spacing
        if request.spacing is not None
        else with_it
        if with_it is not None
        else spec.defaults.spacing
    )
    return sampler, spacing_name(spacing)


def _seeds(request: Request) -> Sequence[int]:
    if isinstance(request.seed, tuple):
        if request.num != 1:
            raise UsageError(
                "--num does not go with a list of seeds, each seed makes one image",
                "drop --num or give one --seed",
                id="usage.seed",
            )
        if not request.seed:
            raise UsageError(
                "--seed lists no seed", "use one as 7, a list as 1,2 or a range as 10-20", id="usage.seed"
            )
        for seed in request.seed:
            _in_range("--seed", seed, 0, MAX_SEED)
        return request.seed
    _in_range("--num", request.num, 1, MAX_IMAGES)
    first = draw_seed() if request.seed is None else request.seed
    _in_range("--seed", first, 0, MAX_SEED - request.num + 1)
    return range(first, first + request.num)


def _check_sigmas(request: Request) -> None:
    sigmas = request.sigmas or ()
    if request.steps is not None or request.spacing is not None:
        other = "--steps" if request.steps is not None else "--spacing"
        raise UsageError(f"--sigmas does not go with {other}", f"drop {other}", id="usage.sigmas")
    falling = all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
    if len(sigmas) < 2 or not falling or sigmas[-1] < 0 or not all(map(math.isfinite, sigmas)):
        raise UsageError(
            "--sigmas is not a falling list of numbers", "use some as 14.6,7,3,1,0", id="usage.sigmas"
        )


def _in_range(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # so that NaN is out of range, too
        raise UsageError(
            f"{flag} {_shown(value)} is out of range",
            f"use {_shown(low)} to {_shown(high)}",
            id="usage.range",
        )


def _shown(value: float) -> str:
    return format(value, "g") if isinstance(value, float) else str(value)


@cache
def _tokenizer() -> "Tokenizer":
    from ddgen.text.tokens import Tokenizer

    return Tokenizer()
