"""CLIP's vision tower, by transformers: a picture -> its projected embedding, or its penultimate states.

It knows no U-Net. Imported when an image prompt is given: transformers takes seconds to import.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ddgen.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on, in [0, 1]. Ref: Radford et al. 2021, arXiv 2103.00020."""

SHAPE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "projection_dim", "hidden_act", "layer_norm_eps",
)  # fmt: skip


class VisionTower(nn.Module):
    """transformers' CLIPVisionModelWithProjection.

    config: what its config.json says. state: its weights under transformers' names.

    Raises:
        ModelError: the weights are not those of the config.
    """

    def __init__(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        known = CLIPVisionConfig(**{name: config[name] for name in SHAPE if name in config})
        self.side = int(known.image_size)
        with torch.device("meta"):
            self.model = CLIPVisionModelWithProjection(known)
        wanted = {name: tuple(tensor.shape) for name, tensor in self.model.named_parameters()}
        held = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
        if not any(name.startswith("vision_model.") for name in wanted):
            held = {name.removeprefix("vision_model."): tensor for name, tensor in held.items()}
        found = {name: tuple(tensor.shape) for name, tensor in held.items()}
        if found != wanted:
            odd = sorted(dict(wanted.items() ^ found.items()))[0]
            raise ModelError(
                f"the image encoder's '{odd}' is not what its config says",
                "take both from one folder",
                id="model.image-encoder",
            )
        dtype = next(iter(held.values())).dtype
        self.model = CLIPVisionModelWithProjection(known).to(dtype)
        self.model.load_state_dict(held, strict=False)  # names were compared; what is left is the ids' buffer
        self.requires_grad_(False).eval()

    def pooled(self, pixels: Tensor) -> Tensor:
        """Return the projected embedding (B, E) of prepared pixels."""
        return self.model(pixel_values=pixels).image_embeds

    def states(self, pixels: Tensor) -> Tensor:
        """Return the states before the last block, (B, N, E)."""
        return self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]


def prepare(picture: "NDArray[np.uint8]", side: int) -> Tensor:
    """Return (1, 3, side, side) of a picture (H, W, 3): its shorter side brought to `side` (bicubic), its middle
    cut out."""
    image = Image.fromarray(picture)
    factor = side / min(image.size)
    sizes = [max(side, int(length * factor)) for length in image.size]
    image = image.resize((sizes[0], sizes[1]), Image.Resampling.BICUBIC)
    left, top = (sizes[0] - side) // 2, (sizes[1] - side) // 2
    values = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    return torch.from_numpy((values - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None]
