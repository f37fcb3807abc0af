"""Train a model on pictures with captions: its whole U-Net, or another Subject (subjects.py).

    x = x0 + sigma eps -> w(sigma) (D(x; sigma) - x0)^2 -> optimizer -> average of the weights -> checkpoint

The first stage stays as it is, and the text towers unless the Subject says so; every caption and every picture is
encoded once if they fit into memory. What a step sees depends on the seed and the step's number alone, so a run
that was killed goes on with the same batches, and on a CPU to the same weights, bit for bit. A step of n processes
(processes.py) or of n parts (`accumulate`) is one step of a batch n times as large. Nothing here prints:
`Trainer.run` yields.

    DIR/state.safetensors   weights, average, optimizer, settings: what resuming reads
    DIR/model.safetensors   the average as a whole checkpoint, for `ddgen sample --model`; a LoRA or an embedding
                            is DIR/lora.safetensors or DIR/embedding.safetensors
    DIR/log.jsonl           a line per report
    DIR/loss.svg            the curve
    DIR/samples/            sheets of pictures
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddgen.app import runfiles
from ddgen.app.captions import Captions
from ddgen.app.dataset import BUDGET, Dataset, Draw
from ddgen.app.latents import Latents, latent_shapes
from ddgen.app.optim import Average, Optimizer, clip
from ddgen.app.pipeline import Pipeline
from ddgen.app.processes import Processes
from ddgen.app.subjects import Subject, WholeNetwork, with_subject
from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.loss import denoising_loss, forward_process, posterior_mean, sigmas_at
from ddgen.errors import InputError, NumericsError
from ddgen.nets.recompute import recompute
from ddgen.text.clip import TextEncoder

SAVED = frozenset(
    {"steps", "minutes", "report_every", "save_every", "recompute", "budget"}
)  # settings that may change when a run goes on
SCALE, GROWTH = 2.0**15, 1000  # of the loss in float16: the first factor, and steps until it is doubled


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
    bf16, fp16: compute the network in bfloat16 or float16 (what is trained stays float32).
    batch:      pictures of a part of a step. accumulate: parts of a step. recompute: gradient checkpointing.
    fixed:      pictures of the fixed evaluation set. budget: bytes to keep of captions, and of latents.
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
    fp16: bool = False
    scratch: bool = False
    accumulate: int = 1
    recompute: bool = False
    fixed: int = 64
    budget: int = BUDGET
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

    def __init__(
        self,
        pipeline: Pipeline,
        data: Dataset,
        out: Path,
        settings: Settings,
        subject: Subject | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.pipeline, self.data, self.out, self.settings = pipeline, data, out, settings
        self.subject = self._whole() if subject is None else subject
        self.processes = Processes() if processes is None else processes
        self.network, self.trained = self.subject.network, self.subject.trained
        if settings.recompute:
            recompute(self.network)
        self.optimizer = Optimizer(self.trained, settings.optimizer, lr=settings.lr, muon_lr=settings.muon_lr)
        self.average = Average(self.trained, settings.average)
        self.shapes = latent_shapes(pipeline, data)
        self._encode()
        self.fixed = data.fixed(settings.fixed, self.shapes)
        self._digest = data.digest()
        # A model that is this run's own last result is another after every save.
        path = pipeline.spec.source.path
        own = path is not None and path.resolve() == (out / runfiles.MODEL).resolve()
        self._base = None if own else dict(pipeline.digests)
        self.step, self.seconds = 0, 0.0
        self.stopping = False  # set from outside, the run ends after the step in hand, saved
        self.scale, self.finite = SCALE if settings.fp16 else 1.0, 0
        if (out / runfiles.STATE).exists():
            self._resume()

    def _whole(self) -> Subject:
        """Return what is trained unless something else was given."""
        return WholeNetwork(self.pipeline, seed=self.settings.seed, scratch=self.settings.scratch)

    def _encode(self) -> None:
        """Encode every picture and every caption, once if they fit into memory."""
        budget = self.settings.budget
        self.latents = Latents(self.pipeline, self.data, budget)
        self.captions = Captions(self.pipeline, self.data.texts, live=self.subject.live, budget=budget)

    def run(self) -> Iterator[Report]:
        """Train to the end of the budget or until `stopping`, yielding now and then; saves before it yields, and at
        the end.

        Raises:
            NumericsError: the loss is no longer finite; the last saved state is from before.
        """
        settings = self.settings
        if self.processes.first:
            runfiles.truncate(self.out, self.step)
        losses: list[float] = []
        since, reported = time.monotonic(), self.step
        while not self.over():
            begun = time.monotonic()
            loss, gradient = self.advance()
            if not np.isfinite(loss):
                raise NumericsError(
                    f"step {self.step}: the loss is not finite",
                    "try again with a lower --lr",
                    id="numerics.loss",
                )
            losses.append(loss)
            self.seconds = self.processes.told(self.seconds + time.monotonic() - begun)
            end = self.over()
            if self.step % settings.save_every == 0 or end or self.stopping:
                self.save()
            if self.stopping and not end:
                return
            if self.step % settings.report_every == 0 or end:
                rate = self.size * (self.step - reported) / max(1e-9, time.monotonic() - since)
                fixed = self.evaluate()
                report = Report(
                    self.step,
                    self.step * self.size,
                    round(self.seconds, 1),
                    float(np.mean(losses)),
                    fixed,
                    gradient,
                    self._factor(),
                    rate,
                )
                if self.processes.first:
                    runfiles.append(self.out, dataclasses.asdict(report))
                losses, since, reported = [], time.monotonic(), self.step
                yield report

    @property
    def size(self) -> int:
        """Pictures of a step."""
        return self.settings.batch * self.settings.accumulate * self.processes.count

    def draws(self, step: int) -> list[Draw]:
        """Return the parts of a step that this process computes."""
        settings = self.settings
        draw = self.data.draw(
            settings.seed,
            step,
            self.size,
            self.shapes,
            dropout=settings.dropout,
            high_noise=settings.high_noise,
        )
        first = self.processes.rank * settings.accumulate
        starts = [settings.batch * (first + i) for i in range(settings.accumulate)]
        return [draw.part(slice(start, start + settings.batch)) for start in starts]

    def advance(self) -> tuple[float, float]:
        """Make one step; return its loss and the norm of its gradient."""
        total = self.gradients(self.draws(self.step))
        gradient = clip(self.trained, 1.0)
        factor = self._factor()
        self.step += 1
        if np.isfinite(gradient):
            self.optimizer.step(self.step, factor)
            self.average.update(self.trained, self.step)
        self._rescale(bool(np.isfinite(gradient)))
        self.trained.zero_grad(set_to_none=True)
        return total, gradient

    def gradients(self, draws: Sequence[Draw]) -> float:
        """Leave the gradients of the mean loss of some draws, over all processes, in what is trained; return the
        loss.
        """
        total = torch.zeros((), device=self.pipeline.device)
        for draw in draws:
            loss = self.losses(self.network, draw).mean() / len(draws)
            (loss * self.scale).backward()
            total += loss.detach()
        found = [parameter.grad for parameter in self.trained.parameters() if parameter.grad is not None]
        if self.scale != 1.0:
            torch._foreach_mul_(found, 1 / self.scale)
        self.processes.average([*found, total])
        return float(total)

    def _rescale(self, finite: bool) -> None:
        """Halve the loss's factor of float16 where a gradient overflowed; double it after a while without."""
        if not self.settings.fp16:
            return
        self.finite = self.finite + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.finite % GROWTH == 0:
            self.scale *= 2

    def losses(self, network: nn.Module, draw: Draw, text: TextEncoder | None = None) -> Tensor:
        """Return the weighted loss of each picture of a draw, (B,)."""
        spec, device = self.pipeline.spec, self.pipeline.device
        schedule = self.pipeline.denoiser.schedule
        denoiser = Denoiser(network, spec.prediction, schedule, sigma_data=spec.sigma_data)
        x0 = self.latents[draw.pictures].to(device)
        size = self.data.sizes[self.data.size_of[draw.pictures[0]]]
        cond = self.captions(
            draw.captions.tolist(),
            size,
            device,
            self.subject.text() if text is None else text,
            [self.data.frame(i) for i in draw.pictures.tolist()],
        )
        sigma = sigmas_at(schedule, torch.from_numpy(draw.u)).float().to(device)
        eps = torch.from_numpy(draw.eps).to(device)
        target = self._means(x0, eps, sigma, draw) if self.settings.target == "mean" else None
        with self.autocast():
            return denoising_loss(
                denoiser,
                x0,
                cond,
                sigma,
                eps,
                weighting=self.settings.weighting,
                target=target,
            )

    def autocast(self) -> torch.autocast:
        """Return the context in which the network computes."""
        half = torch.float16 if self.settings.fp16 else torch.bfloat16
        return torch.autocast(
            self.pipeline.device.type, half, enabled=self.settings.bf16 or self.settings.fp16
        )

    def _means(self, x0: Tensor, eps: Tensor, sigma: Tensor, draw: Draw) -> Tensor:
        """Return what the ideal denoiser of the whole data set, at the pictures' size, would say to each noised
        picture.
        """
        found = torch.empty_like(x0)
        for i, caption in enumerate(draw.captions):
            pictures, chances = self.data.pictures_of(int(caption))
            alike = self.data.size_of[pictures] == self.data.size_of[draw.pictures[i]]
            known = self.latents[pictures[alike]].to(x0.device)
            x = forward_process(x0[i : i + 1], eps[i : i + 1], sigma[i : i + 1])
            shares = torch.from_numpy(chances[alike]).to(x0.device)
            found[i] = posterior_mean(x, sigma[i : i + 1], known, shares)[0]
        return found

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the averaged weights' loss on the fixed set."""
        network, text = self.subject.averaged(self.average.state), self.subject.text(self.average.state)
        size = self.settings.batch
        parts = [draw.part(slice(i, i + size)) for draw in self.fixed for i in range(0, len(draw.u), size)]
        return float(torch.cat([self.losses(network, part, text) for part in parts]).mean())

    def sampler(self) -> Pipeline:
        """Return a Pipeline that samples with the averaged weights."""
        return with_subject(self.pipeline, self.subject, self.average.state)

    def save(self) -> None:
        """Write the model and the state; each is whole or the one before. The state comes last: a run that is killed
        between them goes on from the one before, and writes both again."""
        if not self.processes.first:
            return
        tensors = {f"model.{key}": value for key, value in self.trained.state_dict().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.state.items()}
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizer.state.items()}
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": dataclasses.asdict(self.settings),
            "subject": self.subject.facts,
            "pictures": self.size,
            "scale": [self.scale, self.finite],
            "data": self._digest,
            "bucket": self.data.bucket,
            "model": self._base,
        }
        self.subject.write(self.out, self.average.state)
        runfiles.write_state(self.out, tensors, facts)

    def _resume(self) -> None:
        tensors, facts = runfiles.read_state(self.out)
        wrong = self._unlike(facts)
        if wrong or not self._same_data(facts["data"]):
            what = f"other settings ({', '.join(wrong)})" if wrong else "other data"
            raise InputError(
                f"'{self.out}' holds a run with {what}", "give the same, or another --out", id="input.run"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }

        self.trained.load_state_dict(part("model."))
        for key, value in part("average.").items():
            self.average.state[key].copy_(value)
        self.optimizer.load(part("optimizer."))
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.scale, self.finite = facts.get("scale", [self.scale, 0])
        if self._base is None:
            self._base = facts.get("model")

    def _same_data(self, digest: str) -> bool:
        """Return whether a digest is of this run's data, whatever was kept when it was taken."""
        return digest == self._digest or digest == self.data.digest(pixels=not self.data.keeps)

    def _unlike(self, facts: dict[str, Any]) -> list[str]:
        """Return in words what a saved run had otherwise."""
        if facts.get("subject", {}) != self.subject.facts:
            return ["what is trained"]  # its defaults are others, too
        now = dataclasses.asdict(self.settings)
        then = {key: value for key, value in facts["settings"].items() if key not in SAVED}
        wrong = [f"{key} {then[key]}, not {now.get(key)}" for key in sorted(then) if now.get(key) != then[key]]
        if facts.get("pictures", self.size) != self.size:
            wrong.append("number of processes")
        if facts.get("bucket", self.data.bucket) != self.data.bucket:
            wrong.append("--buckets")
        if None not in (self._base, facts.get("model")) and facts["model"] != self._base:
            wrong.append("--model")
        return wrong

    def _progress(self) -> float:
        """Return the share of the budget that is used, by steps or by time."""
        minutes = self.settings.minutes
        return max(self.step / self.settings.steps, 0.0 if minutes is None else self.seconds / (60 * minutes))

    def over(self) -> bool:
        """Return whether the budget is spent."""
        return self._progress() >= 1

    def _factor(self) -> float:
        """Return the factor on the learning rates: up in `warmup` steps, flat, then linearly down to 0."""
        hold = self.settings.hold
        fall = min(1.0, max(0.0, 1 - self._progress()) / max(1e-9, 1 - hold))
        return min(1.0, (self.step + 1) / max(1, self.settings.warmup)) * fall
