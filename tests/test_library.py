"""The same conditioning whichever library runs the towers."""

import pytest
import torch
from referees import TOLERANCE, distance, redraw

from ddgen.errors import UsageError
from ddgen.text.clip import CLIPTextModel, TextEncoder
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.text.library import BACKENDS, library_encoder
from ddgen.text.tokens import Tokenizer

TOKENIZER = Tokenizer()
SMALL = CLIPConfig(width=32, layers=3, heads=4, mlp=128, activation="quick_gelu")
PROJECTED = CLIPConfig(width=48, layers=2, heads=3, mlp=80, activation="gelu", projection_dim=16)
PROMPTS = ["a red apple", "", "(a penguin:1.3) BREAK [on ice]", "a cat, " * 40]
SPECS = {
    "one tower, last layer": (TowerSpec(SMALL),),
    "penultimate with final norm": (TowerSpec(SMALL, layer=-2, pad_id=0),),
    "pooled": (TowerSpec(PROJECTED, pooled=True),),
    "pooled without projection": (TowerSpec(SMALL, pooled=True),),
    "two towers": (
        TowerSpec(SMALL, layer=-2, final_norm=False),
        TowerSpec(PROJECTED, layer=-2, final_norm=False, pooled=True, pad_id=0),
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("specs", SPECS.values(), ids=SPECS)
def test_equals_native(backend, specs):
    towers = [redraw(CLIPTextModel(spec.config).double().eval(), seed) for seed, spec in enumerate(specs)]
    native = TextEncoder(towers, specs, TOKENIZER).encode(PROMPTS)
    library = library_encoder(backend, [tower.state_dict() for tower in towers], specs, TOKENIZER).encode(
        PROMPTS
    )
    assert distance(library.context, native.context) <= TOLERANCE
    assert (library.vector is None) == (native.vector is None) == (not specs[-1].pooled)
    if native.vector is not None:
        assert distance(library.vector, native.vector) <= TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_copied_not_shared(backend):
    tower = redraw(CLIPTextModel(PROJECTED).double().eval(), 0)
    spec = TowerSpec(PROJECTED, pooled=True)
    library = library_encoder(backend, [tower.state_dict()], [spec], TOKENIZER)
    before = library.encode(["a"]).vector
    with torch.no_grad():
        tower.final_layer_norm.bias += 1
    assert torch.equal(library.encode(["a"]).vector, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_kept(backend, dtype):
    tower = CLIPTextModel(SMALL).to(dtype)
    library = library_encoder(backend, [tower.state_dict()], [TowerSpec(SMALL)], TOKENIZER)
    assert {parameter.dtype for parameter in library.parameters()} == {dtype}
    assert library.encode(["a"]).context.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_weights_are_an_error(backend):
    state = CLIPTextModel(SMALL).state_dict()
    del state["encoder.layers.1.mlp.fc1.bias"]
    with pytest.raises((KeyError, RuntimeError), match="mlp"):
        library_encoder(backend, [state], [TowerSpec(SMALL)], TOKENIZER)


def test_unknown_backend():
    with pytest.raises(UsageError, match="did you mean 'transformers'"):
        library_encoder("transformer", [], [], TOKENIZER)
