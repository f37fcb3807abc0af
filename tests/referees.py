"""What the parity tests share: weights that hide nothing, and the names diffusers gives to the same
parameters.

The renaming here is written on its own, from the order of execution, so that it also checks the program's key
table.
"""

import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ddgen.nets.config import UNetConfig

TOLERANCE = 1e-7
Record = Callable[[str, object], None]
"""pytest's record_property: what a test found goes into docs/parity.md (parity.py makes it)."""


def redraw(module: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter anew: default biases of 0 and norms of 1 would hide a wrong order or a missing
    term."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.3 * noise)
    return module


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference, after making sure that there is something to compare."""
    assert a.shape == b.shape
    assert torch.isfinite(a).all() and torch.isfinite(b).all()
    assert b.std() > 0.05, "an output of nearly nothing compares equal to anything"
    return (a - b).abs().max().item()


RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def unet_places(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Yield (our prefix, diffusers' prefix) for every block of a U-Net, walking it as it runs."""
    levels = len(config.channel_mult)
    index = 1
    for level, depths in enumerate(config.down_depth):
        for i, depth in enumerate(depths):
            yield f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{i}"
            if depth:
                yield f"input_blocks.{index}.1", f"down_blocks.{level}.attentions.{i}"
            index += 1
        if level < levels - 1:
            yield f"input_blocks.{index}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            index += 1
    if config.mid_depth is not None:
        yield "middle_block.0", "mid_block.resnets.0"
        yield "middle_block.1", "mid_block.attentions.0"
        yield "middle_block.2", "mid_block.resnets.1"
    index = 0
    for up, depths in enumerate(reversed(config.up_depth)):
        for i, depth in enumerate(depths):
            yield f"output_blocks.{index}.0", f"up_blocks.{up}.resnets.{i}"
            if depth:
                yield f"output_blocks.{index}.1", f"up_blocks.{up}.attentions.{i}"
            if up < levels - 1 and i == len(depths) - 1:
                yield f"output_blocks.{index}.{2 if depth else 1}.conv", f"up_blocks.{up}.upsamplers.0.conv"
            index += 1
    yield "input_blocks.0.0", "conv_in"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "guidance_proj", "time_embedding.cond_proj"


def unet_state(network: nn.Module, config: UNetConfig, *, vector: str = "add_embedding") -> dict[str, Tensor]:
    """Return a UNet's weights under diffusers' names; `vector` is what the referee calls label_emb."""
    places = dict(unet_places(config)) | {
        "label_emb.0.0": f"{vector}.linear_1",
        "label_emb.0.2": f"{vector}.linear_2",
    }
    state = {}
    for name, tensor in network.state_dict().items():
        prefix = max((p for p in places if name.startswith(p + ".")), key=len)
        rest = name.removeprefix(prefix + ".")
        inner = next((old for old in RESNET if rest.startswith(old + ".")), None)
        if inner is not None:
            rest = RESNET[inner] + rest.removeprefix(inner)
        state[f"{places[prefix]}.{rest}"] = tensor
    return state


def vae_state(network: nn.Module, levels: int) -> dict[str, Tensor]:
    """Return an AutoencoderKL's weights under diffusers' names."""
    rules = [
        (r"^encoder\.down\.(\d+)\.block\.", lambda m: f"encoder.down_blocks.{m[1]}.resnets."),
        (r"^encoder\.down\.(\d+)\.downsample\.", lambda m: f"encoder.down_blocks.{m[1]}.downsamplers.0."),
        (r"^decoder\.up\.(\d+)\.block\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.resnets."),
        (
            r"^decoder\.up\.(\d+)\.upsample\.",
            lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.",
        ),
        (r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}."),
        (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.norm_out\.", ".conv_norm_out."),
    ]
    state = {}
    for name, tensor in network.state_dict().items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        state[name] = tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor
    return state
