"""Rows about training: a LoRA step of an SD1.5-shaped model against the same loop on diffusers and peft.

    python -m bench.training ours|peer

prints "ready" when prepared; for every line on standard input it makes a step and prints its seconds and the
most memory held so far beyond what was held before the network was built (imports), in megabytes. Both sides get
the same shapes, rank, batch of one at 256 x 256, float32, AdamW, clipped gradients; ours keeps an average too.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import ROOT, Pair

RANK = 8
SIDE = 32  # latent cells of a 256 x 256 picture
LR = 1e-4
WARM = 2  # steps before the first that counts


def filled(network: Any) -> Any:
    """Give a network built on the meta device memory, and numbers that keep its activations near unit size."""
    import torch

    network = network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            reach = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-reach, reach, generator=generator)
        else:
            parameter.uniform_(0.9, 1.1, generator=generator)
    return network.train()


def ours() -> tuple[Callable[[], Any], Callable[[], object]]:
    """Return what builds the network, and a step of it."""
    import torch

    from ddgen.app.allocator import keep_freed_memory
    from ddgen.app.optim import Average, Optimizer, clip
    from ddgen.conditioning import Conditioning
    from ddgen.diffusion.denoiser import Denoiser
    from ddgen.diffusion.loss import denoising_loss, sigmas_at
    from ddgen.diffusion.schedule import make_schedule
    from ddgen.nets.config import UNetConfig
    from ddgen.nets.lowrank import ATTENTION, LowRanks, attach, targets
    from ddgen.nets.unet import UNet

    keep_freed_memory()
    held: dict[str, Any] = {"count": 0}
    schedule = make_schedule({"kind": "scaled_linear"})

    def build() -> None:
        with torch.device("meta"):
            network = UNet(UNetConfig())
        network = filled(network)
        layers = targets(network, ATTENTION)
        trained = LowRanks(layers, RANK, RANK)
        for name, factors in trained.factors():
            attach(layers[name], factors)
        held.update(
            trained=trained,
            denoiser=Denoiser(network, "eps", schedule),
            optimizer=Optimizer(trained, "adamw", lr=LR),
            average=Average(trained, 0.99),
        )

    def step() -> None:
        x0, eps, context = torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 77, 768)
        sigma = sigmas_at(schedule, torch.rand(1).double()).float()
        loss = denoising_loss(held["denoiser"], x0, Conditioning(context), sigma, eps).mean()
        loss.backward()
        clip(held["trained"], 1.0)
        held["count"] += 1
        held["optimizer"].step(held["count"], 1.0)
        held["average"].update(held["trained"], held["count"])
        held["trained"].zero_grad(set_to_none=True)

    return build, step


def peer() -> tuple[Callable[[], Any], Callable[[], object]]:
    """Return the same as people write it: diffusers' network and noise, peft's adapters, torch's AdamW."""
    import peft
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    noise = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    held: dict[str, Any] = {}

    def build() -> None:
        with torch.device("meta"):
            network = UNet2DConditionModel(sample_size=SIDE, cross_attention_dim=768, attention_head_dim=8)
        network = filled(network)
        network.add_adapter(
            peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        )
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        held.update(network=network, trained=trained, optimizer=torch.optim.AdamW(trained, lr=LR))

    def step() -> None:
        x0, eps, context = torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 77, 768)
        times = torch.randint(0, 1000, (1,))
        output = held["network"](noise.add_noise(x0, eps, times), times, context).sample
        torch.nn.functional.mse_loss(output, eps).backward()
        torch.nn.utils.clip_grad_norm_(held["trained"], 1.0)
        held["optimizer"].step()
        held["optimizer"].zero_grad(set_to_none=True)

    return build, step


def held_now() -> float:
    """Return the megabytes that this process holds."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024 / 1e6


def main(side: str) -> None:
    build, step = {"ours": ours, "peer": peer}[side]()
    before = held_now()
    build()
    for _ in range(WARM):
        step()
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(json.dumps([seconds, peak - before]), flush=True)


class Loop:
    """One side in a process of its own. index: 0 gives the seconds of a step, 1 the megabytes."""

    def __init__(self, side: str, index: int) -> None:
        self._index = index
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "bench.training", side],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def __call__(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read()[self._index])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with exit {self._process.wait()}")
        return json.loads(line)


def _pair(what: str, index: int, unit: str) -> Pair:
    one, other = Loop("ours", index), Loop("peer", index)

    def close() -> None:
        one.close()
        other.close()

    return Pair(what, one, "the same loop on diffusers + peft", other, unit=unit, target=1.0, close=close)


ROWS: dict[str, Callable[[], Pair]] = {
    "lora-step": lambda: _pair("LoRA step of an SD1.5-shaped model, 256 x 256, batch 1", 0, "s"),
    "lora-memory": lambda: _pair("the same: peak memory beyond the imports", 1, "MB"),
}


if __name__ == "__main__":
    main(sys.argv[1])
