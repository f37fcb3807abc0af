"""For contrast: a conditional GAN on the latents of the same data, which together have as many parameters as the U-Net.

    python -m bench.gan MODEL --data DIR --minutes 60 --out DIR [--lr 2e-4]

    D:  softplus(-D(x, c)) + softplus(D(G(z, c), c)) + gamma / 2 |grad D(x, c)|^2 on real x, every fourth step
    G:  softplus(-D(G(z, c), c))

MODEL gives the autoencoder, whose latents are generated, and the text tower; DIR is what `ddgen data build stickers`
wrote; the minutes are of processor time. It goes on from DIR/gan.safetensors, and ends with the figures that
`ddgen eval` gives of a model: how many things are right, and precision, recall and coverage against the plain
training pictures (no recolouring, grounds or scenes).

Ref: Goodfellow et al. 2014 (non-saturating loss); Mescheder et al. 2018, arXiv 1801.04406 (R1); Miyato & Koyama 2018,
arXiv 1802.05637 (the projection of the condition).
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import softplus

from ddgen.app import evaluate, judge, metrics, suite
from ddgen.app.captions import Captions
from ddgen.app.dataset import BUDGET, Dataset
from ddgen.app.judge import whole
from ddgen.app.keying import key
from ddgen.app.latents import Latents, latent_shapes
from ddgen.app.optim import Average
from ddgen.app.pipeline import Pipeline

WIDE = 176  # channels of both networks
DEEP = 3  # residual blocks of each at 8 x 8; as many at 4 x 4
NOISE = 128
R1, R1_EVERY = 0.1, 4
NEIGHBOURS = 5


class Block(nn.Module):
    """A residual block of two convolutions. cond: width of a vector that scales and shifts inside, 0 for none."""

    def __init__(self, channels: int, cond: int = 0) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(16, channels) for _ in range(2)) if cond else None
        self.films = nn.ModuleList(nn.Linear(cond, 2 * channels) for _ in range(2)) if cond else None
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """x: (B, C, h, w). cond: (B, P)."""
        h = x
        for i, conv in enumerate(self.convs):
            if self.norms is not None and self.films is not None:
                scale, shift = self.films[i](cond)[..., None, None].chunk(2, 1)
                h = self.norms[i](h) * (1 + scale) + shift
            h = conv(nn.functional.silu(h))
        return (x + h) / 2**0.5


class Generator(nn.Module):
    """Noise (B, NOISE) and text (B, P) to latents (B, channels, 8, 8)."""

    def __init__(self, text: int, channels: int) -> None:
        super().__init__()
        cond = 2 * NOISE
        self.text = nn.Linear(text, NOISE)
        self.start = nn.Linear(cond, WIDE * 16)
        self.small = nn.ModuleList(Block(WIDE, cond) for _ in range(DEEP))
        self.large = nn.ModuleList(Block(WIDE, cond) for _ in range(DEEP))
        self.last = nn.Conv2d(WIDE, channels, 3, padding=1)

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        cond = torch.cat([z, self.text(text)], 1)
        x = self.start(cond).reshape(-1, WIDE, 4, 4)
        for block in self.small:
            x = block(x, cond)
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for block in self.large:
            x = block(x, cond)
        return self.last(nn.functional.silu(x))


class Critic(nn.Module):
    """Latents and text to how real they look together, (B,)."""

    def __init__(self, text: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, WIDE, 3, padding=1)
        self.large = nn.ModuleList(Block(WIDE) for _ in range(DEEP))
        self.small = nn.ModuleList(Block(WIDE) for _ in range(DEEP))
        self.alone, self.text = nn.Linear(WIDE, 1), nn.Linear(text, WIDE)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.large:
            h = block(h)
        h = nn.functional.avg_pool2d(h, 2)
        for block in self.small:
            h = block(h)
        seen = nn.functional.silu(h).mean((2, 3))
        return self.alone(seen)[:, 0] + (seen * self.text(text)).sum(1) / WIDE**0.5


def vectors(captions: Captions, rows: np.ndarray) -> Tensor:
    """Return the pooled text of captions, at unit mean square."""
    assert captions.kept is not None and captions.kept.vector is not None
    found = captions.kept.vector[rows.tolist()]
    return found / found.square().mean(1, keepdim=True).sqrt()


class Contest:
    """Both networks, their optimizers and the data."""

    def __init__(self, pipeline: Pipeline, data: Dataset, out: Path, lr: float, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.data, self.out, self.seed = data, out, seed
        self.shapes = latent_shapes(pipeline, data)
        self.latents, self.captions = Latents(pipeline, data, BUDGET), Captions(pipeline, data.texts, live=False, budget=BUDGET)
        text = vectors(self.captions, np.zeros(1, int)).shape[1]
        self.generator, self.critic = Generator(text, self.shapes[0][0]), Critic(text, self.shapes[0][0])
        self.average = Average(self.generator, 0.998)
        self.best_g = torch.optim.Adam(self.generator.parameters(), lr, betas=(0.0, 0.99))
        self.best_d = torch.optim.Adam(self.critic.parameters(), lr, betas=(0.0, 0.99))
        self.step, self.seconds = 0, 0.0

    @property
    def parameters(self) -> int:
        return sum(p.numel() for network in (self.generator, self.critic) for p in network.parameters())

    def advance(self, batch: int) -> tuple[float, float]:
        """Make one step of each; return their losses."""
        draw = self.data.draw(self.seed, self.step, batch, self.shapes, dropout=0.0, high_noise=0.0)
        text, real = vectors(self.captions, draw.captions), self.latents[draw.pictures]
        noise = torch.randn(2, batch, NOISE, generator=torch.Generator().manual_seed(self.step))
        with torch.no_grad():
            made = self.generator(noise[0], text)
        penalized = self.step % R1_EVERY == 0
        real.requires_grad_(penalized)
        truth = self.critic(real, text)
        loss_d = (softplus(-truth) + softplus(self.critic(made, text))).mean()
        whole_d = loss_d
        if penalized:
            (slope,) = torch.autograd.grad(truth.sum(), real, create_graph=True)
            whole_d = loss_d + R1 / 2 * R1_EVERY * slope.square().flatten(1).sum(1).mean()
        self.best_d.zero_grad(set_to_none=True)
        whole_d.backward()
        self.best_d.step()
        loss_g = softplus(-self.critic(self.generator(noise[1], text), text)).mean()
        self.best_g.zero_grad(set_to_none=True)
        loss_g.backward()
        self.best_g.step()
        self.step += 1
        self.average.update(self.generator, self.step)
        return float(loss_d.detach()), float(loss_g.detach())

    def save(self) -> None:
        tensors = {f"average.{name}": value for name, value in self.average.state.items()}
        for name, network in (("generator", self.generator), ("critic", self.critic)):
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        facts = {"step": str(self.step), "seconds": str(self.seconds)}
        self.out.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.out / "part.safetensors", facts)
        (self.out / "part.safetensors").rename(self.out / "gan.safetensors")

    def resume(self) -> None:
        """Go on from what was saved; the optimizers' moments begin anew."""
        path = self.out / "gan.safetensors"
        if not path.exists():
            return
        from safetensors import safe_open

        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        for name, network in (("generator", self.generator), ("critic", self.critic)):
            network.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
        for key, value in self.average.state.items():
            value.copy_(tensors[f"average.{key}"])


@torch.no_grad()
def pictures(contest: Contest, pipeline: Pipeline, prompts: list[str], seed: int) -> list[np.ndarray]:
    """Return a picture of each prompt by the averaged generator."""
    generator = Generator(contest.generator.text.in_features, contest.shapes[0][0])
    generator.load_state_dict(contest.average.state)
    told = Captions(pipeline, prompts, live=False, budget=BUDGET)
    z = torch.randn(len(prompts), NOISE, generator=torch.Generator().manual_seed(seed))
    latents = generator(z, vectors(told, np.arange(len(prompts))))
    images = torch.cat([pipeline.first_stage.decode(part) for part in latents.split(8)])
    found = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return list(found)


def figures(contest: Contest, pipeline: Pipeline, folder: Path, seed: int = 0) -> dict[str, object]:
    """Return how many single things are right, and how the pictures lie among the real ones."""
    real = evaluate.read_real(folder)
    court = evaluate.court_of(judge.load(), real)
    rows = [row for row in suite.build() if row.kind == "concept" and set(row.concepts) <= set(court.listed)]
    made = pictures(contest, pipeline, [row.prompt for row in rows], seed)
    right = sum(court.right(row, picture) for row, picture in zip(rows, made, strict=True))
    kept = court.judge.embed(list(real.cuts.values())).numpy()
    seen = court.judge.embed([whole(key(picture)) for picture in made]).numpy()
    again = court.judge.embed([whole(key(p)) for p in pictures(contest, pipeline, [rows[0].prompt] * 16, seed)]).numpy()
    return {
        "right": right,
        "of": len(rows),
        "vendi_of_16": round(metrics.vendi(again), 3),
        **{name: round(value, 4) for name, value in asdict(metrics.prdc(kept, seen, NEIGHBOURS)).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="of processor time (60)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4)
    options = parser.parse_args()
    pipeline = Pipeline.load(options.model, device="cpu", dtype="float32")
    defaults = pipeline.spec.defaults
    contest = Contest(pipeline, Dataset(options.data, defaults.width, defaults.height), options.out, options.lr)
    contest.resume()
    print(f"{contest.parameters:,} parameters, {len(contest.data)} pictures, step {contest.step}", flush=True)
    losses = []
    while contest.seconds < 60 * options.minutes:
        begun = time.process_time()
        losses.append(contest.advance(options.batch))
        contest.seconds += time.process_time() - begun
        if contest.step % 200 == 0 or contest.seconds >= 60 * options.minutes:
            contest.save()
            d, g = np.mean(losses, axis=0)
            print(f"step {contest.step}, {contest.seconds / 60:.1f} min: critic {d:.3f}, generator {g:.3f}", flush=True)
            losses = []
    found = {"steps": contest.step, "pictures": contest.step * options.batch, "minutes": round(contest.seconds / 60, 1)}
    found |= {"parameters": contest.parameters, **figures(contest, pipeline, options.data)}
    (options.out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
