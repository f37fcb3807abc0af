"""What makes a job the same job: its settings, the weights behind its model, and nothing else. Torch-free.

    id   = sha256(canonical JSON of every setting, the weights' digests, how the spec runs them), 32 hex
    digits seed = hash(run seed, prompt, k): of the k-th time that a prompt stands in a batch, wherever its
    line is

The model's name is not in the id: two names for the same weights are one model. Device, data type and file
format are not: they change how a picture is computed or kept, not which one is meant.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields

from ddgen.errors import ModelError
from ddgen.io.metadata import canonical
from ddgen.request import Job
from ddgen.weights.digest import digest
from ddgen.weights.layout import open_checkpoint
from ddgen.weights.spec import Spec

ID_DIGITS = 32
_FIELDS = tuple(field.name for field in fields(Job) if field.name != "model")
_NUMERICS = 1
"""Raised when the same settings come to mean another picture."""


def model_key(spec: Spec, digests: Mapping[str, str]) -> str:
    """Return a digest of the weights and of what the spec says about running them."""
    rules = {
        "weights": dict(digests),
        "prediction": spec.prediction,
        "schedule": spec.schedule,
        "x0_clamp": spec.x0_clamp,
        "zero_negative": spec.zero_negative,
    }
    return hashlib.sha256(canonical(rules).encode()).hexdigest()


def job_id(job: Job, model: str) -> str:
    """Return the id of a job. model: from model_key."""
    settings = [getattr(job, name) for name in _FIELDS]
    text = json.dumps([_NUMERICS, model, _FIELDS, settings], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def derived_seed(run_seed: int, prompt: str, repeat: int) -> int:
    """Return the seed (below 2^32) of the `repeat`-th time, from 0, that a prompt stands in a batch."""
    text = f"{run_seed}\0{repeat}\0{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def weights_digests(spec: Spec) -> dict[str, str]:
    """Return the sha256 of every weights file of a spec, as the pipeline will report them; remembered, so
    cheap.

    Raises:
        ModelError: the weights are not on this machine, or damaged.
    """
    path = spec.source.path
    if path is None:
        raise ModelError(
            f"model '{spec.name}' is not on this machine",
            f"get it with: ddgen models pull {spec.name}",
            id="model.absent",
        )
    named = {header.path.name: digest(header.path) for header in open_checkpoint(path).headers}
    return {"model": next(iter(named.values()))} if len(named) == 1 else named
