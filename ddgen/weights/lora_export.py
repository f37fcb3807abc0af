"""Low-rank factors -> the tensors and metadata of a LoRA file, in the two dialects that other programs read.

    kohya   lora_unet_down_blocks_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha     (SDXL: by LDM paths)
            lora_te_text_model_encoder_layers_0_self_attn_q_proj...                     (SDXL: lora_te1_, lora_te2_)
    peft    unet.down_blocks.0....to_q.lora_A.weight, .lora_B.weight; text_encoder...; alpha in the metadata

What they are called when they are read: lora_names.py.
"""

import json
from collections.abc import Mapping, Sequence

from torch import Tensor, tensor

from ddgen.weights import keymap
from ddgen.weights.arch import Arch
from ddgen.weights.lora_names import Place

DIALECTS = ("kohya", "peft")
_BASES = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}

Pairs = Mapping[Place, tuple[Tensor, Tensor]]
"""A part of the model and a module of it, by native names -> (down, up)."""


def adapter_tensors(
    pairs: Pairs, arch: Arch, *, rank: int, alpha: float, dialect: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a LoRA file's tensors and metadata."""
    return (_kohya if dialect == "kohya" else _peft)(pairs, arch, rank, alpha)


def _kohya(
    pairs: Pairs, arch: Arch, rank: int, alpha: float
) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {}
    for place, (down, up) in pairs.items():
        stem = _kohya_stem(place, arch)
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": tensor(alpha, dtype=down.dtype),
        }
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }
    if any(down[0, 0].numel() > 1 for down, _ in pairs.values()):  # k x k convolutions: "LoCon"
        metadata["ss_network_args"] = json.dumps({"conv_dim": str(rank), "conv_alpha": f"{alpha:g}"})
    base = _BASES.get(arch.unet.context_dim)
    if base is not None:
        metadata |= {"ss_base_model_version": base, "ss_v2": str(base == "sd_v2")}
    return tensors, metadata


def _kohya_stem(place: Place, arch: Arch) -> str:
    part, module = place
    if part == "unet":
        path = module if len(arch.text) > 1 else diffusers_path(module, arch)
        return "lora_unet_" + path.replace(".", "_")
    tower = "lora_te" if len(arch.text) == 1 else f"lora_te{int(part.removeprefix('text.')) + 1}"
    return f"{tower}_text_model_{module.replace('.', '_')}"


def _peft(
    pairs: Pairs, arch: Arch, rank: int, alpha: float
) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, modules = {}, dict[str, set[str]]()
    for (part, module), (down, up) in pairs.items():
        if part == "unet":
            component, path = "unet", diffusers_path(module, arch)
        else:
            component = "text_encoder" if part == "text.0" else "text_encoder_2"
            path = f"text_model.{module}"
        modules.setdefault(component, set()).add(_end(path))
        tensors[f"{component}.{path}.lora_A.weight"] = down
        tensors[f"{component}.{path}.lora_B.weight"] = up
    settings: dict[str, int | float | Sequence[str]] = {}
    for component, ends in modules.items():
        settings |= {
            f"{component}.r": rank,
            f"{component}.lora_alpha": alpha,
            f"{component}.target_modules": sorted(ends),
        }
    return tensors, {"lora_adapter_metadata": json.dumps(settings, sort_keys=True)}


def _end(path: str) -> str:
    """Return the end of a module's name by which PEFT finds it; versions of transformers differ in what is before."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def diffusers_path(module: str, arch: Arch) -> str:
    """Return diffusers' name of a U-Net's module."""
    path = keymap.rename(module, keymap.unet_table(keymap.Outline.of(arch.unet)))
    assert path is not None, module
    return path
