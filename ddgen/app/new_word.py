"""Textual inversion: the vectors of a new word are all that is trained, through the text towers and the U-Net.

Written as diffusers and AUTOMATIC1111 read it: {word: (n, D)}, or {"clip_l": (n, D), "clip_g": (n, D)} for two
towers. Ref: Gal et al. 2022, arXiv 2208.01618, section 4.2.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ddgen.app.pipeline import Pipeline
from ddgen.app.subjects import native_towers
from ddgen.errors import UsageError
from ddgen.text.clip import TextEncoder
from ddgen.weights.checkpoint import save_tensors

EMBEDDING = "embedding.safetensors"
TABLES = ("clip_l", "clip_g")


class NewWord:
    """vectors: how many tokens' room the word takes. like: a word whose vectors it begins with; None: random
    ones as long as those of other words.

    Raises:
        UsageError: `like` is empty.
    """

    live = True

    def __init__(
        self, pipeline: Pipeline, *, seed: int, word: str, vectors: int = 1, like: str | None = None
    ) -> None:
        self.pipeline, self.word = pipeline, word
        self.facts: dict[str, object] = {"kind": "embedding", "word": word, "vectors": vectors, "like": like}
        network = pipeline.denoiser.network
        assert isinstance(network, nn.Module)
        self.network: nn.Module = network.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        ids = None if like is None else pipeline.text.tokenizer.encode(like)
        if ids is not None and not ids:
            raise UsageError(f"--like '{like}' has no token", "give a word", id="usage.like")
        rows = []
        for tower in native_towers(pipeline):
            table = tower.requires_grad_(False).embeddings.token_embedding.weight
            if ids is None:
                drawn = torch.randn(vectors, table.shape[1], generator=generator)
                first = drawn.to(table.device) * table.std(0) + table.mean(0)
            else:
                first = table[[ids[i % len(ids)] for i in range(vectors)]]
            rows.append(nn.Parameter(first.detach().float().clone()))
        self.trained: nn.Module = nn.ParameterList(rows)
        self.text()

    def text(self, state: Mapping[str, Tensor] | None = None) -> TextEncoder:
        """Return the model's towers, which know the word; as they know it until the next call."""
        held = dict(self.trained.named_parameters()) if state is None else state
        own = self.pipeline.text
        assert isinstance(own, TextEncoder)
        own.learn({self.word: [held[str(i)] for i in range(len(own.specs))]})
        return own

    def averaged(self, state: Mapping[str, Tensor]) -> nn.Module:
        return self.network

    def write(self, out: Path, state: Mapping[str, Tensor]) -> Path:
        names = (self.word,) if len(state) == 1 else TABLES
        tensors = {name: state[str(i)] for i, name in enumerate(names)}
        save_tensors(out / EMBEDDING, tensors, {"format": "pt", "name": self.word})
        return out / EMBEDDING
