"""ControlNet and T2I-Adapter files: which tensors they hold under which names, loaded beside a U-Net of the same
family.

control_model.input_blocks...   the first release        input_blocks...   version 1.1, alone
down_blocks...                  diffusers
body.0.block1...                a T2I-Adapter            adapter.body.0.resnets.0...   the same, diffusers
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.errors import ModelError
from ddgen.nets.config import UNetConfig
from ddgen.weights import keymap
from ddgen.weights.header import Header
from ddgen.weights.keymap import Outline, Take
from ddgen.weights.split import Part, Stored, stored_as
from ddgen.weights.unpickle import read_weights_header

if TYPE_CHECKING:
    import torch

    from ddgen.nets.controlnet import ControlNet
    from ddgen.nets.t2i_adapter import AdapterConfig, T2IAdapter

PREFIX = "control_model."


def control_part(path: Path) -> Part:
    """Return the tensors of a control's file under native names; nothing is read yet.

    Raises:
        ModelError: missing, damaged, or neither a ControlNet nor a T2I-Adapter.
    """
    header = read_weights_header(path)
    adapter = adapter_part(header)
    if adapter is not None:
        return adapter
    prefix = PREFIX if any(name.startswith(PREFIX) for name in header.tensors) else ""
    bare = [name.removeprefix(prefix) for name in header.tensors if name.startswith(prefix)]
    hinted = ("input_hint_block.", "controlnet_cond_embedding.")
    if not any(name.startswith(hinted) for name in bare):
        raise ModelError(
            f"'{path.name}' is neither a ControlNet nor a T2I-Adapter", "choose the file of one", id="model.control"
        )
    if any(name.startswith("input_blocks.") for name in bare):
        return {name: stored(header, prefix + name) for name in bare}
    outline = Outline.of_diffusers(bare)
    table = keymap.invert(keymap.unet_table(outline) | keymap.control_table(bare))
    renamed = {name: keymap.rename(name, table) for name in bare}
    return {(native or name): stored(header, prefix + name) for name, native in renamed.items()}


def adapter_part(header: Header) -> Part | None:
    """Return the tensors of a T2I-Adapter under native names; None for a file of anything else."""
    names = {name: name.removeprefix("adapter.") for name in header.tensors}
    if not any(re.match(r"body\.\d+\.(block1|body\.0\.block1|resnets\.0\.block1)\.", bare) for bare in names.values()):
        return None
    blocks = 1 + max((int(bare.split(".")[3]) for bare in names.values() if ".resnets." in bare), default=0)
    light = not any(bare.startswith("conv_in.") for bare in names.values())
    part = {}
    for name, bare in names.items():
        found = re.fullmatch(r"body\.(\d+)\.resnets\.(\d+)\.(.*)", bare)
        if light:
            bare = bare.replace(".resnets.", ".body.")
        elif found is not None:
            bare = f"body.{int(found[1]) * blocks + int(found[2])}.{found[3]}"
        elif bare.endswith((".in_conv.weight", ".in_conv.bias")) and any(".resnets." in b for b in names.values()):
            bare = re.sub(r"body\.(\d+)", lambda stage: f"body.{int(stage[1]) * blocks}", bare)
        part[bare] = stored(header, name)
    return part


def is_adapter(part: Part) -> bool:
    """Tell whether a control's tensors are those of a T2I-Adapter."""
    return any(name.startswith("body.") for name in part)


def load_adapter(path: Path, unet: UNetConfig, dtype: "torch.dtype", device: "torch.device") -> "T2IAdapter":
    """Load a T2I-Adapter that steers a U-Net of this configuration.

    Raises:
        ModelError: as control_part; or it is made for another family.
    """
    import torch

    from ddgen.nets.t2i_adapter import T2IAdapter
    from ddgen.weights.checkpoint import load_module, unfilled

    part = control_part(path)
    config = _shape_of(path, part)
    widths = [unet.model_channels * multiple for multiple in unet.channel_mult]
    fits = [*widths, widths[-1]][: len(config.channels)] == list(config.channels)
    # Without attention at the finest level the first feature is added behind its Downsample.
    if not fits or config.factor != (8 if any(unet.down_depth[0]) else 16):
        raise ModelError(
            f"T2I-Adapter '{path.name}' is made for another family of models",
            "choose the one for the model's family",
            id="model.control",
        )
    with unfilled():
        network = T2IAdapter(config)
    load_module(network, part, dtype=dtype, device=device, name=f"T2I-Adapter '{path.name}'")
    return network


def _shape_of(path: Path, part: Part) -> "AdapterConfig":
    """Return an adapter's shape, told by its tensors'."""
    from ddgen.nets.t2i_adapter import AdapterConfig

    light = "conv_in.weight" not in part
    first = part["body.0.in_conv.weight" if light else "conv_in.weight"].shape[1]
    # unshuffled: colours x factor^2
    known = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}
    if first not in known:
        raise ModelError(
            f"T2I-Adapter '{path.name}' reads {first} channels", "choose another", id="model.control"
        )
    colours, factor = known[first]
    numbers = sorted({int(name.split(".")[1]) for name in part if name.startswith("body.")})
    if light:
        channels = tuple(part[f"body.{n}.out_conv.weight"].shape[0] for n in numbers)
        blocks = 1 + max(int(name.split(".")[3]) for name in part if ".body." in name)
        return AdapterConfig(colours, factor, channels, blocks, light=True)
    widths = [part[f"body.{n}.block1.weight"].shape[0] for n in numbers]
    return AdapterConfig(colours, factor, tuple(widths[::2]), 2)


def load_control(
    path: Path, config: UNetConfig, dtype: "torch.dtype", device: "torch.device"
) -> "ControlNet":
    """Load a ControlNet that steers a U-Net of this configuration.

    Raises:
        ModelError: as control_part; or it is made for another family.
    """
    import torch

    from ddgen.nets.controlnet import ControlNet
    from ddgen.weights.checkpoint import load_module, unfilled

    part = control_part(path)
    with unfilled():
        network = ControlNet(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    odd = [name for name in wanted.keys() | part.keys() if name not in part or part[name].shape != wanted.get(name)]
    texts = {stored.shape[1] for name, stored in part.items() if name.endswith(".attn2.to_k.weight")}
    if texts != {config.context_dim} or 2 * len(odd) > len(wanted):  # less is damage, which is told by name
        raise ModelError(
            f"ControlNet '{path.name}' is made for another family of models",
            "choose the one for the model's family",
            id="model.control",
        )
    load_module(network, part, dtype=dtype, device=device, name=f"ControlNet '{path.name}'")
    return network


def stored(header: Header, name: str) -> Stored:
    """Return a tensor of a file as it is."""
    return stored_as(header, Take((name,)))
