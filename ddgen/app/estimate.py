"""How long a run will take and how much memory, roughly: counted from the networks' shapes, and for the time
over the speed of a short matrix product on this device.

Said before runs of minutes, so that nobody waits for one unawares, and by `--plan`. Networks below SMALL
parameters are quick enough everywhere and are not asked about; torch is imported only for the measurement.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ddgen.diffusion.samplers import SAMPLERS
from ddgen.nets.config import FirstStageConfig, KLConfig, UNetConfig
from ddgen.request import Job
from ddgen.text.config import CLIPConfig
from ddgen.weights.arch import FAMILIES
from ddgen.weights.spec import Spec

SMALL_TILE = 28  # latent cells: decoding of pictures that a common tile would cover whole, or where memory is what counts

SMALL = 100_000_000  # parameters
WORTH_SAYING = 120.0  # seconds
WORTH_SAYING_EACH = 12.0  # of one picture, where nobody knows how many will come
EFFICIENCY = 0.6  # of the matrix product's speed that networks reach
TOKENS = 77
MUCH_FASTER = 4.0
QUICK = ("sd-turbo", "SD21", 512)  # the quickest of the known models: name, architecture, side; one step
_WHERE = {"cpu": "this CPU", "cuda": "this GPU", "mps": "this GPU"}


@dataclass
class Work:
    """A sum of multiplications and adds, and of the weights that they read."""

    operations: float = 0.0
    parameters: float = 0.0

    def layer(self, weights: float, places: float) -> None:
        """Add a layer whose weights are used at each of so many places."""
        self.operations += 2 * weights * places
        self.parameters += weights

    def block(self, inside: int, outside: int, places: float) -> None:
        """Add a ResBlock."""
        self.layer(9 * inside * outside + 9 * outside * outside, places)
        if inside != outside:
            self.layer(inside * outside, places)

    def attend(self, depth: int, width: int, context: int, places: float) -> None:
        """Add a spatial transformer of `depth` blocks; 0 is none."""
        if not depth:
            return
        self.layer(2 * width * width, places)
        for _ in range(depth):
            self.layer((4 + 2 + 12) * width * width, places)
            self.layer(2 * width * context, TOKENS)
            self.operations += 4 * width * places * (places + TOKENS)


def unet(config: UNetConfig, height: int, width: int) -> Work:
    """Return the work of one call of a U-Net on one latent of this size."""
    work = Work()
    here, top = config.model_channels, len(config.channel_mult) - 1
    skips = [here]
    work.layer(9 * config.in_channels * here, height * width)
    for level, factor in enumerate(config.channel_mult):
        wide, places = config.model_channels * factor, height * width / 4**level
        for depth in config.down_depth[level]:
            work.block(here, wide, places)
            work.attend(depth, wide, config.context_dim, places)
            here = wide
            skips.append(here)
        if level != top:
            work.layer(9 * here * here, places / 4)
            skips.append(here)
    if config.mid_depth is not None:
        places = height * width / 4**top
        work.block(here, here, places)
        work.attend(config.mid_depth, here, config.context_dim, places)
        if config.mid_depth:
            work.block(here, here, places)
    for level in range(top, -1, -1):
        wide, places = config.model_channels * config.channel_mult[level], height * width / 4**level
        for depth in config.up_depth[level]:
            work.block(here + (skips.pop() if skips else 0), wide, places)
            work.attend(depth, wide, config.context_dim, places)
            here = wide
        if level:
            work.layer(9 * here * here, places * 4)
    return work


# Maps of the finest level (model_channels x places) that are alive at once in one row, counted tensor by tensor
# on SD1.5, SD2.1 and SDXL: the feed-forward of that level, or where it has none its joined skips.
STEP_MAPS = {True: 25, False: 16}
FLOAT = 4  # bytes


def step_bytes(config: UNetConfig, height: int, width: int) -> int:
    """Return about how many bytes of activations one row of a latent of this size takes in float32."""
    maps = STEP_MAPS[any(config.down_depth[0])]
    return maps * FLOAT * config.model_channels * height * width


def decode_bytes(config: FirstStageConfig, height: int, width: int) -> int:
    """Return about how many bytes decoding one picture of height x width pixels takes."""
    if not isinstance(config, KLConfig):
        return 0
    wide = config.channel_mult[min(1, len(config.channel_mult) - 1)]
    maps = wide + 4  # what entered the finest level, and a block's input, middle, middle normalised and result
    return maps * FLOAT * config.model_channels * height * width // config.patch**2


def autoencoder_parameters(config: FirstStageConfig) -> float:
    """Return about how many weights a first stage has: twice its decoder's."""
    return 2 * decoder(config, 8 * config.factor, 8 * config.factor).parameters if isinstance(config, KLConfig) else 0


def tower_parameters(config: CLIPConfig) -> float:
    """Return about how many weights a text tower has."""
    each = 4 * config.width**2 + 2 * config.width * config.mlp
    return config.vocab_size * config.width + config.layers * each


@dataclass(frozen=True)
class Memory:
    """Bytes: of the weights as they are kept, of a step's activations, of decoding a picture."""

    weights: float
    step: float
    decode: float

    @property
    def most(self) -> float:
        """What is held at once at the worst moment."""
        return self.weights + max(self.step, self.decode)


def memory(spec: Spec, job: Job, batch: int, *, half: bool, blocks: bool = False) -> Memory:
    """Return about what a batch of pictures like `job` takes beside the program itself.

    half: the network computes in 16 bits. blocks: all weights are kept in 16 bits (`--offload blocks`).
    """
    stage, size = spec.arch.first_stage, 2 if half else 4
    shape = job.height // stage.factor, job.width // stage.factor
    kept = 2 if blocks else size
    weights = kept * (
        unet(spec.arch.unet, *shape).parameters + sum(tower_parameters(tower.config) for tower in spec.arch.text)
    )
    weights += (2 if blocks else 4) * autoencoder_parameters(stage)
    branches = 1 if job.guidance == 1 else 2
    step = batch * branches * step_bytes(spec.arch.unet, *shape) * size / 4
    shown = [min(side, SMALL_TILE * stage.factor) if blocks else side for side in (job.height, job.width)]
    return Memory(weights, step, decode_bytes(stage, *shown))


def memory_line(spec: Spec, job: Job, batch: int) -> str | None:
    """Return what a run will take in words, None for a small model. batch: pictures at once."""
    if not heavy(spec):
        return None
    full = memory(spec, job, batch, half=False)
    half, blocks = memory(spec, job, batch, half=True), memory(spec, job, batch, half=False, blocks=True)
    parts = f"weights {_giga(full.weights)}, a step {_giga(full.step)}, decoding {_giga(full.decode)}"
    return (
        f"{spec.name} takes about {_giga(full.most)} GB in float32 ({parts}), {_giga(half.most)} GB in 16 bits, "
        f"{_giga(blocks.most)} GB with --offload blocks"
    )


def _giga(size: float) -> str:
    return f"{size / 1e9:.1f}"


def decoder(config: KLConfig, height: int, width: int) -> Work:
    """Return the work of decoding one picture of this size in pixels."""
    work = Work()
    top = len(config.channel_mult) - 1
    here = config.model_channels * config.channel_mult[-1]
    pixels = height * width / config.patch**2
    for _ in range(2):
        work.block(here, here, pixels / 4**top)
    work.operations += 4 * here * (pixels / 4**top) ** 2
    for level in range(top, -1, -1):
        wide = config.model_channels * config.channel_mult[level]
        for _ in range(config.num_res_blocks + 1):
            work.block(here, wide, pixels / 4**level)
            here = wide
        if level:
            work.layer(9 * here * here, pixels / 4 ** (level - 1))
    return work


def operations(spec: Spec, job: Job, steps: float) -> float:
    """Return how many operations a job takes in so many steps."""
    stage = spec.arch.first_stage
    calls = SAMPLERS[job.sampler].calls * (1 if job.guidance == 1 else 2)
    each = unet(spec.arch.unet, job.height // stage.factor, job.width // stage.factor).operations
    last = decoder(stage, job.height, job.width).operations if isinstance(stage, KLConfig) else 0.0
    return steps * calls * each + last


def heavy(spec: Spec) -> bool:
    """Whether a model is large enough to be asked about."""
    side = 8 * spec.divisor
    return unet(spec.arch.unet, side, side).parameters >= SMALL


def forecast(
    spec: Spec,
    jobs: Mapping[Job, int],
    device: str,
    steps: int | None = None,
    measure: Callable[[str], float] | None = None,
    *,
    each: bool = False,
) -> str | None:
    """Return the line to say before a run of minutes, None before a short one.

    jobs:  how many there are of each; seeds and prompts do not matter.
    steps: of all jobs together, where that is not the sum of theirs. measure: device -> operations a second.
    each:  nobody knows how many will come; the jobs are one of them.
    """
    if not jobs or not heavy(spec):
        return None
    planned = sum(job.steps * count for job, count in jobs.items())
    share = 1.0 if steps is None else steps / max(planned, 1)
    speed = (measure or measured)(device) * EFFICIENCY
    seconds = sum(operations(spec, job, job.steps * share) * count for job, count in jobs.items()) / speed
    if seconds < (WORTH_SAYING_EACH if each else WORTH_SAYING):
        return None
    a_picture = " a picture" if each else ""
    said = f"{spec.name} on {_WHERE.get(device, device)}: about {_minutes(seconds)}{a_picture}"
    name, family, side = QUICK
    arch = FAMILIES[family]
    factor = arch.first_stage.factor
    one = unet(arch.unet, side // factor, side // factor).operations
    if isinstance(arch.first_stage, KLConfig):
        one += decoder(arch.first_stage, side, side).operations
    other = one * sum(jobs.values()) / speed
    return f"{said}; {name}: about {_minutes(other)}" if other * MUCH_FASTER < seconds else said


def measured(device: str, seconds: float = 0.1) -> float:
    """Return the operations a second of a matrix product in the precision that the device computes in: of the
    fastest of those that fit into so many seconds."""
    import torch

    quick = device in ("cuda", "mps")
    size = 4096 if quick else 768
    matrix = torch.ones(size, size, device=device, dtype=torch.float16 if quick else torch.float32)

    def product() -> None:
        (matrix @ matrix)[0, 0].item()  # waits until it is computed

    product()
    begun, fastest = time.perf_counter(), float("inf")
    while (start := time.perf_counter()) - begun < seconds or fastest == float("inf"):
        product()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def _minutes(seconds: float) -> str:
    """Return a duration in the words of somebody who does not know exactly."""
    if seconds < 50:
        return f"{max(10, round(seconds / 10) * 10)} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{max(1, round(minutes))} min"
    return f"{minutes / 60:.1f} h" if minutes < 600 else f"{round(minutes / 60)} h"
