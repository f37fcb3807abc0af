"""ControlNet files: which tensors they hold under which names, loaded beside a U-Net of the same family.

control_model.input_blocks...   the first release        input_blocks...   version 1.1, alone
down_blocks...                  diffusers
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.errors import ModelError
from ddgen.nets.config import UNetConfig
from ddgen.weights import keymap
from ddgen.weights.header import Header
from ddgen.weights.keymap import Outline, Take
from ddgen.weights.split import Part, Stored
from ddgen.weights.unpickle import read_weights_header

if TYPE_CHECKING:
    import torch

    from ddgen.nets.controlnet import ControlNet

PREFIX = "control_model."


def control_part(path: Path) -> Part:
    """Return the tensors of a ControlNet's file under native names; nothing is read yet.

    Raises:
        ModelError: missing, damaged, or no ControlNet.
    """
    header = read_weights_header(path)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in header.tensors) else ""
    bare = [name.removeprefix(prefix) for name in header.tensors if name.startswith(prefix)]
    hinted = ("input_hint_block.", "controlnet_cond_embedding.")
    if not any(name.startswith(hinted) for name in bare):
        raise ModelError(f"'{path.name}' is no ControlNet", "choose a ControlNet's file", id="model.control")
    if any(name.startswith("input_blocks.") for name in bare):
        return {name: _stored(header, prefix + name) for name in bare}
    outline = Outline.of_diffusers(bare)
    table = keymap.invert(keymap.unet_table(outline) | keymap.control_table(bare))
    renamed = {name: keymap.rename(name, table) for name in bare}
    return {(native or name): _stored(header, prefix + name) for name, native in renamed.items()}


def load_control(
    path: Path, config: UNetConfig, dtype: "torch.dtype", device: "torch.device"
) -> "ControlNet":
    """Load a ControlNet that steers a U-Net of this configuration.

    Raises:
        ModelError: as control_part; or it is made for another family.
    """
    import torch

    from ddgen.nets.controlnet import ControlNet
    from ddgen.weights.checkpoint import load_module

    part = control_part(path)
    with torch.device("meta"):
        network = ControlNet(config)
    load_module(network, part, dtype=dtype, device=device, name=f"ControlNet '{path.name}'")
    return network


def _stored(header: Header, name: str) -> Stored:
    take = Take((name,))
    return Stored(header, take, take.shape([header.tensors[name].shape]))
