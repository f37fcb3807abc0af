"""Train a model's U-Net on pictures with captions.

    x = x0 + sigma eps -> w(sigma) (D(x; sigma) - x0)^2 -> optimizer -> average of the weights -> checkpoint

The text towers and the first stage stay as they are; every caption and every picture is encoded once. What a
step sees depends on the seed and the step's number alone, so a run that was killed goes on with the same
batches, and on a CPU to the same weights, bit for bit. Nothing here prints: `Trainer.run` yields.

    DIR/state.safetensors   weights, average, optimizer, settings: what resuming reads
    DIR/model.safetensors   the average as a whole checkpoint, for `ddgen sample --model`
    DIR/log.jsonl           a line per report
    DIR/loss.svg            the curve
    DIR/samples/            sheets of pictures
"""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddgen.app import runfiles
from ddgen.app.dataset import Dataset, Draw
from ddgen.app.optim import Average, Optimizer, clip
from ddgen.app.pipeline import Pipeline
from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.loss import denoising_loss, forward_process, posterior_mean, sigmas_at
from ddgen.errors import InputError, NumericsError
from ddgen.nets.unet import UNet

FIXED = 64  # pictures of the fixed evaluation set
SAVED = frozenset(
    {"steps", "minutes", "report_every", "save_every"}
)  # settings that may change when a run goes on


@dataclass(frozen=True)
class Settings:
    """How to train.

    part:       what is trained: "unet", "first-stage" or "decoder" (app/first_stage.py).
    steps:      where the run ends. minutes: or earlier, after so much time of training; the learning rate
        falls with the nearer of both.
    lr, muon_lr: peaks, of AdamW and of Muon. warmup: steps. hold: share of the run before the rate begins to
        fall linearly to 0.
    average:    limit of the weights' moving average.
    dropout:    share of empty captions, for guidance. high_noise: extra share of high noise levels.
    weighting:  a row of diffusion/loss.py. target: "picture", or "mean": the mean of the pictures that fit the
        caption and the noised picture, less noisy than the one that was drawn.
    bf16: compute the network in bfloat16 (weights stay float32).
    """

    part: str = "unet"
    steps: int = 10_000
    minutes: float | None = None
    batch: int = 16
    optimizer: str = "muon"
    lr: float = 1e-3
    muon_lr: float = 0.02
    warmup: int = 100
    hold: float = 0.0
    average: float = 0.998
    dropout: float = 0.1
    high_noise: float = 0.3
    weighting: str = "capped"
    target: str = "picture"
    seed: int = 0
    bf16: bool = False
    scratch: bool = False
    report_every: int = 50
    save_every: int = 500


@dataclass(frozen=True)
class Report:
    """How far a run is. loss: mean since the last report; fixed: the averaged weights' loss on the fixed set;
    rate: pictures a second."""

    step: int
    seen: int
    seconds: float
    loss: float
    fixed: float
    gradient: float
    factor: float
    rate: float


class Trainer:
    """One run in one directory.

    Raises:
        InputError: the directory holds a run with other settings or other data.
    """

    def __init__(self, pipeline: Pipeline, data: Dataset, out: Path, settings: Settings) -> None:
        self.pipeline, self.data, self.out, self.settings = pipeline, data, out, settings
        stage = pipeline.spec.arch.first_stage
        defaults = pipeline.spec.defaults
        self.shape = (stage.channels, defaults.height // stage.factor, defaults.width // stage.factor)
        self.network = self._trainable()
        self.optimizer = Optimizer(self.network, settings.optimizer, lr=settings.lr, muon_lr=settings.muon_lr)
        self.average = Average(self.network, settings.average)
        self._encode()
        self.fixed = data.fixed(FIXED, self.shape)
        self.step, self.seconds = 0, 0.0
        if (out / runfiles.STATE).exists():
            self._resume()

    def _trainable(self) -> nn.Module:
        """Return the network to train."""
        return trainable(self.pipeline, self.settings)

    def _encode(self) -> None:
        """Encode every picture and every caption, once."""
        pipeline, texts = self.pipeline, self.data.texts
        self.latents = encode_all(pipeline, self.data)
        encoded = [pipeline.text.encode(texts[i : i + 64]) for i in range(0, len(texts), 64)]
        self.context = torch.cat([part.context for part in encoded]).half()
        vectors = [part.vector for part in encoded if part.vector is not None]
        self.vector = torch.cat(vectors) if vectors else None

    def run(self) -> Iterator[Report]:
        """Train to the end of the budget, yielding now and then; saves before it yields, and at the end.

        Raises:
            NumericsError: the loss is no longer finite; the last saved state is from before.
        """
        settings = self.settings
        losses: list[float] = []
        since, reported = time.monotonic(), self.step
        while not self._over():
            begun = time.monotonic()
            loss, gradient = self._train()
            if not np.isfinite(loss):
                raise NumericsError(
                    f"step {self.step}: the loss is not finite",
                    "try again with a lower --lr",
                    id="numerics.loss",
                )
            losses.append(loss)
            self.seconds += time.monotonic() - begun
            end = self._over()
            if self.step % settings.save_every == 0 or end:
                self.save()
            if self.step % settings.report_every == 0 or end:
                rate = settings.batch * (self.step - reported) / max(1e-9, time.monotonic() - since)
                fixed = self.evaluate()
                report = Report(
                    self.step,
                    self.step * settings.batch,
                    round(self.seconds, 1),
                    float(np.mean(losses)),
                    fixed,
                    gradient,
                    self._factor(),
                    rate,
                )
                runfiles.append(self.out, dataclasses.asdict(report))
                losses, since, reported = [], time.monotonic(), self.step
                yield report

    def _train(self) -> tuple[float, float]:
        """Make one step; return its loss and the norm of its gradient."""
        settings = self.settings
        draw = self.data.draw(
            settings.seed,
            self.step,
            settings.batch,
            self.shape,
            dropout=settings.dropout,
            high_noise=settings.high_noise,
        )
        loss = self.losses(self.network, draw).mean()
        loss.backward()
        gradient = clip(self.network, 1.0)
        factor = self._factor()
        self.step += 1
        if np.isfinite(gradient):
            self.optimizer.step(self.step, factor)
            self.average.update(self.network, self.step)
        self.network.zero_grad(set_to_none=True)
        return float(loss.detach()), gradient

    def losses(self, network: nn.Module, draw: Draw) -> Tensor:
        """Return the weighted loss of each picture of a draw, (B,)."""
        spec, device = self.pipeline.spec, self.pipeline.device
        schedule = self.pipeline.denoiser.schedule
        denoiser = Denoiser(network, spec.prediction, schedule, sigma_data=spec.sigma_data)
        x0 = self.latents[torch.from_numpy(draw.pictures)].to(device)
        captions = torch.from_numpy(draw.captions)
        vector = None if self.vector is None else self.vector[captions].to(device)
        cond = Conditioning(self.context[captions].float().to(device), vector)
        sigma = sigmas_at(schedule, torch.from_numpy(draw.u)).float().to(device)
        eps = torch.from_numpy(draw.eps).to(device)
        target = self._means(x0, eps, sigma, draw.captions) if self.settings.target == "mean" else None
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16):
            return denoising_loss(
                denoiser,
                x0,
                cond,
                sigma,
                eps,
                weighting=self.settings.weighting,
                target=target,
            )

    def _means(self, x0: Tensor, eps: Tensor, sigma: Tensor, captions: NDArray[np.int64]) -> Tensor:
        """Return what the ideal denoiser of the whole data set would say to each noised picture."""
        found = torch.empty_like(x0)
        for i, caption in enumerate(captions):
            pictures, chances = self.data.pictures_of(int(caption))
            known = self.latents[torch.from_numpy(pictures)].to(x0.device)
            x = forward_process(x0[i : i + 1], eps[i : i + 1], sigma[i : i + 1])
            found[i] = posterior_mean(x, sigma[i : i + 1], known, torch.from_numpy(chances).to(x0.device))[0]
        return found

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the averaged weights' loss on the fixed set."""
        network = self.averaged()
        draw, size = self.fixed, self.settings.batch
        parts = [slice(i, i + size) for i in range(0, len(draw.u), size)]
        found = [
            self.losses(network, Draw(draw.pictures[s], draw.captions[s], draw.u[s], draw.eps[s]))
            for s in parts
        ]
        return float(torch.cat(found).mean())

    def averaged(self) -> UNet:
        """Return a network with the averaged weights (they are shared, not copied)."""
        with torch.device("meta"):
            network = UNet(self.pipeline.spec.arch.unet)
        network.load_state_dict(self.average.state, assign=True)
        return network.requires_grad_(False).eval()

    def sampler(self) -> Pipeline:
        """Return a Pipeline that samples with the averaged weights."""
        spec = self.pipeline.spec
        denoiser = Denoiser(
            self.averaged(),
            spec.prediction,
            self.pipeline.denoiser.schedule,
            spec.x0_clamp,
            torch.float32,
            spec.sigma_data,
        )
        return dataclasses.replace(self.pipeline, denoiser=denoiser)

    def save(self) -> None:
        """Write the state and the model; each is whole or the one before."""
        tensors = {f"model.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.state.items()}
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizer.state.items()}
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": dataclasses.asdict(self.settings),
            "data": self.digest(),
        }
        runfiles.write_state(self.out, tensors, facts)
        self._save_model()

    def _save_model(self) -> None:
        runfiles.write_model(self.out, self.pipeline.spec, {"unet": self.average.state})

    def digest(self) -> str:
        """Return what tells one data set from another."""
        return runfiles.digest(self.data.pixels, self.data.texts)

    def _resume(self) -> None:
        tensors, facts = runfiles.read_state(self.out)
        now = dataclasses.asdict(self.settings)
        wrong = sorted(
            key for key, value in facts["settings"].items() if key not in SAVED and now.get(key) != value
        )
        if wrong or facts["data"] != self.digest():
            what = f"other settings ({', '.join(wrong)})" if wrong else "other data"
            raise InputError(
                f"'{self.out}' holds a run with {what}", "give the same, or another --out", id="input.run"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }

        self.network.load_state_dict(part("model."))
        for key, value in part("average.").items():
            self.average.state[key].copy_(value)
        self.optimizer.load(part("optimizer."))
        self.step, self.seconds = facts["step"], facts["seconds"]
        runfiles.truncate(self.out, self.step)

    def _progress(self) -> float:
        """Return the share of the budget that is used, by steps or by time."""
        minutes = self.settings.minutes
        return max(self.step / self.settings.steps, 0.0 if minutes is None else self.seconds / (60 * minutes))

    def _over(self) -> bool:
        return self._progress() >= 1

    def _factor(self) -> float:
        """Return the factor on the learning rates: up in `warmup` steps, flat, then linearly down to 0."""
        hold = self.settings.hold
        fall = min(1.0, max(0.0, 1 - self._progress()) / max(1e-9, 1 - hold))
        return min(1.0, (self.step + 1) / max(1, self.settings.warmup)) * fall


@torch.no_grad()
def encode_all(pipeline: Pipeline, data: Dataset, batch: int = 16) -> Tensor:
    """Return the latents of all pictures, (N, C, h, w) float32 on the CPU."""
    indices = np.arange(len(data))
    parts = [indices[i : i + batch] for i in range(0, len(data), batch)]
    return torch.cat(
        [pipeline.first_stage.encode(data.images(part).to(pipeline.device)).float().cpu() for part in parts]
    )


def trainable(pipeline: Pipeline, settings: Settings) -> UNet:
    """Return the network to train: the model's weights in float32, or fresh ones drawn from the seed."""
    torch.manual_seed(settings.seed)
    network = UNet(pipeline.spec.arch.unet)
    if not settings.scratch:
        held = pipeline.denoiser.network
        assert isinstance(held, nn.Module)
        network.load_state_dict(held.state_dict())
    return network.to(pipeline.device).train()
