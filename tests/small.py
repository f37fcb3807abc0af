"""Small checkpoints of every family with random weights, as single files whose keys are written here by hand,
not by the key table."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from referees import redraw
from safetensors.torch import save_file

from ddgen.nets.config import KLConfig
from ddgen.nets.unet import UNet
from ddgen.nets.vae import AutoencoderKL
from ddgen.text.clip import CLIPTextModel
from ddgen.text.config import CLIPConfig
from ddgen.weights.arch import FAMILIES, Arch
from ddgen.weights.spec import Defaults, Spec

FAMILY_NAMES = (
    "SD15",
    "SD15_INPAINT",
    "IP2P",
    "SD15_LCM",
    "SD21",
    "SDXL",
    "REFINER",
    "SSD1B",
    "VEGA",
    "SMALL_SD",
    "TINY_SD",
)
DEPTHS = {10: 3, 4: 2, 2: 1, 1: 1, 0: 0, None: None}
PROJECTION = 32


def small_arch(name: str, vocab: int = 1000) -> Arch:
    """A family's Arch with everything but its structure shrunk."""
    family = FAMILIES[name]
    text = tuple(
        replace(
            tower,
            pad_id=min(tower.pad_id, vocab - 1),
            config=CLIPConfig(
                vocab_size=vocab,
                width=64 * (i + 1),
                layers=3,
                heads=2,
                mlp=96,
                activation=tower.config.activation,
                projection_dim=None if tower.config.projection_dim is None else PROJECTION,
            ),
        )
        for i, tower in enumerate(family.text)
    )
    unet = replace(
        family.unet,
        model_channels=32,
        channel_mult=tuple(min(m, 2) for m in family.unet.channel_mult),
        down_depth=tuple(tuple(DEPTHS[d] for d in level) for level in family.unet.down_depth),
        up_depth=tuple(tuple(DEPTHS[d] for d in level) for level in family.unet.up_depth),
        mid_depth=DEPTHS[family.unet.mid_depth],
        heads=tuple(2 * min(m, 2) for m in family.unet.channel_mult),
        context_dim=sum(tower.config.width for tower in text),
        vector_dim=PROJECTION + 256 * len(family.vector_ids) if family.vector_ids else 0,
    )
    stage = replace(family.first_stage, model_channels=32, channel_mult=(1, 2), num_res_blocks=1)
    assert isinstance(stage, KLConfig)
    return replace(family, unet=unet, first_stage=stage, text=text)


def small_spec(name: str, vocab: int = 1000) -> Spec:
    return Spec(
        "small",
        small_arch(name, vocab),
        prediction="v" if name == "SD21" else "eps",
        defaults=Defaults(width=64, height=64),
    )


def modules(arch: Arch, seed: int = 0) -> dict[str, torch.nn.Module]:
    """Our modules with random weights, by part."""
    made: dict[str, torch.nn.Module] = {
        "unet": UNet(arch.unet),
        "first_stage": AutoencoderKL(arch.first_stage),
    }
    made |= {f"text.{i}": CLIPTextModel(tower.config) for i, tower in enumerate(arch.text)}
    return {name: redraw(module, seed + i).eval() for i, (name, module) in enumerate(made.items())}


def ldm_keys(arch: Arch, parts: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """The tensors of a whole checkpoint under the keys that published files have."""
    state = {f"model.diffusion_model.{name}": value for name, value in parts["unet"].state_dict().items()}
    state |= {f"first_stage_model.{name}": value for name, value in parts["first_stage"].state_dict().items()}
    for i, tower in enumerate(arch.text):
        held = parts[f"text.{i}"].state_dict()
        state |= {
            tower.prefix + name: value
            for name, value in (openclip(held) if tower.layout == "openclip" else held).items()
        }
    return {name: value.clone().contiguous() for name, value in state.items()}


def openclip(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's names: q, k and v in one, the projection the other way round."""
    found = {
        "token_embedding.weight": held["embeddings.token_embedding.weight"],
        "positional_embedding": held["embeddings.position_embedding.weight"],
        "ln_final.weight": held["final_layer_norm.weight"],
        "ln_final.bias": held["final_layer_norm.bias"],
        "text_projection": held["text_projection.weight"].T,
    }
    pairs = (
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
    )
    layers = {name.split(".")[2] for name in held if name.startswith("encoder.layers.")}
    for n in layers:
        here, there = f"encoder.layers.{n}.", f"transformer.resblocks.{n}."
        for kind in ("weight", "bias"):
            fused = [held[f"{here}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{there}attn.in_proj_{kind}"] = torch.cat(fused)
            for a, b in (*pairs, ("mlp.fc2", "mlp.c_proj")):
                found[f"{there}{b}.{kind}"] = held[f"{here}{a}.{kind}"]
    return found


def small_file(
    path: Path,
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    metadata=None,
    extra=None,
    vocab: int = 1000,
    seed: int = 0,
):
    """Write a family's small checkpoint; return its Arch and our modules."""
    arch = small_arch(name, vocab)
    parts = modules(arch, seed)
    state = {key: value.to(dtype) for key, value in ldm_keys(arch, parts).items()}
    save_file(state | (extra or {}), path, metadata)
    return arch, parts


def sparse(path, shapes, metadata=None):
    """Write a file of the right size whose data are a hole: full-size families cost no disk."""
    entries, offset = ({"__metadata__": metadata} if metadata else {}), 0
    for name, shape in shapes.items():
        size = 2 * int(torch.Size(shape).numel())
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def full_size(name):
    """Return the keys and shapes of a whole checkpoint of a family, as published."""
    arch = FAMILIES[name]
    with torch.device("meta"):
        parts = {"unet": UNet(arch.unet), "first_stage": AutoencoderKL(arch.first_stage)}
        parts |= {f"text.{i}": CLIPTextModel(tower.config) for i, tower in enumerate(arch.text)}
        return {key: tuple(value.shape) for key, value in ldm_keys(arch, parts).items()}
