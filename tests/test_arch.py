"""Architectures: full-size families on `meta` have the published numbers of parameters and tensors;
strangers' JSON is held to limits."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddgen.errors import ModelError
from ddgen.nets.config import KLConfig, PatchConfig, TinyConfig, UNetConfig
from ddgen.nets.taesd import TinyAutoencoder
from ddgen.nets.unet import UNet
from ddgen.nets.vae import AutoencoderKL
from ddgen.text.clip import CLIPTextModel
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights import arch
from ddgen.weights.arch import FAMILIES, Arch, arch_from_json, arch_to_json
from ddgen.weights.infer import first_stage_config, tower_spec, unet_config


def meta(cls, config):
    with torch.device("meta"):
        return cls(config)


def counts(module):
    state = module.state_dict()
    return sum(tensor.numel() for tensor in state.values()), len(state)


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


UNETS = {
    "SD15": (859_520_964, 686),
    "SD15_INPAINT": (859_535_364, 686),
    "IP2P": (859_532_484, 686),
    "SD21": (865_910_724, 686),
    "SD2_INPAINT": (865_925_124, 686),
    "SDXL": (2_567_463_684, 1680),
    "SDXL_INPAINT": (2_567_478_084, 1680),
    "REFINER": (2_259_526_660, 1220),
    "SSD1B": (1_331_334_404, 944),
    "VEGA": (745_225_604, 564),
    "SMALL_SD": (579_384_964, 442),
    "TINY_SD": (323_384_964, 358),
}


@pytest.mark.parametrize("name", UNETS)
def test_unets_have_the_published_counts_and_are_recognised_from_shapes(name):
    config = FAMILIES[name].unet
    network = meta(UNet, config)
    assert counts(network) == UNETS[name]
    assert unet_config(shapes(network)) == config


@pytest.mark.parametrize("name", ["SD15_LCM", "SDXL_LCM"])
def test_guidance_distilled_unets_have_one_tensor_more(name):
    base = FAMILIES[name.removesuffix("_LCM")].unet
    network = meta(UNet, FAMILIES[name].unet)
    parameters, tensors = UNETS[name.removesuffix("_LCM")]
    assert counts(network) == (parameters + 256 * base.model_channels, tensors + 1)
    assert unet_config(shapes(network)) == FAMILIES[name].unet


def test_the_autoencoder_has_the_published_counts():
    network = meta(AutoencoderKL, KLConfig())
    assert counts(network) == (83_653_863, 248)
    assert first_stage_config(shapes(network)) == KLConfig()


def test_the_tiny_autoencoder_has_the_published_counts():
    network = meta(TinyAutoencoder, TinyConfig())
    assert counts(network) == (2_445_063, 134)
    assert first_stage_config(shapes(network)) == TinyConfig()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (arch.CLIP_L, (123_060_480, 196)),
        (replace(arch.CLIP_H, layers=23, projection_dim=None), (340_387_840, 372)),
        (arch.CLIP_BIGG, (694_659_840, 517)),
    ],
    ids=["L", "H as transformers stores it", "bigG"],
)
def test_text_towers_have_the_published_counts(config, expected):
    assert counts(meta(CLIPTextModel, config)) == expected


@pytest.mark.parametrize(
    "tower", [*arch.SD15.text, *arch.SD21.text, *arch.SDXL.text], ids=["sd1", "sd2", "xl0", "xl1"]
)
def test_text_towers_are_recognised_from_shapes(tower):
    found = tower_spec(shapes(meta(CLIPTextModel, tower.config)), tower.prefix, tower.layout, (tower,))
    assert found == tower


def test_a_single_file_of_each_family_has_the_published_size():
    def size(family, element):
        parts = [
            meta(UNet, family.unet),
            meta(AutoencoderKL, family.first_stage),
            *(meta(CLIPTextModel, t.config) for t in family.text),
        ]
        return sum(counts(part)[0] for part in parts) * element / 1e9

    assert size(arch.SD15, 4) == pytest.approx(4.265, abs=0.001)
    assert size(arch.SD21, 4) == pytest.approx(5.214, abs=0.001)
    assert size(arch.SDXL, 2) == pytest.approx(6.938, abs=0.001)
    assert size(arch.REFINER, 2) == pytest.approx(6.075, abs=0.001)
    assert size(arch.VEGA, 2) == pytest.approx(3.293, abs=0.001)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_survive_json(name):
    assert arch_from_json(json.loads(json.dumps(arch_to_json(FAMILIES[name])))) == FAMILIES[name]


SMALL = Arch(
    "small",
    UNetConfig(
        in_channels=12,
        out_channels=12,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        down_depth=((0,), (1,)),
        up_depth=((0, 0), (1, 2)),
        heads=(2, 4),
        context_dim=64,
        vector_dim=48,
        position_channels=16,
    ),
    PatchConfig(factor=2),
    (TowerSpec(CLIPConfig(width=64, layers=2, heads=2, mlp=128, projection_dim=48), pooled=True),),
)


def test_an_own_architecture_survives_json():
    assert arch_from_json(json.loads(json.dumps(arch_to_json(SMALL)))) == SMALL


def changed(path, value):
    data = json.loads(json.dumps(arch_to_json(SMALL)))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("unet", "heads"), [2], "differ in length"),
        (("unet", "heads"), [2, 5], "heads that do not divide"),
        (("unet", "heads"), [0, 4], "heads that do not divide"),
        (("unet", "model_channels"), 33, "multiple of 32"),
        (("unet", "model_channels"), 10**9, "unet.model_channels"),
        (("unet", "model_channels"), True, "unet.model_channels"),
        (("unet", "channel_mult"), [1] * 17, "unet.channel_mult"),
        (("unet", "down_depth"), [[0], [65]], "depth outside"),
        (("unet", "down_depth"), [[0, 0], [1, 1]], "num_res_blocks entries"),
        (("unet", "up_depth"), [[0], [1]], "num_res_blocks + 1"),
        (("unet", "position_channels"), 5, "impossible channels"),
        (("unet", "colour"), 5, "unknown field 'colour'"),
        (("unet",), KeyError, "lacks 'unet'"),
        (("name",), 7, "arch.name"),
        (("first_stage", "kind"), "magic", "no known kind"),
        (("first_stage", "factor"), 65, "impossible size"),
        (("first_stage",), "kl", "no known kind"),
        (("text",), 3, "arch.text"),
        (("text", 0, "config", "layers"), 129, "impossible layers"),
        (("text", 0, "config", "activation"), "relu", "unknown activation"),
        (("text", 0, "layer"), -4, "impossible layer"),
        (("unet", "vector_dim"), -1, "unet.vector_dim"),
        (("text", 0, "config", "projection_dim"), 0, "impossible size"),
        (("text", 0, "pad_id"), 49_408, "padding id"),
    ],
)
def test_an_impossible_architecture_is_refused(path, value, words):
    with pytest.raises(ModelError) as caught:
        arch_from_json(changed(path, value))
    assert words in caught.value.message and caught.value.id == "model.arch"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    ("unet",),
    ("first_stage",),
    ("text",),
    ("vector_ids",),
    *(("unet", key) for key in arch_to_json(SMALL)["unet"]),
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([*PATHS, ("text", 0), ("text", 0, "config"), ("text", 0, "config", "width")]), JSON)
def test_any_json_gives_an_architecture_that_can_be_built_or_a_clean_error(path, value):
    try:
        found = arch_from_json(changed(path, value))
    except ModelError:
        return
    meta(UNet, found.unet)
    for tower in found.text:
        meta(CLIPTextModel, tower.config)
