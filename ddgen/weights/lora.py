"""Adapters (LoRA and its relatives) on a model's weights: read, matched with the model, added, and taken off
again bit for bit.

    W' = W + a s dW for every touched weight; dW in float32, W read from the model's own file

An adapter is data from strangers: ranks, scales and values have limits, keys that fit nothing are named, a
file that fits nothing is an
error. Taking one off is reading the touched tensors again, so that nothing adds up over a day of changes.
Formulas: lora_maths.py; names: lora_names.py.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ddgen.errors import ModelError
from ddgen.weights import lora_maths as maths
from ddgen.weights import lora_names as names
from ddgen.weights.adapter_files import read_adapter_tensors
from ddgen.weights.arch import Arch
from ddgen.weights.lora_maths import Roles
from ddgen.weights.lora_names import Place

MAX_RANK = 1024
MAX_SCALE = 10.0
SHOWN = 3  # names listed in a message

Read = Callable[[str, str], Tensor]
"""(part, tensor name) -> the weight as the model's file stores it."""


@dataclass(frozen=True)
class Adapter:
    """An adapter file. groups: the module as the file spells it -> its tensors by role; strangers: keys of no
    dialect.
    """

    path: Path
    groups: dict[str, Roles]
    strangers: tuple[str, ...]

    @property
    def count(self) -> int:
        """Tensors in the file."""
        return len(self.strangers) + sum(len(roles) for roles in self.groups.values())

    def refuse(self, why: str, hint: str, code: str) -> ModelError:
        return ModelError(f"LoRA '{self.path.name}': {why}", hint, id=f"model.lora-{code}")


def open_adapter(path: str | Path) -> Adapter:
    """Read an adapter: a file, or a folder as PEFT writes it.

    Raises:
        ModelError: missing, damaged, not an adapter, a rank over the limit, or values that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in names.FOLDER_FILES if (path / name).is_file()), path)
    tensors, metadata = read_adapter_tensors(path, "LoRA")
    groups: dict[str, Roles] = {}
    strangers = []
    for key, tensor in tensors.items():
        found = names.parse(key)
        if found is None:
            strangers.append(key)
            continue
        roles = groups.setdefault(found[0], {})
        if found[1] in roles:
            raise ModelError(
                f"LoRA '{path.name}': gives '{found[0]}' its {found[1]} twice",
                "get the file from its source again",
                id="model.lora-twice",
            )
        roles[found[1]] = tensor
    for module in [module for module, roles in groups.items() if not _complete(roles)]:
        strangers += [f"{module} ({', '.join(groups.pop(module))})"]
    adapter = Adapter(path, groups, tuple(strangers))
    if not groups:
        first = next(iter(tensors), "none")
        raise adapter.refuse(
            f"holds no adapter that ddgen knows (first tensor: {first!a})", "give a LoRA file", "unknown"
        )
    _fill_alphas(groups, _peft_settings(path, metadata))
    for module, roles in groups.items():
        _check(adapter, module, roles)
    return adapter


def _complete(roles: Roles) -> bool:
    kinds = (
        {"down", "up"}, {"w1_a", "w1_b", "w2_a", "w2_b"}, {"a1", "a2", "b1", "b2"}, {"on_input", "ia3"},
        {"oft_blocks"},
        {"oft_diag"}, {"diff"}, {"diff_b"}, {"set"},
    )  # fmt: skip
    kron = ("k1" in roles or {"k1_a", "k1_b"} <= roles.keys()) and (
        "k2" in roles or {"k2_a", "k2_b"} <= roles.keys()
    )
    return kron or any(kind <= roles.keys() for kind in kinds)


def _check(adapter: Adapter, module: str, roles: Roles) -> None:
    for role, tensor in roles.items():
        if not torch.isfinite(tensor.float()).all():
            raise adapter.refuse(
                f"'{module}' holds non-finite values ({role})",
                "the file is damaged, download it again",
                "nan",
            )
        if role in ("alpha", "scalar") and tensor.numel() != 1:
            raise adapter.refuse(
                f"'{module}' has {tensor.numel()} values for {role}",
                "get the file from its source again",
                "shape",
            )
    for role, axis in (("down", 0), ("up", 1), ("w1_b", 0), ("w2_b", 0), ("k1_b", 0), ("k2_b", 0)):
        if role in roles and roles[role].ndim > axis and roles[role].shape[axis] > MAX_RANK:
            rank = roles[role].shape[axis]
            raise adapter.refuse(
                f"rank {rank} is over the limit of {MAX_RANK}", f"resize it to {MAX_RANK} or less", "rank"
            )


def _peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    """Return PEFT's settings, "component.setting": from the header's metadata, or from adapter_config.json
    beside the file.
    """
    beside = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            found = json.loads(metadata["lora_adapter_metadata"])
        elif path.name in names.FOLDER_FILES and beside.is_file() and beside.stat().st_size < 2**20:
            table = json.loads(beside.read_text(encoding="utf-8"))
            found = {
                f"{part}.{key}": value
                for part in ("unet", "text_encoder", "text_encoder_2")
                for key, value in table.items()
            }
        else:
            return {}
    except (OSError, ValueError, AttributeError, RecursionError):
        raise ModelError(
            f"LoRA '{path.name}': its settings are not JSON", "download it again", id="model.lora-settings"
        ) from None
    return found if isinstance(found, dict) else {}


def _fill_alphas(groups: dict[str, Roles], settings: Mapping[str, object]) -> None:
    """Give the alpha that PEFT keeps in settings to the modules that have none: alpha / sqrt(rank) for
    rank-stabilised ones.
    """
    for module, roles in groups.items():
        part = names.component(module)
        alpha = settings.get(f"{part}.lora_alpha", settings.get(f"{part}.alpha"))
        if "alpha" in roles or alpha is None or not maths.low_rank(roles):
            continue
        patterns = settings.get(f"{part}.alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            tail = (
                str(pattern).lstrip("^").replace("\\.", ".")
            )  # a name, or the end of one; never run as an expression
            if module == tail or module.endswith(f".{tail}"):
                alpha = value
        if isinstance(alpha, int | float) and math.isfinite(alpha):
            stable = "down" in roles and roles["down"].ndim > 0 and settings.get(f"{part}.use_rslora") is True
            roles["alpha"] = torch.tensor(
                alpha * math.sqrt(roles["down"].shape[0]) if stable else float(alpha), dtype=torch.float64
            )


class Adapted:
    """A model's modules with a changeable set of adapters on their weights.

    modules: by part ("unet", "text.0", ...). read: gives a weight as the model's file stores it. model: its
    name, for messages.
    """

    def __init__(self, modules: Mapping[str, nn.Module], arch: Arch, read: Read, model: str) -> None:
        self._modules = dict(modules)
        self._read = read
        self._model = model
        self._places = _places(self._modules, arch)
        self._touched: set[Place] = set()

    def set(self, adapters: Sequence[tuple[Adapter, float]]) -> list[str]:
        """Put exactly these adapters, each with its weight, on the model in place of those before; return
        notes on keys that fit nothing.

        Raises:
            ModelError: an adapter of which nothing fits, or that was made for another family; the model is
            then as in its file.
        """
        changes: dict[Place, list[tuple[Adapter, str, Roles, float]]] = {}
        try:
            plans = [(adapter, weight, self._matched(adapter)) for adapter, weight in adapters]
            for adapter, weight, matched in plans:
                for module, place in matched.items():
                    changes.setdefault(place, []).append((adapter, module, adapter.groups[module], weight))
            for place in sorted(self._touched | changes.keys()):
                self._touched.add(place)
                self._write(place, changes.get(place, []))
        except ModelError:
            self.clear()
            raise
        self._touched = set(changes)
        return [note for adapter, _, matched in plans for note in self._notes(adapter, matched)]

    def clear(self) -> None:
        """Take all adapters off: every touched weight is read from the model's file again."""
        for place in sorted(self._touched):
            self._write(place, [])
        self._touched = set()

    def _matched(self, adapter: Adapter) -> dict[str, Place]:
        matched = {module: self._places[module] for module in adapter.groups if module in self._places}
        if not matched:
            raise adapter.refuse(
                f"none of its {adapter.count} keys fit model '{self._model}'{_family(adapter)}",
                _other(adapter),
                "unfit",
            )
        return matched

    def _notes(self, adapter: Adapter, matched: Mapping[str, Place]) -> list[str]:
        left = [module for module in adapter.groups if module not in matched] + list(adapter.strangers)
        if not left:
            return []
        shown = ", ".join(left[:SHOWN]) + (f" (+{len(left) - SHOWN} more)" if len(left) > SHOWN else "")
        total = len(adapter.groups) + len(adapter.strangers)
        return [
            f"LoRA '{adapter.path.name}': {len(left)} of {total} entries fit nothing in model "
            f"'{self._model}': {shown}"
        ]

    @torch.no_grad()
    def _write(self, place: Place, changes: Sequence[tuple[Adapter, str, Roles, float]]) -> None:
        """Give a module its stored weight and bias, changed by the adapters that have something for it."""
        part, module = place
        target = self._modules[part].get_submodule(module)
        for kind, apply in (("weight", maths.merge), ("bias", maths.merge_bias)):
            parameter = getattr(target, kind, None)
            if parameter is None:
                for adapter, spelt, roles, _ in changes:
                    if "diff_b" in roles:
                        raise adapter.refuse(
                            f"'{spelt}' changes a bias that the model does not have{_family(adapter)}",
                            _other(adapter),
                            "unfit",
                        )
                continue
            value = self._read(part, f"{module}.{kind}").reshape(parameter.shape)
            if changes:
                value = value.to(
                    device=parameter.device, dtype=torch.promote_types(value.dtype, torch.float32)
                )
            for adapter, spelt, roles, weight in changes:
                moved = {role: tensor.to(value) for role, tensor in roles.items()}
                try:
                    if abs(maths.scale_of(moved, value)) > MAX_SCALE:
                        raise maths.Unfit(f"has alpha / rank over the limit of {MAX_SCALE:g}")
                    value = apply(value, moved, weight)
                except maths.Unfit as reason:
                    raise adapter.refuse(
                        f"'{spelt}' {reason}{_family(adapter)}", _other(adapter), "unfit"
                    ) from None
            parameter.copy_(value.to(parameter.dtype))


def _places(modules: Mapping[str, nn.Module], arch: Arch) -> dict[str, Place]:
    """Return every spelling of every module that has a weight."""
    found: dict[str, Place] = {}
    for part, module in modules.items():
        own = [
            name
            for name, child in module.named_modules()
            if isinstance(getattr(child, "weight", None), Tensor)
        ]
        if part == "unet":
            found |= dict(names.unet_spellings(own, arch.unet))
        else:
            found |= dict(names.text_spellings(own, int(part.removeprefix("text.")), len(arch.text)))
    return found


def _looks_like(adapter: Adapter) -> str | None:
    widths = [
        roles["down"].shape[1]
        for module, roles in adapter.groups.items()
        if "down" in roles
        and roles["down"].ndim > 1
        and module.endswith(("attn2_to_k", "attn2.to_k", "attn2_to_v", "attn2.to_v"))
    ]
    return names.looks_like(widths, adapter.groups)


def _family(adapter: Adapter) -> str:
    family = _looks_like(adapter)
    return f" (looks like {family})" if family is not None else ""


def _other(adapter: Adapter) -> str:
    family = _looks_like(adapter)
    return (
        f"choose an {family} model"
        if family is not None
        else "choose a model of the family that it was made for"
    )
