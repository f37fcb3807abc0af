"""Putting a run's additions on a model that was just loaded: LoRAs on its weights, embeddings into its words.

Which files, and with which weights, is in the Spec; here they are read, matched and applied. What fits
nothing comes back as notes.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ddgen.errors import UsageError
from ddgen.text.clip import CLIPTextModel, TextEncoder
from ddgen.weights.checkpoint import Checkpoint, Reader
from ddgen.weights.embedding import open_embedding, words_of
from ddgen.weights.lora import Adapted, open_adapter
from ddgen.weights.spec import Addition, Spec


class Added:
    """A loaded model's weights and words with a changeable set of additions.

    network: the U-Net. text: the text encoder. found: the checkpoint that both were loaded from.
    """

    def __init__(self, spec: Spec, network: nn.Module, text: TextEncoder, found: Checkpoint) -> None:
        self.spec = spec
        self._text = text
        self._found = found
        modules: dict[str, nn.Module] = {"unet": network}
        self._reader = Reader()
        self._native = all(isinstance(tower, CLIPTextModel) for tower in text.towers)
        if self._native:
            modules |= {f"text.{i}": tower for i, tower in enumerate(text.towers)}
        self._adapted = Adapted(modules, spec.arch, self._stored, spec.name)

    def set(self, additions: Sequence[Addition]) -> list[str]:
        """Put exactly these LoRAs and embeddings on the model in place of those before; return notes on what
        fits nothing.

        Raises:
            ModelError: a file that is damaged, or made for another model. UsageError: the text towers are
            another library's.
        """
        loras = [item for item in additions if item.kind == "lora"]
        adapters = [(open_adapter(item.path), item.weight) for item in loras]
        if not self._native and any(
            module.startswith(("lora_te", "text_encoder"))
            for adapter, _ in adapters
            for module in adapter.groups
        ):
            raise UsageError(
                "LoRAs for text towers need ddgen's own", "use --text-backend native", id="usage.text-backend"
            )
        embeddings = [open_embedding(item.path) for item in additions if item.kind == "embedding"]
        words: Mapping[str, list[Tensor]] = words_of(embeddings, self.spec.arch.text, self.spec.name)
        with Reader() as self._reader:
            notes = self._adapted.set(adapters)
        self._text.learn(words)
        return notes

    def _stored(self, part: str, name: str) -> Tensor:
        """Return a weight as the model's file has it."""
        return self._reader.read(self._found.part(part)[name])
