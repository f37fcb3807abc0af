"""What runs on the machines of a Ray cluster: a worker with a warm renderer, and what it is made from.

Only plain data crosses: groups of tasks there, outcomes and errors back as dicts. Who sends what to whom, and what
is done about a worker that died: ray_runner.py.
"""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from ddgen import errors
from ddgen.app.batch import Group, Render
from ddgen.app.outcome import Made
from ddgen.errors import DdgenError, ModelError
from ddgen.io import files
from ddgen.weights.spec import Spec


class Recipe(Protocol):
    """What a worker makes its renderer from; it crosses to other machines."""

    def build(self, threads: int) -> Render: ...


@dataclass(frozen=True)
class ModelRecipe:
    """A model's Spec and how to run it. digests: what the weights must be, there as here."""

    spec: Spec
    digests: dict[str, str]
    device: str
    dtype: str
    text_backend: str
    format: str
    quality: int
    metadata: str
    offload: str = "auto"
    scorer: str = ""

    def build(self, threads: int) -> Render:
        """Load the pipeline on this worker.

        Raises:
            ModelError: the weights are not there, or others.
        """
        import torch

        from ddgen.app.assemble import assemble
        from ddgen.app.produce import Saving
        from ddgen.app.render import Renderer

        torch.set_num_threads(threads)
        loaded = assemble(
            self.spec,
            device=self.device,
            dtype=self.dtype,
            text_backend=self.text_backend,
            offload=self.offload,
        )
        if loaded.digests != self.digests:
            raise ModelError(
                f"model '{self.spec.name}' has other weights on {os.uname().nodename}",
                "copy the same file there",
                id="model.sha256",
            )
        return Renderer(loaded, Saving(self.format, self.quality, self.metadata), self.text_backend, scorer=self.scorer)


class Worker:
    """One process of the cluster with a warm renderer. Only plain data crosses."""

    def __init__(self, recipe: Recipe, threads: int, shared: bool) -> None:
        self._shared = shared
        self._error: dict[str, str] | None = None
        try:
            self._render = recipe.build(threads)
        except DdgenError as error:
            self._error = packed(error)

    def ready(self) -> dict[str, str] | None:
        """Return the error that kept the worker from starting, as plain data."""
        return self._error

    def make(self, group: Group) -> list[dict[str, Any]]:
        """Make a group; the outcomes are plain data, in the order they came."""
        places = {task.id: index for index, task in enumerate(group)}
        packed: list[dict[str, Any]] = []
        try:
            for outcome in self._render(group, lambda step, steps, images: None):
                record: dict[str, Any] = {"place": places[outcome.task.id]}
                if isinstance(outcome, Made):
                    packed.append({**record, "seconds": outcome.seconds, "data": self._delivered(outcome), "score": outcome.score})
                else:
                    packed.append({**record, "error": packed(outcome.error)})
        except DdgenError as error:
            packed.append({"fatal": packed(error)})
        return packed

    def _delivered(self, made: Made) -> bytes | None:
        assert made.data is not None
        if not self._shared or made.task.contest is not None:
            return made.data
        try:
            files.publish(made.task.path, made.data)
        except FileExistsError:
            return made.data  # the driver looks whose it is
        return None


def packed(error: DdgenError) -> dict[str, str]:
    """Return an error as plain data."""
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "id": error.id}


def unpacked(record: dict[str, str]) -> DdgenError:
    """Return the error that was packed."""
    kind = getattr(errors, record["kind"], DdgenError)
    found: DdgenError = kind(record["message"], record["hint"], id=record["id"])
    return found
