"""IP-Adapter files: which tensors they hold, loaded for a U-Net.

image_proj.*, ip_adapter.{1,3,5...}.to_k_ip.weight    one file, safetensors or pickled; odd numbers are the
                                                      cross-attentions: way down, way up, middle
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.errors import ModelError
from ddgen.nets.config import HEAD, TokensConfig
from ddgen.weights.control import stored
from ddgen.weights.header import Header
from ddgen.weights.split import Part
from ddgen.weights.unpickle import read_weights_header

if TYPE_CHECKING:
    import torch

    from ddgen.nets.image_tokens import ImageReader

PROJECTION, ATTENTION = "image_proj.", "ip_adapter."


def check_reader(path: Path) -> Header:
    """Return the header of an IP-Adapter's file.

    Raises:
        ModelError: missing, damaged, or none that a picture alone can feed.
    """
    header = read_weights_header(path)
    names = header.tensors
    if not any(name.startswith(ATTENTION) for name in names) or not any(
        name.startswith(PROJECTION) for name in names
    ):
        raise ModelError(
            f"'{path.name}' is no IP-Adapter", "choose an IP-Adapter's file", id="model.image-prompt"
        )
    _config(header)
    return header


def load_reader(
    path: Path, widths: Sequence[int], width: int, dtype: "torch.dtype", device: "torch.device"
) -> "ImageReader":
    """Load an IP-Adapter for a U-Net whose cross-attentions make `widths` and read states of `width`.

    Raises:
        ModelError: as check_reader; or it is made for another family.
    """
    import torch

    from ddgen.nets.image_tokens import ImageReader
    from ddgen.weights.checkpoint import load_module, unfilled

    header = check_reader(path)
    config = _config(header)
    if config.width != width:
        raise ModelError(
            f"IP-Adapter '{path.name}' makes tokens of {config.width} channels, the model reads {width}",
            "choose the one for the model's family",
            id="model.image-prompt",
        )
    part: Part = {name: stored(header, name) for name in header.tensors if name.startswith(PROJECTION)}
    for name in header.tensors:
        found = re.fullmatch(r"ip_adapter\.(\d+)\.(to_[kv])_ip\.weight", name)
        if found is not None:
            part[f"{found[2]}.{int(found[1]) // 2}.weight"] = stored(header, name)
        elif name.startswith(ATTENTION) and "lora" in name:
            raise _faces(path)
    with unfilled():
        network = ImageReader(config, widths)
    load_module(network, part, dtype=dtype, device=device, name=f"IP-Adapter '{path.name}'")
    return network


def _config(header: Header) -> TokensConfig:
    """Return the shape of the projection, told by names and shapes.

    Raises:
        ModelError: one that reads faces, not pictures, or an unknown one.
    """
    shapes = {
        name.removeprefix(PROJECTION): info.shape
        for name, info in header.tensors.items()
        if name.startswith(PROJECTION)
    }
    if "perceiver_resampler.proj_in.weight" in shapes or {"proj.0.weight", "norm.weight"} <= set(shapes):
        raise _faces(header.path)
    if "proj.weight" in shapes:
        whole, seen = shapes["proj.weight"]
        (width,) = shapes["norm.weight"]
        return TokensConfig("plain", seen, width, whole // width)
    if "proj.3.weight" in shapes:
        width, seen = shapes["proj.2.weight"]
        return TokensConfig("full", seen, width, 0)
    if "latents" in shapes and "layers.0.0.to_q.weight" in shapes:
        _, tokens, inner = shapes["latents"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        heads = shapes["layers.0.0.to_q.weight"][0] // HEAD
        width, feed = shapes["proj_out.weight"][0], shapes["layers.0.1.1.weight"][0]
        return TokensConfig("plus", shapes["proj_in.weight"][1], width, tokens, inner, heads, depth, feed)
    raise ModelError(
        f"IP-Adapter '{header.path.name}' has an unknown projection",
        "choose a plain, plus or full-face one",
        id="model.image-prompt",
    )


def _faces(path: Path) -> ModelError:
    return ModelError(
        f"IP-Adapter '{path.name}' reads what a face recogniser sees, not a picture",
        "choose a plain, plus or full-face one",
        id="model.image-prompt",
    )
