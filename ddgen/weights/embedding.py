"""Textual inversion: a word of the prompt with vectors of its own, learnt by somebody else and kept in a
small file.

    {"emb_params": (n, D)}              kohya                {"<token>": (D) or (n, D)}     diffusers
    {"clip_l": (n, 768), "clip_g": (n, 1280)}   SDXL         string_to_param: {"*": (n, D)}  AUTOMATIC1111
    (.pt)

The word is the file's name without its ending; a token that the file itself names works too. Ref: Gal et al.
2022, arXiv 2208.01618.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddgen.errors import ModelError
from ddgen.text.config import TowerSpec
from ddgen.weights.adapter_files import read_adapter_tensors
from ddgen.weights.adapter_header import PLACES, embedding_key

MAX_VECTORS = 75  # as many as a chunk of a prompt holds
_UNNAMED = ("*", "emb_params", *PLACES)
_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL"}


@dataclass(frozen=True)
class Embedding:
    """words: what stands for it in a prompt. vectors: (n, D) by text tower, or by -1 where the file does not
    say which.
    """

    path: Path
    words: tuple[str, ...]
    vectors: dict[int, Tensor]

    def for_towers(self, towers: Sequence[TowerSpec], model: str) -> list[Tensor]:
        """Return the vectors for each tower of a model.

        Raises:
            ModelError: the embedding was made for another family.
        """
        widths = [spec.config.width for spec in towers]
        found = [
            self.vectors.get(i, self.vectors[-1] if -1 in self.vectors and len(towers) == 1 else None)
            for i in range(len(towers))
        ]
        if all(v is not None and v.shape[1] == width for v, width in zip(found, widths, strict=True)) and len(
            self.vectors
        ) == len(towers):
            return [v for v in found if v is not None]
        own = "+".join(str(v.shape[1]) for v in self.vectors.values())
        family = (
            "SDXL" if len(self.vectors) > 1 else _FAMILIES.get(next(iter(self.vectors.values())).shape[1])
        )
        guess = f" (looks like {family})" if family else ""
        wide = "+".join(map(str, widths))
        raise ModelError(
            f"embedding '{self.path.name}' is {own} wide, model '{model}' takes {wide}{guess}",
            "choose an embedding made for the model's family",
            id="model.embedding-unfit",
        )


def open_embedding(path: str | Path) -> Embedding:
    """Read an embedding file.

    Raises:
        ModelError: missing, damaged, not an embedding, or values that are not finite.
    """
    path = Path(path)
    tensors, metadata = read_adapter_tensors(path, "embedding")
    keyed = {embedding_key(name): tensor for name, tensor in tensors.items()}
    found = {key: tensor for key, tensor in keyed.items() if key is not None}
    if set(found) & set(PLACES):
        found = {name: tensor for name, tensor in found.items() if name in PLACES}
    if not found or (len(found) > 1 and not set(found) <= set(PLACES)):
        first = next(iter(tensors), "nothing")
        raise ModelError(
            f"embedding '{path.name}' holds no embedding that ddgen knows ({first!a})",
            "give a textual inversion file",
            id="model.embedding",
        )
    vectors = {
        PLACES.get(str(name), -1): _checked(path, tensor)
        for name, tensor in sorted(found.items(), key=lambda item: PLACES.get(str(item[0]), -1))
    }
    if len({len(v) for v in vectors.values()}) != 1:
        raise ModelError(
            f"embedding '{path.name}' has another number of vectors for each text tower",
            "download it again",
            id="model.embedding",
        )
    own = [str(name) for name in found if name not in _UNNAMED]
    named = [metadata["name"]] if "name" in metadata else []
    return Embedding(
        path, tuple(dict.fromkeys(word for word in (path.stem, *own, *named) if word.strip())), vectors
    )


def _checked(path: Path, tensor: Tensor) -> Tensor:
    rows = tensor[None] if tensor.ndim == 1 else tensor
    if rows.ndim != 2 or not rows.is_floating_point() or len(rows) > MAX_VECTORS:
        shape = "x".join(map(str, tensor.shape))
        raise ModelError(
            f"embedding '{path.name}' is {shape}, not 1 to {MAX_VECTORS} vectors",
            "give a textual inversion file",
            id="model.embedding",
        )
    if not torch.isfinite(rows.float()).all():
        raise ModelError(
            f"embedding '{path.name}' holds non-finite values",
            "the file is damaged, download it again",
            id="model.embedding",
        )
    return rows


def words_of(
    embeddings: Sequence[Embedding], towers: Sequence[TowerSpec], model: str
) -> Mapping[str, list[Tensor]]:
    """Return {word: vectors by tower} for TextEncoder.learn; of two files with one word the last wins.

    Raises:
        ModelError: an embedding made for another family.
    """
    return {word: embedding.for_towers(towers, model) for embedding in embeddings for word in embedding.words}
