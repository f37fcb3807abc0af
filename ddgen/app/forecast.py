"""What a training run will take: memory by its parts, and seconds a step, from making two steps for nothing.

Activations are counted as what autograd keeps for the way back, each storage once; what layers use for a moment
is not counted, nor is what Python and the libraries take.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddgen.app.train import Trainer


@dataclass(frozen=True)
class Forecast:
    """memory: bytes by part. trained: parameters. step: seconds. peak: bytes that a GPU held at most, where there is one."""

    memory: dict[str, int]
    trained: int
    step: float
    peak: int | None

    @property
    def total(self) -> int:
        return sum(self.memory.values())


def forecast(trainer: Trainer) -> Forecast:
    """Make two steps of a run; its weights in memory are then no longer those of its state."""
    pipeline, network = trainer.pipeline, trainer.network
    modules = [part for part in (network, pipeline.text, pipeline.first_stage) if isinstance(part, nn.Module)]
    if trainer.subject.network is not pipeline.denoiser.network:
        assert isinstance(pipeline.denoiser.network, nn.Module)
        modules.append(pipeline.denoiser.network)
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    trained = list(trainer.trained.parameters())
    known = {tensor.untyped_storage().data_ptr() for tensor in (*weights, *trained)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    draws = trainer.draws(trainer.step)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.losses(network, draws[0]).mean()
        # Held until here, or one address would stand for many tensors.
        activations = sum(kept.values())
    loss.backward()
    trainer.trained.zero_grad(set_to_none=True)
    begun = time.perf_counter()
    trainer.advance()
    seconds = time.perf_counter() - begun
    memory = {
        "weights": _bytes(weights),
        "trained, with average": 2 * _bytes(trained) - _bytes([t for t in trained if any(t is w for w in weights)]),
        "gradients": _bytes(trained),
        "optimizer": _bytes(list(trainer.optimizer.state.values())),
        "activations": activations,
    }
    cuda = pipeline.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(pipeline.device) if cuda else None
    return Forecast(memory, sum(parameter.numel() for parameter in trained), seconds, peak)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
