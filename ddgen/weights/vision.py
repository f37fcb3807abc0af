"""CLIP's vision tower in a folder of its own, as transformers or open_clip writes it: found, and loaded.

    config.json, model.safetensors                         transformers: vision_model.*, visual_projection
    open_clip_config.json, open_clip_model.safetensors     open_clip: visual.*

Files of either may be pickled instead; nothing in them is run. A text tower beside it is passed over.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddgen.errors import ModelError
from ddgen.weights.control import stored
from ddgen.weights.header import Header
from ddgen.weights.keymap import from_openclip_vision
from ddgen.weights.split import Part, stored_as
from ddgen.weights.unpickle import read_weights_header

if TYPE_CHECKING:
    import torch

    from ddgen.text.vision import VisionTower

FILES = {
    "config.json": ("model.safetensors", "pytorch_model.bin"),
    "open_clip_config.json": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}
MAX_CONFIG_BYTES = 2**20
TEXT = ("text_model.", "text_projection.", "logit_scale")


@dataclass(frozen=True)
class TowerFiles:
    """A tower's config and weights; the config's name tells whose they are."""

    config: Path
    weights: Path


def find_tower(given: str | None, beside: Path) -> TowerFiles:
    """Return the tower in the folder that was given, or in `image_encoder` beside the adapter.

    Raises:
        ModelError: no such folder, or not all of it.
    """
    folder = beside.parent / "image_encoder" if given is None else Path(given)
    for config, names in FILES.items():
        for name in names:
            if (folder / config).is_file() and (folder / name).is_file():
                return TowerFiles(folder / config, folder / name)
    what = "no image encoder beside the IP-Adapter" if given is None else f"--image-encoder '{given}'"
    missing = next((names[0] for config, names in FILES.items() if (folder / config).is_file()), "config.json")
    raise ModelError(
        f"{what}: '{folder / missing}' is missing", "give its folder: --image-encoder DIR", id="model.image-encoder"
    )


def load_tower(files: TowerFiles, dtype: "torch.dtype", device: "torch.device") -> "VisionTower":
    """Load a vision tower.

    Raises:
        ModelError: damaged, or of another shape than its config says.
    """
    from ddgen.text.vision import VisionTower
    from ddgen.weights.checkpoint import read_tensors

    header, said = read_weights_header(files.weights), _read_config(files.config)
    if files.config.name == "config.json":
        inner = said.get("vision_config")
        config = inner if isinstance(inner, dict) else said
        part: Part = {name: stored(header, name) for name in header.tensors if not name.startswith(TEXT)}
    else:
        config, part = _shape_of_openclip(said, files.config), _part_of_openclip(header)
    return VisionTower(config, dict(read_tensors(part, dtype=dtype))).to(device)


def _part_of_openclip(header: Header) -> Part:
    part: Part = {}
    for name in header.tensors:
        for ours, take in from_openclip_vision(name).items():
            part[ours] = stored_as(header, take)
    return part


def _shape_of_openclip(said: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return an open_clip config in transformers' words.

    Raises:
        ModelError: none that says the shape of a transformer.
    """
    model = said.get("model_cfg", said)
    try:
        seen = model["vision_cfg"]
        width, layers = int(seen["width"]), int(seen["layers"])
        return {
            "hidden_size": width,
            "intermediate_size": int(width * float(seen.get("mlp_ratio", 4.0))),
            "num_hidden_layers": layers,
            "num_attention_heads": width // int(seen.get("head_width", 64)),
            "image_size": int(seen.get("image_size", 224)),
            "patch_size": int(seen["patch_size"]),
            "projection_dim": int(model["embed_dim"]),
            "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        }
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise ModelError(
            f"'{path}' says no vision tower that can be read", "choose a CLIP with a ViT", id="model.image-encoder"
        ) from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"'{path}' is not a config", "download it again", id="model.image-encoder")
    return found
