"""The text tower against transformers and open_clip in float64; how its states become conditioning."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from referees import TOLERANCE, distance, redraw
from torch import nn

from ddgen.errors import UsageError
from ddgen.text import clip
from ddgen.text.clip import CLIPTextModel, TextEncoder
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.text.tokens import END_ID, START_ID, Tokenizer

TOKENIZER = Tokenizer()
CONFIGS = {
    "quick_gelu": CLIPConfig(
        width=32, layers=3, heads=4, mlp=128, activation="quick_gelu", projection_dim=24
    ),
    "gelu": CLIPConfig(width=48, layers=2, heads=3, mlp=80, activation="gelu", projection_dim=16),
}
PROMPTS = ["a red apple", "", "a (very:1.3) long story, " + "and so on, " * 12]


def build(config, seed=0):
    return redraw(CLIPTextModel(config).double().eval(), seed)


def read(prompts, pad_id=END_ID):
    return torch.tensor([TOKENIZER.chunks(prompt, pad_id)[0] for prompt in prompts])


def by_transformers(tower):
    """Return transformers' model with the weights of `tower`, filled by an independent renaming."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = tower.config
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp,
            projection_dim=config.projection_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            hidden_act=config.activation,
            eos_token_id=END_ID,
        )
    )
    names = {
        name if name.startswith("text_projection") else f"text_model.{name}": p
        for name, p in tower.named_parameters()
    }
    model.double().eval().load_state_dict(names)
    return model


def by_open_clip(tower):
    """Return open_clip's model with the weights of `tower`, copied parameter by parameter."""
    from open_clip.transformer import QuickGELU, TextTransformer

    config = tower.config
    model = TextTransformer(
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        mlp_ratio=config.mlp / config.width,
        output_dim=config.projection_dim,
        act_layer=QuickGELU if config.activation == "quick_gelu" else nn.GELU,
    )
    model.double().eval()
    with torch.no_grad():
        model.token_embedding.weight.copy_(tower.embeddings.token_embedding.weight)
        model.positional_embedding.copy_(tower.embeddings.position_embedding.weight)
        model.text_projection.copy_(tower.text_projection.weight.T)
        model.ln_final.load_state_dict(tower.final_layer_norm.state_dict())
        for ours, theirs in zip(tower.encoder.layers, model.transformer.resblocks, strict=True):
            attention = ours.self_attn
            joined = (attention.q_proj, attention.k_proj, attention.v_proj)
            theirs.attn.in_proj_weight.copy_(torch.cat([part.weight for part in joined]))
            theirs.attn.in_proj_bias.copy_(torch.cat([part.bias for part in joined]))
            theirs.attn.out_proj.load_state_dict(attention.out_proj.state_dict())
            theirs.ln_1.load_state_dict(ours.layer_norm1.state_dict())
            theirs.ln_2.load_state_dict(ours.layer_norm2.state_dict())
            theirs.mlp.c_fc.load_state_dict(ours.mlp.fc1.state_dict())
            theirs.mlp.c_proj.load_state_dict(ours.mlp.fc2.state_dict())
    return model


def worst_of_transformers(tower, model, ids):
    with torch.no_grad():
        ours, theirs = tower(ids), model(input_ids=ids, output_hidden_states=True)
    assert len(ours.hidden) == len(theirs.hidden_states) == tower.config.layers + 1
    pairs = [*zip(ours.hidden, theirs.hidden_states, strict=True)]
    pairs += [(ours.final, theirs.last_hidden_state), (ours.pooled, theirs.text_embeds)]
    return max(distance(a, b) for a, b in pairs)


def worst_of_open_clip(tower, model, ids):
    with torch.no_grad():
        ours, theirs = tower(ids), model.forward_intermediates(ids, output_fmt="NLC")
    pairs = [
        *zip(ours.hidden[1:], theirs["text_intermediates"], strict=True),
        (ours.pooled, theirs["text_features"]),
    ]
    return max(distance(a, b) for a, b in pairs)


REFEREES = {
    "transformers": (by_transformers, worst_of_transformers),
    "open_clip": (by_open_clip, worst_of_open_clip),
}


@pytest.fixture(scope="module", params=CONFIGS)
def tower(request):
    return build(CONFIGS[request.param])


@pytest.fixture(scope="module", params=REFEREES)
def referee(request, tower):
    make, worst = REFEREES[request.param]
    model = make(tower)
    return lambda changed, ids: worst(changed, model, ids)


@pytest.mark.parametrize("pad_id", [END_ID, 0])
def test_equals_referee(tower, referee, pad_id, record_property):
    found = referee(tower, read(PROMPTS, pad_id))
    record_property("text tower, against transformers and open_clip", found)
    assert found <= TOLERANCE


def swap_activation(tower, monkeypatch):
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[tower.config.activation]
    for layer in tower.encoder.layers:
        monkeypatch.setattr(layer.mlp, "activation", clip.ACTIVATIONS[other])


def approximate_gelu(tower, monkeypatch):
    for layer in tower.encoder.layers:
        exact = layer.mlp.activation
        if exact is nn.functional.gelu:
            monkeypatch.setattr(layer.mlp, "activation", lambda x: nn.functional.gelu(x, approximate="tanh"))
        else:
            monkeypatch.setattr(layer.mlp, "activation", lambda x: x * torch.sigmoid(1.7 * x))


def change_eps(tower, monkeypatch):
    monkeypatch.setattr(tower.encoder.layers[0].layer_norm2, "eps", 1e-6)


def change_final_eps(tower, monkeypatch):
    monkeypatch.setattr(tower.final_layer_norm, "eps", 1e-6)


def drop_mask(tower, monkeypatch):
    attention = nn.functional.scaled_dot_product_attention
    unmasked = SimpleNamespace(scaled_dot_product_attention=lambda q, k, v, is_causal: attention(q, k, v))
    monkeypatch.setattr(clip, "F", unmasked)


def swap_heads(tower, monkeypatch):
    for layer in tower.encoder.layers:
        monkeypatch.setattr(layer.self_attn, "heads", 1)


def pool_at_the_end(tower, monkeypatch):
    monkeypatch.setattr(clip, "at_first_end", lambda states, ids: states[:, -1])


def shift_layers(tower, monkeypatch):
    forward = tower.forward

    def shifted(ids):
        states = forward(ids)
        return dataclasses.replace(states, hidden=[states.hidden[0], *states.hidden[:-1]])

    monkeypatch.setattr(tower, "forward", shifted)


def swap_norms(tower, monkeypatch):
    layer = tower.encoder.layers[0]
    first, second = layer.layer_norm1, layer.layer_norm2
    monkeypatch.setitem(layer._modules, "layer_norm1", second)
    monkeypatch.setitem(layer._modules, "layer_norm2", first)


MUTATIONS = [
    swap_activation,
    approximate_gelu,
    change_eps,
    change_final_eps,
    drop_mask,
    swap_heads,
    pool_at_the_end,
    shift_layers,
    swap_norms,
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_the_comparison_notices(tower, referee, mutate, monkeypatch):
    ids = read(PROMPTS)
    with monkeypatch.context() as patch:
        mutate(tower, patch)
        assert referee(tower, ids) > 10 * TOLERANCE
    assert referee(tower, ids) <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "parameters", "some"),
    [
        (CLIPConfig(), 123_060_480, {"encoder.layers.11.mlp.fc1.weight": (3072, 768)}),
        (
            CLIPConfig(width=1024, layers=23, heads=16, mlp=4096, activation="gelu"),
            340_387_840,
            {"encoder.layers.22.self_attn.k_proj.bias": (1024,)},
        ),
        (
            CLIPConfig(width=1280, layers=32, heads=20, mlp=5120, activation="gelu", projection_dim=1280),
            694_659_840,
            {"text_projection.weight": (1280, 1280), "embeddings.position_embedding.weight": (77, 1280)},
        ),
    ],
    ids=["ViT-L", "ViT-H", "bigG"],
)
def test_full_size_names(config, parameters, some):
    with torch.device("meta"):
        tower = CLIPTextModel(config)
    state = tower.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert {name: tuple(state[name].shape) for name in some} == some


def test_pooled_is_at_the_first_end_whatever_the_ids():
    config = dataclasses.replace(CONFIGS["gelu"], vocab_size=49410)
    tower = build(config)
    plain = read(["a red apple"], pad_id=0)
    added = plain.clone()
    added[0, -1] = 49409  # the greatest id, behind the end
    with torch.no_grad():
        assert torch.equal(tower(plain).pooled, tower(added).pooled)
        assert torch.equal(tower(plain).pooled, tower.text_projection(tower(plain).final[:, 4]))


def encoder(*specs):
    return TextEncoder([build(spec.config, seed) for seed, spec in enumerate(specs)], specs, TOKENIZER)


FIRST = TowerSpec(CONFIGS["quick_gelu"], layer=-2, final_norm=False)
SECOND = TowerSpec(CONFIGS["gelu"], layer=-2, final_norm=False, pooled=True, pad_id=0)
LAST = TowerSpec(CONFIGS["quick_gelu"])


@pytest.mark.parametrize(
    ("layer", "final_norm"), [(-1, True), (-1, False), (-2, True), (-2, False), (-3, True)]
)
def test_layer_and_final_norm(layer, final_norm):
    spec = TowerSpec(CONFIGS["quick_gelu"], layer=layer, final_norm=final_norm)
    ours = encoder(spec)
    model = by_transformers(ours.towers[0])
    with torch.no_grad():
        expected = model(input_ids=read(["a red apple"]), output_hidden_states=True).hidden_states[layer]
        if final_norm:
            expected = model.text_model.final_layer_norm(expected)
    got = ours.encode(["a red apple"])
    assert distance(got.context, expected) <= TOLERANCE
    assert got.vector is None


def test_two_towers_side_by_side():
    both = encoder(FIRST, SECOND)
    got = both.encode(["a red apple", "a dog"])
    assert got.context.shape == (2, 77, 32 + 48) and got.vector.shape == (2, 16)
    with torch.no_grad():
        first = both.towers[0](read(["a red apple", "a dog"]))
        second = both.towers[1](read(["a red apple", "a dog"], pad_id=0))
    assert distance(got.context[..., :32], first.hidden[-2]) <= TOLERANCE
    assert distance(got.context[..., 32:], second.hidden[-2]) <= TOLERANCE
    assert distance(got.vector, second.pooled) <= TOLERANCE


def test_each_distinct_chunk_is_encoded_once(monkeypatch):
    text = encoder(LAST)
    seen = []
    text.towers[0].register_forward_pre_hook(lambda _, inputs: seen.extend(map(tuple, inputs[0].tolist())))
    got = text.encode(["a", "b", "a", "", "b"] * 10 + [f"number {i}" for i in range(40)] + ["a BREAK a"])
    assert len(seen) == len(set(seen)) == 3 + 40
    assert torch.equal(got.context[0], got.context[2]) and not torch.equal(got.context[0], got.context[1])
    assert all(row[0] == START_ID for row in seen)


def test_long_prompts_are_chunks_side_by_side():
    text = encoder(FIRST, SECOND)
    long = text.encode(["a BREAK b", "c"])
    assert long.context.shape == (2, 154, 80)
    a, b, c, empty = (text.encode([prompt]) for prompt in ("a", "b", "c", ""))
    assert (
        distance(
            long.context,
            torch.cat([torch.cat([a.context, b.context], 1), torch.cat([c.context, empty.context], 1)]),
        )
        <= TOLERANCE
    )
    assert distance(long.vector, torch.cat([a.vector, c.vector])) <= TOLERANCE
    assert torch.equal(
        text.encode(["c"], chunks=2).context, text.encode(["c BREAK", "c BREAK BREAK"]).context[:1, :154]
    )
    assert text.count_chunks("a BREAK b") == 2 and text.count_chunks("a BREAK b", "plain") == 1


def test_emphasis():
    text = encoder(LAST)
    plain = text.encode(["a red apple"]).context
    weights = torch.ones(77, 1, dtype=torch.float64)
    weights[2] = 1.5
    prompt = "a (red:1.5) apple"
    scaled = text.encode([prompt], emphasis="scale").context
    restored = text.encode([prompt]).context
    assert distance(scaled, plain * weights) <= TOLERANCE
    assert distance(restored, scaled * (plain.mean() / scaled.mean())) <= TOLERANCE
    assert restored.mean().item() == pytest.approx(plain.mean().item())
    assert distance(text.encode([prompt], emphasis="off").context, plain) <= TOLERANCE
    literal = text.encode([prompt], syntax="plain").context
    assert distance(literal, plain) > 0.1
    with pytest.raises(UsageError, match="unknown emphasis"):
        text.encode(["a"], emphasis="loud")


def test_emphasis_is_per_image_and_leaves_the_vector():
    text = encoder(FIRST, SECOND)
    together = text.encode(["(a:1.5) cat", "(a dog:0.3)", "a cat"])
    for row, prompt in enumerate(["(a:1.5) cat", "(a dog:0.3)", "a cat"]):
        alone = text.encode([prompt])
        assert distance(together.context[row : row + 1], alone.context) <= TOLERANCE
        assert distance(together.vector[row : row + 1], alone.vector) <= TOLERANCE
    assert distance(together.vector[0], together.vector[2]) <= TOLERANCE


def test_weight_of_all_zeros_stays_finite():
    got = encoder(LAST).encode(["(a cat:0)", "(a BREAK b:-10000)"])
    assert torch.isfinite(got.context).all()


@pytest.mark.parametrize("prompt", ["[(<a|b", "\0", "\ud800 x", "a [/b] {c} \\", ")" * 500], ids=range(5))
def test_any_prompt_is_encoded(prompt):
    assert torch.isfinite(encoder(LAST).encode([prompt]).context).all()


def test_states_of_half_precision_towers_come_in_float32():
    text = TextEncoder([build(LAST.config).to(torch.bfloat16)], [LAST], TOKENIZER)
    assert text.encode(["a"]).context.dtype == torch.float32
