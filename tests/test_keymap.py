"""The key table, against a second one written from the order of execution, and against its own inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from referees import RESNET, unet_places

from ddgen.nets.config import KLConfig, TinyConfig
from ddgen.nets.taesd import TinyAutoencoder
from ddgen.nets.unet import UNet
from ddgen.nets.vae import AutoencoderKL
from ddgen.text.clip import CLIPTextModel
from ddgen.text.config import CLIPConfig
from ddgen.weights import keymap
from ddgen.weights.arch import FAMILIES
from ddgen.weights.keymap import Outline, Take


def names_of(cls, config):
    with torch.device("meta"):
        return list(cls(config).state_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_unet_key_is_named_as_the_walk_names_it_and_comes_back(name):
    config = FAMILIES[name].unet
    table = keymap.unet_table(Outline.of(config))
    places = dict(unet_places(config))
    places |= {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
    found = {}
    for key in names_of(UNet, config):
        here = max((place for place in places if key.startswith(place + ".")), key=len)
        inner = key[len(here) + 1 :]
        for a, b in RESNET.items():
            if inner.startswith(a + "."):
                inner = b + inner[len(a) :]
        expected = f"{places[here]}.{inner}"
        assert keymap.rename(key, table) == expected
        found[expected] = key
    back = keymap.invert(table)
    assert all(keymap.rename(there, back) == here for there, here in found.items())
    assert Outline.of_diffusers(found) == Outline.of(config)


def test_the_pooled_vector_has_two_names():
    table = keymap.unet_table(Outline(2, 1, (False, True)), "class_embedding")
    assert keymap.rename("label_emb.0.2.bias", table) == "class_embedding.linear_2.bias"


@pytest.mark.parametrize(
    "config", [KLConfig(), KLConfig(channel_mult=(1, 2), num_res_blocks=1)], ids=["f8", "f2"]
)
def test_every_autoencoder_key_comes_back(config):
    table = keymap.kl_table(config)
    names = names_of(AutoencoderKL, config)
    there = [keymap.rename(name, table) for name in names]
    assert None not in there and len(set(there)) == len(names)
    assert [keymap.rename(name, keymap.invert(table)) for name in there] == names
    spots = dict(zip(names, there, strict=True))
    last = len(config.channel_mult) - 1
    # The decoder counts its levels the other way round.
    assert spots[f"decoder.up.{last}.block.0.conv1.weight"] == "decoder.up_blocks.0.resnets.0.conv1.weight"
    assert (
        spots["decoder.up.0.block.0.nin_shortcut.weight"]
        == f"decoder.up_blocks.{last}.resnets.0.conv_shortcut.weight"
    )
    assert spots["encoder.mid.attn_1.proj_out.bias"] == "encoder.mid_block.attentions.0.to_out.0.bias"
    assert keymap.kl_rank("encoder.mid.attn_1.q.weight", "ldm") == 4
    assert keymap.kl_rank("encoder.mid.attn_1.q.weight", "diffusers") == 2
    assert (
        keymap.kl_rank("encoder.mid.attn_1.q.bias", "ldm")
        is None
        is keymap.kl_rank("quant_conv.weight", "ldm")
    )


def test_every_tiny_autoencoder_key_comes_back():
    for name in names_of(TinyAutoencoder, TinyConfig()):
        there = keymap.tiny_name(name, layout="diffusers")
        assert ".layers." in there and keymap.tiny_name(there, layout="ldm") == name


def test_a_tower_through_open_clips_names_and_back_is_the_same_tensors():
    config = CLIPConfig(vocab_size=50, width=8, layers=2, heads=2, mlp=16, projection_dim=6)
    state = CLIPTextModel(config).state_dict()
    made = keymap.to_openclip(state)
    fused = {name: take.apply(torch.cat([state[item] for item in take.names])) for name, take in made.items()}
    assert fused["text_projection"].shape == (8, 6)
    assert fused["transformer.resblocks.1.attn.in_proj_weight"].shape == (24, 8)
    assert {
        name: take.shape([tuple(state[item].shape) for item in take.names]) for name, take in made.items()
    } == {name: tuple(tensor.shape) for name, tensor in fused.items()}
    back = {}
    for name, tensor in fused.items():
        for native, take in keymap.from_openclip(name).items():
            assert take.shape([tuple(tensor.shape)]) == tuple(take.apply(tensor).shape)
            back[native] = take.apply(tensor)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_a_projection_that_was_turned_already_is_not_turned_again():
    assert keymap.from_openclip("text_projection")["text_projection.weight"].transpose
    assert not keymap.from_openclip("text_projection.weight")["text_projection.weight"].transpose
    assert keymap.from_openclip("transformer.resblocks.0.attn.surprise") == {}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=2),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([None, 2, 4]),
)
def test_what_a_take_says_of_shapes_is_what_it_does(shape, transpose, blocks, rank):
    tensor = torch.arange(blocks * shape[0] * shape[1]).reshape(blocks * shape[0], shape[1])
    for k in range(blocks):
        take = Take(("x",), rows=(k, blocks), transpose=transpose, rank=rank)
        assert tuple(take.apply(tensor).shape) == take.shape([tuple(tensor.shape)])


def test_numberings_without_gaps_are_left_alone():
    for name in FAMILIES:
        keys = names_of(UNet, FAMILIES[name].unet)
        assert keymap.contiguous(keys) == {key: key for key in keys}


@pytest.mark.parametrize(
    "name", ["betas", "posterior_mean_coef1", "a.b.position_ids", "model_ema.decay", "v_pred"]
)
def test_junk_is_known(name):
    assert keymap.ignored(name) and not keymap.ignored("model." + name + ".x")
