"""Small weight files that change a model: LoRAs and embeddings. All tensors are read at once."""

from pathlib import Path

from torch import Tensor

from ddgen.errors import ModelError
from ddgen.weights.checkpoint import Reader
from ddgen.weights.keymap import Take
from ddgen.weights.split import Stored
from ddgen.weights.unpickle import read_weights_header


def read_adapter_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors, metadata) of a safetensors or pickled file.

    kind: what messages call the file, "LoRA" or "embedding".

    Raises:
        ModelError: missing, damaged or refused.
    """
    try:
        header = read_weights_header(path)
        with Reader() as reader:
            tensors = {
                name: reader.read(Stored(header, Take((name,)), info.shape))
                for name, info in header.tensors.items()
            }
    except ModelError as error:
        message = error.message.replace("model '", f"{kind} '", 1)
        raise ModelError(message, error.hint, id=error.id) from error
    return tensors, header.metadata
