"""Fit a small network in one process, in as many sittings as it takes.

    step i: loss(i).backward(), AdamW with a warm-up and a cosine down to nothing

What a step sees hangs on its number alone, so a run that is stopped and continued has seen the same. The state
is one safetensors file, replaced at once (app/runfiles.py).
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ddgen.app.optim import Optimizer
from ddgen.app.runfiles import read_state, write_state

WARM_UP = 0.06  # of all steps
SAVE_EVERY = 60.0  # seconds


def fit(
    module: nn.Module,
    loss: Callable[[int], Tensor],
    out: Path,
    *,
    steps: int,
    lr: float,
    decay: float = 0.05,
    seconds: float = math.inf,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> bool:
    """Train the module to step `steps`, or for so many seconds of processor time; return whether it is done.

    loss: step, from 0 -> the loss, through the module. told: (step, loss) after every step.

    Raises:
        InputError, ModelError: a state in `out` that is damaged or another network's.
    """
    optimizer = Optimizer(module, "adamw", lr=lr, decay=decay)
    done = _resume(module, optimizer, out) if (out / "state.safetensors").exists() else 0
    begun, saved = time.process_time(), time.monotonic()
    module.train()
    while done < steps and time.process_time() - begun < seconds:
        module.zero_grad(set_to_none=True)
        found = loss(done)
        found.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        done += 1
        optimizer.step(done, factor(done, steps))
        told(done, float(found.detach()))
        if time.monotonic() - saved > SAVE_EVERY:
            _save(module, optimizer, out, done)
            saved = time.monotonic()
    _save(module, optimizer, out, done)
    module.eval()
    return done >= steps


def factor(step: int, steps: int) -> float:
    """Return what the learning rate is multiplied by at a step, from 1: up over the first 6 %, then a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm + 1)))


def _save(module: nn.Module, optimizer: Optimizer, out: Path, done: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    write_state(out, tensors | {f"optimizer.{name}": value for name, value in optimizer.state.items()}, {"step": done})


def _resume(module: nn.Module, optimizer: Optimizer, out: Path) -> int:
    tensors, facts = read_state(out)
    parted: dict[str, dict[str, Tensor]] = {"module": {}, "optimizer": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parted[kind][rest] = value
    module.load_state_dict(parted["module"])
    optimizer.load(parted["optimizer"])
    return int(facts["step"])
