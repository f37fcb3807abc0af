"""One training run in several processes, as `torchrun` starts them: each takes its share of every step.

All processes draw the same step and take their own rows of it; gradients and losses are averaged over all, so that
n processes make the same steps as one process with n times the batch. The first one alone writes and speaks.
"""

import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, distributed

from ddgen.errors import UsageError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """rank: which of `count` this one is, from 0."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put into each tensor its mean over all processes."""
        held = list(tensors)
        if self.count == 1 or not held:
            return
        flat = torch.cat([tensor.flatten() for tensor in held])
        distributed.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(held, flat.split([tensor.numel() for tensor in held]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))

    def told(self, value: float) -> float:
        """Return the first process's value."""
        if self.count == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            held = held.cuda()
        distributed.broadcast(held, 0)
        return float(held)

    def end(self) -> None:
        if self.count > 1:
            distributed.destroy_process_group()


def join(environment: Mapping[str, str] = os.environ) -> Processes:
    """Return this process's place among those that torchrun started; alone without it.

    Raises:
        UsageError: torchrun's variables are there in part, or wrong.
    """
    size = environment.get("WORLD_SIZE") or "1"
    if size == "1":
        return Processes()
    if not size.isdecimal():
        raise UsageError(f"WORLD_SIZE is '{size}'", "start several processes with torchrun", id="usage.processes")
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is set, but not {', '.join(missing)}",
            "start several processes with torchrun",
            id="usage.processes",
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo")
    return Processes(distributed.get_rank(), distributed.get_world_size())
