"""Pictures as prompts: what a vision tower sees in one becomes tokens that the network reads beside its text.

    D(x; text)  ->  D(x; text, w tokens(picture));  the unconditional side reads the tokens of no picture

The tower is needed once a run and let go, but for the lines of a batch, which share it. No picture is a projected embedding of zeros, or the states of a
picture of zeros, as the adapters were trained.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddgen.diffusion.denoiser import Denoiser
from ddgen.nets.image_tokens import ImageReader, cross_attentions, reading

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.verbs import PromptPicture
    from ddgen.text.vision import VisionTower


@dataclass(frozen=True)
class ImagePrompt:
    """A picture as the network reads it. tokens: (1, n, D); nothing: of no picture."""

    reader: ImageReader
    weight: float
    tokens: Tensor
    nothing: Tensor


@torch.inference_mode()
def load(pipeline: Pipeline, files: Sequence[PromptPicture]) -> list[ImagePrompt]:
    """Load the adapters beside a pipeline's network, and show the pictures to the tower.

    Raises:
        ModelError: an adapter or a tower that cannot be used, or does not fit.
    """
    from ddgen.weights.image_prompt import load_reader
    from ddgen.weights.vision import load_tower

    unet = pipeline.denoiser.network
    widths = [module.to_out[0].out_features for module in cross_attentions(unet)]  # type: ignore[arg-type]
    dtype = pipeline.denoiser.dtype or torch.float32
    networks: dict[Path, nn.Module] = dict(pipeline.controls)
    found = []
    for file in files:
        if file.adapter not in networks:
            width = pipeline.spec.arch.unet.context_dim
            networks[file.adapter] = load_reader(file.adapter, widths, width, dtype, pipeline.device)
        if file.tower.weights not in networks:
            networks[file.tower.weights] = load_tower(file.tower, dtype, pipeline.device)
        reader, tower = networks[file.adapter], networks[file.tower.weights]
        tokens, nothing = look(reader, tower, file.picture)  # type: ignore[arg-type]
        found.append(ImagePrompt(reader, file.weight, tokens, nothing))  # type: ignore[arg-type]
        if file.kept:
            pipeline.controls |= {path: networks[path] for path in (file.adapter, file.tower.weights)}
    return found


def look(reader: ImageReader, tower: VisionTower, picture: object) -> tuple[Tensor, Tensor]:
    """Return the tokens of a picture, and of none.

    Raises:
        ModelError: the adapter was made for another tower.
    """
    from ddgen.errors import ModelError
    from ddgen.text.vision import prepare

    weight = next(reader.image_proj.parameters())
    pixels = prepare(picture, tower.side).to(weight)  # type: ignore[arg-type]
    if reader.config.kind == "plain":
        seen = tower.pooled(pixels)
        none = torch.zeros_like(seen)
    else:
        seen, none = tower.states(pixels), tower.states(torch.zeros_like(pixels))
    if seen.shape[-1] != reader.config.seen:
        raise ModelError(
            f"the image encoder gives {seen.shape[-1]} channels, the IP-Adapter reads {reader.config.seen}",
            "give the encoder that it was made for: --image-encoder DIR",
            id="model.image-encoder",
        )
    return reader.image_proj(seen), reader.image_proj(none)


def with_pictures(denoiser: Denoiser, unet: object, prompts: Sequence[ImagePrompt]) -> Denoiser:
    """Return the denoiser of a network that reads pictures beside its text; of none, the denoiser itself.

    unet: the network itself, whatever the denoiser has wrapped it in. Which rows of a batch are shown the
    pictures, the conditioning says (`Conditioning.pictured`).
    """
    if not prompts:
        return denoiser
    network = denoiser.network
    pairs = [(prompt.reader, prompt.weight) for prompt in prompts]

    def pictured(*given: Tensor | None, pictured: Tensor, **named: Tensor) -> Tensor:
        shown = pictured.reshape(-1, 1, 1)
        tokens = [torch.where(shown, prompt.tokens, prompt.nothing) for prompt in prompts]
        with reading(unet, pairs, tokens):  # type: ignore[arg-type]
            return network(*given, **named)

    bound = copy.copy(denoiser)
    bound.network = pictured
    return bound
