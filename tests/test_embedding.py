"""Textual inversion: every file format, vectors in the place of words, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from referees import draw, redraw
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from ddgen.errors import ModelError, UsageError
from ddgen.text.clip import CLIPTextModel, TextEncoder
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.text.library import library_encoder
from ddgen.text.tokens import END_ID, START_ID, Tokenizer
from ddgen.weights.embedding import open_embedding, words_of

SMALL = CLIPConfig(width=32, layers=2, heads=2, mlp=64, projection_dim=24)
OTHER = CLIPConfig(width=48, layers=2, heads=3, mlp=64, activation="gelu", projection_dim=24)
ONE = (TowerSpec(SMALL, pooled=True),)
TWO = (
    TowerSpec(SMALL, layer=-2, final_norm=False),
    TowerSpec(OTHER, layer=-2, final_norm=False, pooled=True, pad_id=0),
)
NARROW, WIDE = draw(3, 32, seed=5), draw(3, 48, seed=6)


def encoder(specs: tuple[TowerSpec, ...] = ONE) -> TextEncoder:
    return TextEncoder(
        [redraw(CLIPTextModel(spec.config).double(), i) for i, spec in enumerate(specs)], specs, Tokenizer()
    )


def saved(tmp_path: Path, tensors: dict[str, Tensor], name: str = "cat.safetensors") -> Path:
    save_file(tensors, tmp_path / name)
    return tmp_path / name


def files(tmp_path: Path) -> dict[str, Path]:
    """Return one embedding in every format."""
    automatic = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": NARROW},
        "name": "my cat",
        "step": 100,
        "sd_checkpoint": "x",
    }
    torch.save(automatic, tmp_path / "a1111.pt")
    old = torch.nn.ParameterDict({"*": torch.nn.Parameter(NARROW)})
    torch.save(
        automatic | {"string_to_param": old}, tmp_path / "older.pt", _use_new_zipfile_serialization=False
    )
    torch.save({"<cat-toy>": NARROW}, tmp_path / "learned_embeds.bin")
    torch.save([{"<cat-toy>": NARROW}], tmp_path / "listed.bin")
    return {
        "kohya": saved(tmp_path, {"emb_params": NARROW}, "kohya.safetensors"),
        "diffusers": saved(tmp_path, {"<cat-toy>": NARROW}, "diffusers.safetensors"),
        **{name: tmp_path / name for name in ("a1111.pt", "older.pt", "learned_embeds.bin", "listed.bin")},
    }


@pytest.mark.parametrize(
    "name", ["kohya", "diffusers", "a1111.pt", "older.pt", "learned_embeds.bin", "listed.bin"]
)
def test_every_format_gives_its_vectors(name: str, tmp_path: Path) -> None:
    path = files(tmp_path)[name]
    embedding = open_embedding(path)
    assert torch.equal(embedding.for_towers(ONE, "m")[0], NARROW)
    own = {
        "diffusers": "<cat-toy>",
        "learned_embeds.bin": "<cat-toy>",
        "listed.bin": "<cat-toy>",
        "a1111.pt": "my cat",
        "older.pt": "my cat",
    }
    assert embedding.words == tuple(filter(None, (path.stem, own.get(name))))


def test_one_vector_without_an_axis(tmp_path: Path) -> None:
    assert open_embedding(saved(tmp_path, {"<a>": NARROW[0].clone()})).for_towers(ONE, "m")[0].shape == (
        1,
        32,
    )


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_pairs_for_two_towers(names: tuple[str, str], tmp_path: Path) -> None:
    embedding = open_embedding(saved(tmp_path, {names[1]: WIDE, names[0]: NARROW}))
    narrow, wide = embedding.for_towers(TWO, "m")
    assert torch.equal(narrow, NARROW) and torch.equal(wide, WIDE) and embedding.words == ("cat",)


def test_a_word_is_replaced_by_its_vectors(tmp_path: Path) -> None:
    """Against transformers, told the same vectors as a longer table."""
    ours = encoder()
    path = saved(tmp_path, {"emb_params": NARROW})
    ours.learn(words_of([open_embedding(path)], ONE, "m"))
    ids = ours.tokenizer.encode("a CAT, on grass")
    tokens = Tokenizer().encode
    assert ids == [*tokens("a"), 49408, 49409, 49410, *tokens(", on grass")]

    config = CLIPTextConfig(
        vocab_size=49411,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        projection_dim=24,
        hidden_act="quick_gelu",
        eos_token_id=END_ID,
    )
    theirs = CLIPTextModelWithProjection(config).double().eval()
    state = {
        f"text_model.{name}": tensor
        for name, tensor in ours.towers[0].state_dict().items()
        if name != "text_projection.weight"
    }
    table = "text_model.embeddings.token_embedding.weight"
    state[table] = torch.cat([state[table], NARROW])
    theirs.load_state_dict(
        state | {"text_projection.weight": ours.towers[0].state_dict()["text_projection.weight"]}
    )
    row = [START_ID, *ids, END_ID]
    out = theirs(input_ids=torch.tensor([row + [END_ID] * (77 - len(row))]))
    cond = ours.encode(["a CAT, on grass"])
    assert cond.vector is not None
    assert (cond.context - out.last_hidden_state).abs().max() < 1e-9
    assert (
        cond.vector - out.text_embeds
    ).abs().max() < 1e-9  # pooled at the end token, though greater ids stand before it

    plain = ours.encode(["a dog, on grass"]).context
    ours.learn({})
    assert torch.equal(ours.encode(["a dog, on grass"]).context, plain)
    assert (ours.encode(["a CAT, on grass"]).context - cond.context).abs().max() > 1e-3
    assert ours.tokenizer.encode("a cat") == Tokenizer().encode("a cat")


def test_whole_words_the_longest_first() -> None:
    tokenizer = Tokenizer()
    tokenizer.learn({"cat": [50001], "cat two": [50002, 50003], "<x>": [50004]})
    assert tokenizer.encode("cat") == [50001]
    assert tokenizer.encode("cat two<x>") == [50002, 50003, 50004]
    assert tokenizer.encode("category concat cat_") == Tokenizer().encode("category concat cat_")
    assert tokenizer.encode("a (cat)")[-2:] == [50001, *Tokenizer().encode(")")]


def test_vectors_count_as_tokens_and_towers_get_their_own(tmp_path: Path) -> None:
    two = encoder(TWO)
    two.learn(words_of([open_embedding(saved(tmp_path, {"clip_l": NARROW, "clip_g": WIDE}))], TWO, "m"))
    assert two.count_chunks("cat " * 25) == 1 and two.count_chunks("cat " * 26) == 2
    with_word = two.encode(["cat"])
    two.towers[1].embeddings.learnt += 1.0
    again = two.encode(["cat"])
    assert torch.equal(with_word.context[..., :32], again.context[..., :32])
    assert (with_word.context[..., 32:] - again.context[..., 32:]).abs().max() > 1e-3


def test_the_weights_stay_as_they_were(tmp_path: Path) -> None:
    ours = encoder()
    names = set(ours.towers[0].state_dict())
    ours.learn(words_of([open_embedding(saved(tmp_path, {"emb_params": NARROW}))], ONE, "m"))
    assert set(ours.towers[0].state_dict()) == names


def test_another_family_is_named(tmp_path: Path) -> None:
    real = (TowerSpec(CLIPConfig()),)
    for tensors, towers, text in [
        (
            {"emb_params": draw(2, 1024, seed=1)},
            real,
            "is 1024 wide, model 'sd15' takes 768 (looks like SD 2.x)",
        ),
        (
            {"clip_l": draw(2, 768, seed=1), "clip_g": draw(2, 1280, seed=1)},
            real,
            "is 768+1280 wide, model 'sd15' takes 768 (looks like SDXL)",
        ),
        ({"emb_params": draw(2, 32, seed=1)}, TWO, "is 32 wide, model 'sd15' takes 32+48"),
    ]:
        with pytest.raises(ModelError) as caught:
            open_embedding(saved(tmp_path, {k: v.contiguous() for k, v in tensors.items()})).for_towers(
                towers, "sd15"
            )
        assert text in str(caught.value) and caught.value.exit_code == 5


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(2, 4), "b": torch.zeros(2, 4)},
        {"emb_params": torch.zeros(2, 3, 4)},
        {"emb_params": torch.zeros(80, 4)},
        {"emb_params": torch.full((2, 4), math.nan)},
        {"emb_params": torch.zeros(2, 4, dtype=torch.int64)},
        {"clip_l": torch.zeros(2, 4), "clip_g": torch.zeros(3, 4)},
    ],
)
def test_what_is_no_embedding_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="embedding 'cat.safetensors'"):
        open_embedding(saved(tmp_path, tensors))


def test_other_libraries_towers_say_so() -> None:
    state = {name: tensor for name, tensor in encoder().towers[0].state_dict().items()}
    theirs = library_encoder("transformers", [state], ONE, Tokenizer())
    with pytest.raises(UsageError, match="--text-backend native"):
        theirs.learn({"cat": [NARROW]})
    theirs.learn({})
