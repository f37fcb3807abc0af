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
from dataclasses import asdict, fields
from operator import attrgetter

from ddgen.io.metadata import canonical
from ddgen.request import Job
from ddgen.weights import hub
from ddgen.weights.digest import digest
from ddgen.weights.layout import open_checkpoint
from ddgen.weights.registry import absent
from ddgen.weights.spec import Spec

ID_DIGITS = 32
_NAMES = tuple(field.name for field in fields(Job) if field.name != "model")
_DEFAULTS = tuple(field.default for field in fields(Job) if field.name != "model")
_values = attrgetter(*_NAMES)
_NUMERICS = 1
"""Raised when the same settings come to mean another picture."""
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=asdict).encode


def model_key(spec: Spec, digests: Mapping[str, str]) -> str:
    """Return a digest of the weights and of what the spec says about running them."""
    rules = {
        "weights": dict(digests),
        "prediction": spec.prediction,
        "schedule": spec.schedule,
        "x0_clamp": spec.x0_clamp,
        "zero_negative": spec.zero_negative,
        "layers": [tower.layer for tower in spec.towers],
    }
    return hashlib.sha256(canonical(rules).encode()).hexdigest()


def job_id(job: Job, model: str) -> str:
    """Return the id of a job. model: from model_key."""
    values = zip(_NAMES, _values(job), _DEFAULTS, strict=True)
    said = {name: value for name, value, default in values if value != default}  # a new setting renames no old job
    text = _encode([_NUMERICS, model, said])
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def derived_seed(run_seed: int, prompt: str, repeat: int) -> int:
    """Return the seed (below 2^32) of the `repeat`-th time, from 0, that a prompt stands in a batch."""
    text = f"{run_seed}\0{repeat}\0{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def weights_digests(spec: Spec) -> dict[str, str]:
    """Return the sha256 of every weights file of a spec, as the pipeline will report them; remembered, so
    cheap.

    Raises:
        ModelError: the weights are not on this machine, damaged, or others than those of their first pull.
    """
    path = spec.source.path
    if path is None:
        raise absent(spec.name)
    files = [(header.path, digest(header.path)) for header in open_checkpoint(path).headers]
    for file, sha256 in files:
        hub.check(spec.source, spec.name, file, sha256)
    named = {"model": files[0][1]} if len(files) == 1 else {file.name: sha256 for file, sha256 in files}
    if spec.ema:
        named["ema of model"] = files[0][1]
    named |= {item.label: digest(item.path) for item in spec.additions}
    if spec.refiner is not None:
        of_refiner = weights_digests(spec.refiner)
        named |= {f"refiner from {spec.refiner_start:g}: {name}": sha256 for name, sha256 in of_refiner.items()}
    return named
