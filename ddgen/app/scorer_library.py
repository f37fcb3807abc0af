"""A CLIP of the user's own as scorer: a folder that transformers' CLIPModel or open_clip wrote. Offline."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddgen.errors import ModelError
from ddgen.text.chunks import chunk_prompt
from ddgen.text.tokens import Tokenizer, frame

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class LibraryScorer:
    """Both towers of a CLIP. side: of the pictures it takes, in pixels."""

    def __init__(self, text: Any, image: Any, side: int) -> None:
        self.text, self.image, self.side = text, image, side
        self.tokenizer = Tokenizer()

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str], syntax: str = "plain") -> Tensor:
        """Return unit vectors (N, D)."""
        rows = [frame(chunk_prompt(text, self.tokenizer, syntax).bodies[0]) for text in prompts]
        return F.normalize(self.text(torch.tensor(rows)).float(), dim=-1)

    @torch.inference_mode()
    def pictures(self, pictures: "Sequence[Pixels]") -> Tensor:
        """Return unit vectors (N, D)."""
        x = torch.stack([prepared(picture, self.side) for picture in pictures])
        return F.normalize(self.image(x).float(), dim=-1)


def prepared(picture: "Pixels", side: int) -> Tensor:
    """Return a picture (H, W, 3 or 4) uint8 as CLIP was shown its own: shorter side fitted (bicubic), middle cut
    out, normalised: (3, side, side)."""
    image = Image.fromarray(picture)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    ratio = side / min(image.size)
    size = max(side, round(image.width * ratio)), max(side, round(image.height * ratio))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    x = (np.asarray(image).astype(np.float32) / 255 - MEAN) / DEVIATION
    return torch.from_numpy(x.astype(np.float32)).movedim(-1, 0)


def library_scorer(folder: Path) -> LibraryScorer:
    """Load a CLIP from a folder.

    Raises:
        ModelError: neither library's, or damaged.
    """
    try:
        if (folder / "open_clip_config.json").exists():
            return _open_clip(folder)
        if (folder / "config.json").exists():
            return _transformers(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        words = str(error).strip().partition("\n")[0][:150]
        raise ModelError(f"'{folder}' holds no CLIP that can be read: {words}", "save it again", id="model.scorer") from error
    raise ModelError(
        f"'{folder}' has neither config.json nor open_clip_config.json",
        "give the folder of a CLIP that transformers or open_clip wrote",
        id="model.scorer",
    )


def _transformers(folder: Path) -> LibraryScorer:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    def text(ids: Tensor) -> Tensor:
        return model.text_projection(model.text_model(input_ids=ids).pooler_output)

    def image(x: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=x).pooler_output)

    return LibraryScorer(text, image, model.config.vision_config.image_size)


def _open_clip(folder: Path) -> LibraryScorer:
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    side = model.visual.image_size
    return LibraryScorer(model.encode_text, model.encode_image, side[0] if isinstance(side, tuple) else side)
