"""What the network is told during training: the conditioning of every caption, made once or anew at each step.

    fixed towers   each caption is encoded once and kept in float16, if all of them fit the memory given
    trained ones   (LoRA on the towers, a word's vectors) captions go through them at every step, with gradients

Sizes that SDXL reads beside the text are those of the pictures of the step: as they were found, what was cut off to
their left and top, and as they are shown.
"""

from collections.abc import Sequence

import torch

from ddgen.app.conditions import size_vector
from ddgen.app.dataset import Frame
from ddgen.app.pipeline import Pipeline
from ddgen.conditioning import Conditioning
from ddgen.text.clip import TextEncoder

BATCH = 64


class Captions:
    """texts[0] is the empty one. live: encode at every step, with gradients. budget: bytes to keep."""

    def __init__(self, pipeline: Pipeline, texts: Sequence[str], *, live: bool, budget: int) -> None:
        self.spec, self.texts, self.live = pipeline.spec, list(texts), live
        text = pipeline.text
        assert isinstance(text, TextEncoder)
        self.text = text
        self.chunks = max(text.count_chunks(one) for one in texts)
        width = 77 * self.chunks * sum(tower.config.width for tower in pipeline.spec.arch.text)
        self.kept: Conditioning | None = None
        if not live and 2 * width * len(texts) <= budget:
            rows = [self.encode(range(i, min(i + BATCH, len(texts)))) for i in range(0, len(texts), BATCH)]
            vectors = [row.vector for row in rows if row.vector is not None]
            self.kept = Conditioning(
                torch.cat([row.context.half().cpu() for row in rows]),
                torch.cat(vectors).cpu() if vectors else None,
            )

    def encode(self, indices: Sequence[int], text: TextEncoder | None = None) -> Conditioning:
        """Return the conditioning of captions, by index, from `text` or the model's own towers."""
        encoder = self.text if text is None else text
        texts = [self.texts[i] for i in indices]
        with torch.set_grad_enabled(self.live and torch.is_grad_enabled()):
            cond = encoder.states(texts, chunks=self.chunks)
        if not self.spec.zero_negative:
            return cond
        told = torch.tensor([float(i != 0) for i in indices]).to(cond.context)
        vector = None if cond.vector is None else cond.vector * told[:, None]
        return Conditioning(cond.context * told[:, None, None], vector)

    def __call__(
        self,
        indices: Sequence[int],
        size: tuple[int, int],
        device: torch.device,
        text: TextEncoder | None = None,
        frames: Sequence[Frame] = (),
    ) -> Conditioning:
        """Return the conditioning of a step, float32. size: width and height in pixels. frames: how each picture
        came to that size (none: it was never of another)."""
        if self.kept is None:
            cond = self.encode(indices, text)
        else:
            cond = self.kept.select(list(indices))
        vector = cond.vector
        if self.spec.arch.vector_ids:
            assert vector is not None
            shown = list(frames) or [Frame(size, (0, 0))] * len(vector)
            ids = [size_vector(self.spec, *size, original=one.original, crop=one.crop) for one in shown]
            vector = torch.cat([vector, torch.stack(ids).to(vector)], dim=1)
        return Conditioning(
            cond.context.float().to(device), None if vector is None else vector.float().to(device)
        )


