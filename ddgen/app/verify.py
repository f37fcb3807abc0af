"""Is a model whole? Its digest, its names and shapes against its Arch, and every number in it finite."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ddgen.app.assemble import local_path, part_modules
from ddgen.errors import ModelError
from ddgen.weights.arch import check_arch
from ddgen.weights.checkpoint import check_finite, check_fit, open_checkpoint, unfilled
from ddgen.weights.digest import digest
from ddgen.weights.spec import Spec


@dataclass(frozen=True)
class Checked:
    """One check that passed: a file with its sha256, or a part with its number of tensors."""

    what: str
    found: str


def verify(spec: Spec) -> Iterator[Checked]:
    """Check a model that is on this machine, reading all of it; yield each check that passed.

    Raises:
        ModelError: the first check that did not. NumericsError: a tensor holds NaN or infinity.
    """
    found = open_checkpoint(local_path(spec))
    for header in found.headers:
        sha256 = digest(header.path, fresh=True)
        wanted = spec.source.sha256
        if wanted is not None and len(found.headers) == 1 and sha256 != wanted:
            message = f"model '{spec.name}': sha256 is {sha256[:12]}..., weights.toml says {wanted[:12]}..."
            raise ModelError(message, "download it again", id="model.sha256")
        yield Checked(header.path.name, sha256)
    modules: dict[str, nn.Module] = {}
    check_arch(spec.arch, spec.name)
    with unfilled():
        modules = part_modules(spec.arch)
    for name, module in modules.items():
        part = found.part(name)
        check_fit(module, part, name)
        check_finite(part, name)
        yield Checked(name, f"{len(part)} tensors")
