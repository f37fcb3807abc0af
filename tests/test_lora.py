"""Every dialect of LoRA against the written formula, and against peft and diffusers, in float64; and proof
that each comparison can fail.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import diffusers
import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from referees import draw, redraw, unet_places, unet_state
from safetensors.torch import save_file
from torch import Tensor, nn

from ddgen.errors import ModelError
from ddgen.nets.config import UNetConfig
from ddgen.nets.unet import UNet
from ddgen.text.clip import CLIPTextModel
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights import lora_maths, lora_names
from ddgen.weights.arch import Arch
from ddgen.weights.lora import Adapted, open_adapter

SD1 = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    heads=(2, 2),
    context_dim=24,
    down_depth=((1,), (1,)),
    up_depth=((1, 1), (1, 1)),
)
SDXL = replace(
    SD1,
    context_dim=40,
    linear_projection=True,
    vector_dim=20 + 6 * 8,
    down_depth=((0,), (2,)),
    up_depth=((0, 0), (2, 2)),
    mid_depth=2,
)
CLIP = CLIPConfig(vocab_size=60, width=24, layers=2, heads=2, mlp=48)
BIG = CLIPConfig(vocab_size=60, width=32, layers=2, heads=2, mlp=64, activation="gelu", projection_dim=20)
ARCH1 = Arch("SD15", SD1, text=(TowerSpec(CLIP),))
ARCHXL = Arch("SDXL", SDXL, text=(TowerSpec(CLIP), TowerSpec(BIG, pooled=True)))
CLOSE = 1e-9
Q = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
CONV = "input_blocks.1.0.in_layers.2"
ENTRY = "input_blocks.0.0"


class Model:
    """A small model with random weights: its modules, a copy of them, and the adapters on it."""

    def __init__(self, arch: Arch = ARCH1, dtype: torch.dtype = torch.float64) -> None:
        self.arch = arch
        self.modules: dict[str, nn.Module] = {"unet": redraw(UNet(arch.unet).to(dtype), 1)}
        for i, spec in enumerate(arch.text):
            self.modules[f"text.{i}"] = redraw(CLIPTextModel(spec.config).to(dtype), 2 + i)
        self.before = {
            part: {n: p.detach().clone() for n, p in m.named_parameters()} for part, m in self.modules.items()
        }
        self.adapted = Adapted(self.modules, arch, lambda part, name: self.before[part][name], "small")

    def put(self, *files: tuple[Path, float]) -> list[str]:
        return self.adapted.set([(open_adapter(path), weight) for path, weight in files])

    def changes(self) -> dict[str, Tensor]:
        """Return what differs from the model's file, as part:name -> difference."""
        found = {}
        for part, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if not torch.equal(parameter, self.before[part][name]):
                    found[f"{part}:{name}"] = parameter.detach() - self.before[part][name]
        return found


def saved(
    tmp_path: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    name: str = "l.safetensors",
) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name, metadata)
    return tmp_path / name


def weight_of(model: Model, module: str, part: str = "unet") -> Tensor:
    return model.before[part][f"{module}.weight"]


def only(model: Model, key: str, expected: Tensor) -> None:
    """Assert that exactly one weight changed, and by this."""
    changes = model.changes()
    assert set(changes) == {key}
    assert expected.abs().max() > 1e-3
    assert (changes[key] - expected.reshape(changes[key].shape)).abs().max() < CLOSE


UP, DOWN, ALPHA = draw(32, 4, seed=11), draw(4, 32, seed=12), torch.tensor(2.0)
PLAIN = 0.7 * (2.0 / 4) * (UP @ DOWN)

# (the key's stem, the ending of the factors, has alpha)
SPELLINGS = {
    "kohya diffusers paths": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        ".lora_down.weight",
        ".lora_up.weight",
    ),
    "kohya sgm paths": (
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        ".lora_down.weight",
        ".lora_up.weight",
    ),
    "old processors": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
        ".down.weight",
        ".up.weight",
    ),
    "bare processors": (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
        ".down.weight",
        ".up.weight",
    ),
    "diffusers .lora": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        ".lora.down.weight",
        ".lora.up.weight",
    ),
    "linear layer": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "peft": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        ".lora_A.weight",
        ".lora_B.weight",
    ),
    "raw peft": (
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        ".lora_A.default.weight",
        ".lora_B.default.weight",
    ),
    "raw peft, named": (
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        ".lora_A.my-style.weight",
        ".lora_B.my-style.weight",
    ),
    "comfy": (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        ".lora_A.weight",
        ".lora_B.weight",
    ),
    "comfy, kohya ends": (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        ".lora_down.weight",
        ".lora_up.weight",
    ),
    "lycoris": (
        "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        ".lora_down.weight",
        ".lora_up.weight",
    ),
}


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_means_the_same_weight(spelling: str, alpha: bool, tmp_path: Path) -> None:
    stem, down, up = SPELLINGS[spelling]
    tensors = {stem + down: DOWN, stem + up: UP} | ({f"{stem}.alpha": ALPHA} if alpha else {})
    model = Model()
    assert model.put((saved(tmp_path, tensors), 0.7)) == []
    only(model, f"unet:{Q}.weight", PLAIN if alpha else 2 * PLAIN)


TEXT_SPELLINGS = [
    (ARCH1, "lora_te_text_model_encoder_layers_1_self_attn_q_proj", "text.0"),
    (ARCH1, "text_encoder.text_model.encoder.layers.1.self_attn.q_proj", "text.0"),
    (ARCH1, "text_encoder.encoder.layers.1.self_attn.q_proj", "text.0"),
    (ARCH1, "base_model.model.text_model.encoder.layers.1.self_attn.q_proj", "text.0"),
    (ARCHXL, "lora_te1_text_model_encoder_layers_1_self_attn_q_proj", "text.0"),
    (ARCHXL, "text_encoder.text_model.encoder.layers.1.self_attn.q_proj", "text.0"),
    (ARCHXL, "text_encoders.clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj", "text.0"),
    (ARCHXL, "lora_te2_text_model_encoder_layers_1_self_attn_q_proj", "text.1"),
    (ARCHXL, "text_encoder_2.text_model.encoder.layers.1.self_attn.q_proj", "text.1"),
    (ARCHXL, "text_encoders.clip_g.transformer.text_model.encoder.layers.1.self_attn.q_proj", "text.1"),
]


@pytest.mark.parametrize(("arch", "stem", "part"), TEXT_SPELLINGS)
def test_text_towers(arch: Arch, stem: str, part: str, tmp_path: Path) -> None:
    width = 24 if part == "text.0" else 32
    up, down = draw(width, 3, seed=1), draw(3, width, seed=2)
    model = Model(arch)
    assert (
        model.put(
            (
                saved(
                    tmp_path,
                    {
                        f"{stem}.lora_down.weight": down,
                        f"{stem}.lora_up.weight": up,
                        f"{stem}.alpha": torch.tensor(6.0),
                    },
                ),
                -1.0,
            )
        )
        == []
    )
    only(model, f"{part}:encoder.layers.1.self_attn.q_proj.weight", -2.0 * up @ down)


def test_text_projection_and_mlp(tmp_path: Path) -> None:
    model = Model(ARCHXL)
    stems = {"lora_te2_text_projection": (20, 32), "lora_te1_text_model_encoder_layers_0_mlp_fc1": (48, 24)}
    tensors = {}
    for stem, (out, inner) in stems.items():
        tensors |= {
            f"{stem}.lora_down.weight": draw(2, inner, seed=5),
            f"{stem}.lora_up.weight": draw(out, 2, seed=6),
        }
    assert model.put((saved(tmp_path, tensors), 1.0)) == []
    assert set(model.changes()) == {"text.1:text_projection.weight", "text.0:encoder.layers.0.mlp.fc1.weight"}


STEM = "lora_unet_" + Q.replace(".", "_")
STEM_CONV = "lora_unet_" + CONV.replace(".", "_")
STEM_ENTRY = "lora_unet_input_blocks_0_0"


def a(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=100 + seed) / 3


def kron(one: Tensor, two: Tensor) -> Tensor:
    return torch.cat([torch.cat([value * two for value in row], dim=1) for row in one], dim=0)


def kinds() -> dict[str, tuple[dict[str, Tensor], Callable[[Tensor], Tensor], str]]:
    """Return of every kind the file's contents, W -> W' by the formula with a weight of 0.7, and the module."""
    m = 0.7
    out: dict[str, tuple[dict[str, Tensor], Callable[[Tensor], Tensor], str]] = {}
    up, down, mid = a(32, 4), a(4, 32, seed=1), a(4, 4, 3, 3, seed=2)
    conv_down, conv_up = a(4, 32, 3, 3, seed=3), a(32, 4, 1, 1, seed=4)
    by_hand = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    tucker = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            by_hand[:, :, y, x] = conv_up[:, :, 0, 0] @ conv_down[:, :, y, x]
            tucker[:, :, y, x] = up @ mid[:, :, y, x] @ down
    out["locon"] = (
        {"lora_down.weight": conv_down, "lora_up.weight": conv_up, "alpha": torch.tensor(1.0)},
        lambda w: w + m / 4 * by_hand,
        STEM_CONV,
    )
    out["locon mid"] = (
        {
            "lora_down.weight": down[:, :, None, None],
            "lora_up.weight": up[:, :, None, None],
            "lora_mid.weight": mid,
        },
        lambda w: w + m * tucker,
        STEM_CONV,
    )
    out["squeezed"] = (
        {
            "lora_down.weight": down[:, :, None, None],
            "lora_up.weight": up[:, :, None, None],
            "alpha": torch.tensor(8.0),
        },
        lambda w: w + m * 2 * up @ down,
        STEM,
    )
    w1a, w1b, w2a, w2b = a(32, 4, seed=5), a(4, 32, seed=6), a(32, 4, seed=7), a(4, 32, seed=8)
    hada = {
        "hada_w1_a": w1a,
        "hada_w1_b": w1b,
        "hada_w2_a": w2a,
        "hada_w2_b": w2b,
        "alpha": torch.tensor(2.0),
    }
    out["loha"] = (hada, lambda w: w + m * 0.5 * (w1a @ w1b) * (w2a @ w2b), STEM)
    flat = {"hada_w1_b": a(4, 288, seed=9), "hada_w2_b": a(4, 288, seed=10)}
    out["loha conv"] = (
        hada | flat,
        lambda w: w + m * 0.5 * ((w1a @ flat["hada_w1_b"]) * (w2a @ flat["hada_w2_b"])).reshape(32, 32, 3, 3),
        STEM_CONV,
    )
    t1, t2 = a(4, 4, 3, 3, seed=11), a(4, 4, 3, 3, seed=12)
    both = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            both[:, :, y, x] = (w1a @ t1[:, :, y, x] @ w1b) * (w2a @ t2[:, :, y, x] @ w2b)
    out["loha tucker"] = (
        hada | {"hada_w1_a": w1a.mT, "hada_w2_a": w2a.mT, "hada_t1": t1, "hada_t2": t2},
        lambda w: w + m * 0.5 * both,
        STEM_CONV,
    )
    one, two = a(4, 8, seed=13), a(8, 4, seed=14)
    out["lokr full"] = (
        {"lokr_w1": one, "lokr_w2": two, "alpha": torch.tensor(3.0)},
        lambda w: w + m * kron(one, two),
        STEM,
    )
    k2a, k2b, k1a, k1b = a(8, 2, seed=15), a(2, 4, seed=16), a(4, 2, seed=17), a(2, 8, seed=18)
    out["lokr w2 factored"] = (
        {"lokr_w1": one, "lokr_w2_a": k2a, "lokr_w2_b": k2b, "alpha": torch.tensor(3.0)},
        lambda w: w + m * 1.5 * kron(one, k2a @ k2b),
        STEM,
    )
    out["lokr both factored"] = (
        {"lokr_w1_a": k1a, "lokr_w1_b": k1b, "lokr_w2_a": k2a, "lokr_w2_b": k2b, "alpha": torch.tensor(1.0)},
        lambda w: w + m * 0.5 * kron(k1a @ k1b, k2a @ k2b),
        STEM,
    )
    conv2 = a(8, 4, 3, 3, seed=19)
    whole = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    core = a(2, 2, 3, 3, seed=20)
    tucked = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            whole[:, :, y, x] = kron(one, conv2[:, :, y, x])
            tucked[:, :, y, x] = kron(one, k2a @ core[:, :, y, x] @ k2b)
    out["lokr conv"] = ({"lokr_w1": one, "lokr_w2": conv2}, lambda w: w + m * whole, STEM_CONV)
    out["lokr tucker"] = (
        {"lokr_w1": one, "lokr_w2_a": k2a.mT, "lokr_w2_b": k2b, "lokr_t2": core, "alpha": torch.tensor(2.0)},
        lambda w: w + m * tucked,
        STEM_CONV,
    )
    flat2 = a(2, 36, seed=21)
    spread = torch.stack(
        [kron(one, (k2a @ flat2).reshape(8, 4, 9)[:, :, i]) for i in range(9)], dim=-1
    ).reshape(32, 32, 3, 3)
    out["lokr conv factored"] = (
        {
            "lokr_w1": one,
            "lokr_w2_a": k2a,
            "lokr_w2_b": flat2.reshape(2, 4, 3, 3),
            "alpha": torch.tensor(2.0),
        },
        lambda w: w + m * spread,
        STEM_CONV,
    )
    out["full"] = ({"diff": a(32, 32, seed=22)}, lambda w: w + m * a(32, 32, seed=22), STEM)
    out["set"] = ({"set_weight": a(32, 32, seed=22)}, lambda w: 0.3 * w + m * a(32, 32, seed=22), STEM)
    out["scalar"] = (
        {"lora_down.weight": down, "lora_up.weight": up, "scalar": torch.tensor(0.25)},
        lambda w: w + m * 0.25 * up @ down,
        STEM,
    )
    ia3 = a(32, seed=23)
    out["ia3 in"] = ({"weight": ia3, "on_input": torch.tensor(True)}, lambda w: w * (1 + m * ia3), STEM)
    out["ia3 out"] = (
        {"weight": ia3, "on_input": torch.tensor(False)},
        lambda w: w * (1 + m * ia3[:, None]),
        STEM,
    )
    g = {"a1": a(4, 32, seed=24), "a2": a(32, 4, seed=25), "b1": a(4, 32, seed=26), "b2": a(32, 4, seed=27)}
    stored = {f"{key}.weight": value for key, value in g.items()} | {"alpha": torch.tensor(2.0)}
    out["glora old"] = (stored, lambda w: w + m * 0.5 * (g["b2"] @ g["b1"] + w @ g["a2"] @ g["a1"]), STEM)
    n = {"a1": a(32, 4, seed=24), "a2": a(4, 32, seed=25), "b1": a(32, 4, seed=26), "b2": a(4, 32, seed=27)}
    stored = {f"{key}.weight": value for key, value in n.items()} | {"alpha": torch.tensor(2.0)}
    out["glora new"] = (stored, lambda w: w + m * 0.5 * (n["b1"] @ n["b2"] + w @ n["a1"] @ n["a2"]), STEM)
    skew = a(4, 8, 8, seed=28)

    def rotate(w: Tensor, bound: float | None = None) -> Tensor:
        q = skew - skew.mT
        if bound is not None:
            q = q * min(1.0, bound * 32 / float(q.norm()))
        r = torch.linalg.solve(
            torch.eye(8, dtype=torch.float64) - q, torch.eye(8, dtype=torch.float64) + q
        )  # the factors commute
        turned = torch.cat([r[i].mT @ w[8 * i : 8 * i + 8].flatten(1) for i in range(4)]).reshape(w.shape)
        return w + m * (turned - w)

    out["oft"] = ({"oft_blocks": skew, "alpha": torch.tensor(0.0)}, rotate, STEM)
    out["coft"] = ({"oft_blocks": skew, "alpha": torch.tensor(0.001)}, lambda w: rotate(w, 0.001), STEM)
    out["oft conv"] = ({"oft_blocks": skew}, rotate, STEM_CONV)
    for name, (tensors, new, stem) in {
        key: out[key] for key in ("squeezed", "loha", "lokr both factored", "locon")
    }.items():
        rows, columns = a(32, seed=30).abs() + 1, a(32, seed=31).abs() + 1

        def dora(
            w: Tensor, new: Callable[[Tensor], Tensor] = new, axis: int = 0, scale: Tensor = rows
        ) -> Tensor:
            v = (new(w) - w) / m + w
            flat = v.transpose(0, axis).flatten(1)
            flat = scale[:, None] * flat / flat.norm(dim=1, keepdim=True)
            whole = flat.reshape(v.transpose(0, axis).shape).transpose(0, axis)
            return w + m * (whole - w)

        ones = (1,) * (2 if stem != STEM_CONV and name != "locon" else 4)
        out[f"dora rows, {name}"] = (tensors | {"dora_scale": rows.reshape(32, *ones[1:])}, dora, stem)
        out[f"dora columns, {name}"] = (
            tensors | {"dora_scale": columns.reshape(1, 32, *ones[2:])},
            lambda w, dora=dora, s=columns: dora(w, axis=1, scale=s),
            stem,
        )
    return out


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_formula(kind: str, tmp_path: Path) -> None:
    tensors, formula, stem = KINDS[kind]
    module = Q if stem == STEM else CONV
    model = Model()
    assert model.put((saved(tmp_path, {f"{stem}.{key}": value for key, value in tensors.items()}), 0.7)) == []
    weight = weight_of(model, module)
    only(model, f"unet:{module}.weight", formula(weight) - weight)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_changes_nothing_and_removal_is_exact(kind: str, tmp_path: Path) -> None:
    tensors, _, stem = KINDS[kind]
    path = saved(tmp_path, {f"{stem}.{key}": value for key, value in tensors.items()})
    model = Model(dtype=torch.float16)
    model.put((path, 0.0))
    assert model.changes() == {}
    model.put((path, 1.0))
    assert len(model.changes()) == 1
    model.adapted.clear()
    assert model.changes() == {}


def test_norms_and_biases(tmp_path: Path) -> None:
    norm = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1"
    tensors = {
        f"{norm}.w_norm": a(32),
        f"{norm}.b_norm": a(32, seed=1),
        f"{STEM_CONV}.diff": a(32, 32, 3, 3),
        f"{STEM_CONV}.diff_b": a(32),
    }
    model = Model()
    assert model.put((saved(tmp_path, tensors), 0.5)) == []
    changes = model.changes()
    place = "unet:input_blocks.1.1.transformer_blocks.0.norm1"
    expected = {
        f"{place}.weight": a(32),
        f"{place}.bias": a(32, seed=1),
        f"unet:{CONV}.weight": a(32, 32, 3, 3),
        f"unet:{CONV}.bias": a(32),
    }
    assert set(changes) == set(expected)
    assert all((changes[key] - 0.5 * expected[key]).abs().max() < CLOSE for key in expected)


def test_more_input_channels_than_the_adapter_knew(tmp_path: Path) -> None:
    model = Model(replace(ARCH1, unet=replace(SD1, in_channels=9)))
    path = saved(
        tmp_path,
        {
            f"{STEM_ENTRY}.lora_down.weight": a(4, 4, 3, 3),
            f"{STEM_ENTRY}.lora_up.weight": a(32, 4, 1, 1, seed=1),
        },
    )
    assert model.put((path, 1.0)) == []
    change = model.changes()[f"unet:{ENTRY}.weight"]
    product = (a(32, 4, seed=1) @ a(4, 4, 3, 3).flatten(1)).reshape(32, 4, 3, 3)
    assert (change[:, :4] - product).abs().max() < CLOSE and not change[:, 4:].any()


def test_several_at_once_in_any_order_and_one_taken_off(tmp_path: Path) -> None:
    first = saved(tmp_path, {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP})
    second = saved(
        tmp_path, {f"{STEM}.diff": a(32, 32), f"{STEM_CONV}.diff": a(32, 32, 3, 3)}, name="m.safetensors"
    )
    model = Model()
    model.put((first, 0.5), (second, 2.0))
    both = model.changes()
    assert (both[f"unet:{Q}.weight"] - (0.5 * UP @ DOWN + 2 * a(32, 32))).abs().max() < CLOSE
    model.put((second, 2.0), (first, 0.5))
    assert all((model.changes()[key] - both[key]).abs().max() < CLOSE for key in both)
    model.put((first, 0.5))
    only(model, f"unet:{Q}.weight", 0.5 * UP @ DOWN)
    model.adapted.clear()
    assert model.changes() == {}


# Referees


def their_unet(arch: Arch, network: nn.Module) -> UNet2DConditionModel:
    """Return diffusers' U-Net with the same weights."""
    config = arch.unet
    kinds = ["CrossAttn" if depth[-1] else "" for depth in config.down_depth]
    options: dict[str, object] = {
        "transformer_layers_per_block": [max(1, depth[-1]) for depth in config.down_depth]
    }
    if config.vector_dim:
        options |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": config.vector_dim,
        }
    theirs = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=config.context_dim,
        attention_head_dim=2,
        norm_num_groups=32,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        use_linear_projection=config.linear_projection,
        **options,
    ).double()
    theirs.load_state_dict(unet_state(network, config))
    return theirs


def compare(model: Model, theirs: nn.Module, at_least: int) -> float:
    """Return the largest difference between all our U-Net's weights and the referee's, which must have
    changed.
    """
    state = unet_state(model.modules["unet"], model.arch.unet)
    referee = theirs.state_dict()
    assert set(state) == set(referee)
    assert len(model.changes()) >= at_least
    return max((state[key] - referee[key]).abs().max().item() for key in state)


def randomise(module: nn.Module) -> None:
    """Draw every adapter tensor anew: they start at zero, which would hide a wrong formula."""
    for i, (name, parameter) in enumerate(sorted(module.named_parameters())):
        if any(word in name for word in ("lora_", "hada_", "lokr_", "oft_")):
            parameter.data = draw(*parameter.shape, seed=i) / 3 + (1.5 if "magnitude" in name else 0.0)


TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "time_emb_proj",
    "conv_shortcut",
]
PEFT_CONFIGS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS),
    "rank-stabilised": peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, use_rslora=True),
    "patterns": peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=TARGETS,
        rank_pattern={"to_k": 2},
        alpha_pattern={"to_q": 3, "conv1": 2},
    ),
    "dora": peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, use_dora=True),
    "loha": peft.LoHaConfig(r=4, alpha=6, target_modules=TARGETS),
    "loha tucker": peft.LoHaConfig(r=4, alpha=6, target_modules=TARGETS, use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(r=2, alpha=6, target_modules=TARGETS),
    "lokr tucker": peft.LoKrConfig(
        r=2, alpha=6, target_modules=TARGETS, use_effective_conv2d=True, decompose_both=True
    ),
}


@pytest.mark.parametrize("name", PEFT_CONFIGS)
@pytest.mark.parametrize("arch", [ARCH1, ARCHXL], ids=["sd1", "sdxl"])
def test_equals_pefts_merge(arch: Arch, name: str, tmp_path: Path) -> None:
    model = Model(arch)
    tuned = peft.get_peft_model(their_unet(arch, model.modules["unet"]), PEFT_CONFIGS[name])  # type: ignore[arg-type]
    randomise(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload()
    assert model.put((tmp_path / "adapter", 1.0)) == []
    assert compare(model, merged, at_least=20) < CLOSE


@pytest.mark.parametrize("arch", [ARCH1, ARCHXL], ids=["sd1", "sdxl"])
@pytest.mark.parametrize("metadata", [True, False])
def test_equals_what_diffusers_saves_and_fuses(arch: Arch, metadata: bool, tmp_path: Path) -> None:
    model = Model(arch)
    theirs = their_unet(arch, model.modules["unet"])
    theirs.add_adapter(peft.LoraConfig(r=4, lora_alpha=10 if metadata else 4, target_modules=TARGETS))
    randomise(theirs)
    mixin = StableDiffusionXLLoraLoaderMixin if arch is ARCHXL else StableDiffusionLoraLoaderMixin
    settings = {"unet_lora_adapter_metadata": theirs.peft_config["default"].to_dict()} if metadata else {}
    state = peft.get_peft_model_state_dict(theirs)
    mixin.save_lora_weights(tmp_path, unet_lora_layers=state, **settings)
    theirs.fuse_lora(lora_scale=0.8)
    theirs.unload_lora()
    assert model.put((tmp_path, 0.8)) == []
    assert compare(model, theirs, at_least=20) < CLOSE


def kohya(arch: Arch, *, sgm: bool) -> dict[str, Tensor]:
    """Return a kohya LoRA for all attention and convolution modules of a U-Net, named by either paths."""
    tensors = {}
    places = dict(unet_places(arch.unet))
    resnet = {
        "in_layers.2": "conv1",
        "out_layers.3": "conv2",
        "emb_layers.1": "time_emb_proj",
        "skip_connection": "conv_shortcut",
    }
    network = UNet(arch.unet)
    for i, (name, module) in enumerate(network.named_modules()):
        if not isinstance(module, nn.Linear | nn.Conv2d) or name.startswith(
            ("out.", "time_embed", "label_emb", "input_blocks.0.")
        ):
            continue
        prefix = max((p for p in places if name == p or name.startswith(p + ".")), key=len)
        rest = name.removeprefix(prefix).removeprefix(".")
        path = name if sgm else ".".join(filter(None, (places[prefix], resnet.get(rest, rest))))
        stem = "lora_unet_" + path.replace(".", "_")
        weight = module.weight
        tensors[f"{stem}.lora_down.weight"] = draw(4, *weight.shape[1:], seed=i) / 3
        tensors[f"{stem}.lora_up.weight"] = (
            draw(weight.shape[0], 4, *(1,) * (weight.ndim - 2), seed=1000 + i) / 3
        )
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    return tensors


@pytest.mark.parametrize(
    ("arch", "sgm"), [(ARCH1, False), (ARCHXL, False), (ARCHXL, True)], ids=["sd1", "sdxl", "sdxl sgm"]
)
def test_kohya_files_equal_what_diffusers_makes_of_them(arch: Arch, sgm: bool, tmp_path: Path) -> None:
    model = Model(arch)
    path = saved(tmp_path, kohya(arch, sgm=sgm))
    theirs = their_unet(arch, model.modules["unet"])
    mixin = StableDiffusionXLLoraLoaderMixin if arch is ARCHXL else StableDiffusionLoraLoaderMixin
    state, alphas = mixin.lora_state_dict(str(path), unet_config=theirs.config)[:2]
    mixin.load_lora_into_unet(state, alphas, theirs)
    theirs.fuse_lora(lora_scale=0.6)
    theirs.unload_lora()
    assert model.put((path, 0.6)) == []
    assert compare(model, theirs, at_least=20) < CLOSE


def test_the_comparison_with_diffusers_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, new: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(lora_maths, name, new)
            with pytest.raises(AssertionError):
                test_kohya_files_equal_what_diffusers_makes_of_them(ARCH1, False, tmp_path)

    scale, lora = lora_maths.scale_of, lora_maths._lora
    broken("scale_of", lambda roles, weight: 1.0)
    broken("scale_of", lambda roles, weight: scale(roles, weight) * (1 + 1e-6))
    broken(
        "_lora",
        lambda roles: (
            lora(roles).transpose(0, 1) if roles["down"].shape[1] == roles["up"].shape[0] else lora(roles)
        ),
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            lora_maths,
            "_along",
            lambda values, weight, axis: values.reshape(
                [-1 if d == 1 - axis else 1 for d in range(weight.ndim)]
            ),
        )
        with pytest.raises((AssertionError, RuntimeError)):
            test_every_kind_is_its_formula("dora rows, squeezed", tmp_path)


# What is refused


def refusal(model: Model, path: Path, weight: float = 1.0) -> ModelError:
    with pytest.raises(ModelError) as caught:
        model.put((path, weight))
    assert caught.value.exit_code == 5 and model.changes() == {}
    return caught.value


def lora(stem: str, rank: int = 4, inner: int = 32, out: int = 32) -> dict[str, Tensor]:
    return {
        f"{stem}.lora_down.weight": torch.zeros(rank, inner),
        f"{stem}.lora_up.weight": torch.zeros(out, rank),
    }


def test_another_family_is_named(tmp_path: Path) -> None:
    foreign = saved(
        tmp_path, lora("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", inner=2048, out=640)
    )
    found = refusal(Model(), foreign)
    assert (
        str(found)
        == "LoRA 'l.safetensors': none of its 2 keys fit model 'small' (looks like SDXL); choose an SDXL model"
    )
    towers = saved(tmp_path, lora("lora_te2_text_model_encoder_layers_31_mlp_fc1"))
    assert "(looks like SDXL)" in str(refusal(Model(), towers))
    narrow = saved(
        tmp_path, lora("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", inner=1024)
    )
    assert "changes a weight of 32x1024, the model has 32x24 (looks like SD 2.x)" in str(
        refusal(Model(), narrow)
    )


def test_an_unfit_second_adapter_takes_the_first_off_too(tmp_path: Path) -> None:
    good = saved(tmp_path, {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP})
    bad = saved(tmp_path, lora(STEM_CONV, inner=5), name="bad.safetensors")
    model = Model()
    with pytest.raises(ModelError):
        model.put((good, 1.0), (bad, 1.0))
    assert model.changes() == {}


def test_keys_that_fit_nothing_are_named(tmp_path: Path) -> None:
    tensors = (
        lora(STEM)
        | lora("lora_unet_no_such_module")
        | {
            "bundle_emb.cat.string_to_param.*": torch.zeros(3),
            f"{STEM_CONV}.lora_down.weight": torch.zeros(4, 32),
        }
    )
    (note,) = Model().put((saved(tmp_path, tensors), 1.0))
    assert note.startswith("LoRA 'l.safetensors': 3 of 4 entries fit nothing in model 'small'")
    assert all(name in note for name in ("lora_unet_no_such_module", "bundle_emb.cat", f"{STEM_CONV} (down)"))


def test_limits(tmp_path: Path) -> None:
    model = Model()
    assert "rank 4096 is over the limit of 1024; resize it to 1024 or less" in str(
        refusal(model, saved(tmp_path, lora(STEM, rank=4096)))
    )
    wild = saved(tmp_path, lora(STEM) | {f"{STEM}.alpha": torch.tensor(64.0)})
    assert "over the limit of 10" in str(refusal(model, wild))
    for value in (math.nan, math.inf):
        damaged = lora(STEM)
        damaged[f"{STEM}.lora_up.weight"][3, 1] = value
        assert "non-finite values (up)" in str(refusal(model, saved(tmp_path, damaged)))
    assert "holds no adapter" in str(refusal(model, saved(tmp_path, {"a.b": torch.zeros(2)})))
    twice = saved(tmp_path, lora("x") | {"x.lora_A.weight": torch.zeros(4, 32)})
    assert "twice" in str(refusal(model, twice))
    (tmp_path / "t.safetensors").write_bytes(b"<html>")
    assert "LoRA 't.safetensors' is a web page" in str(refusal(model, tmp_path / "t.safetensors"))


def test_factors_that_do_not_fit_each_other(tmp_path: Path) -> None:
    model = Model()
    for kind, tensors in {
        "lora": {"lora_down.weight": torch.zeros(4, 32), "lora_up.weight": torch.zeros(32, 5)},
        "loha": {"hada_w1_a": a(32, 4), "hada_w1_b": a(4, 32), "hada_w2_a": a(32, 4), "hada_w2_b": a(4, 31)},
        "lokr": {"lokr_w1": a(3, 3), "lokr_w2": a(5, 5)},
        "oft": {"oft_blocks": a(3, 8, 8)},
        "boft": {"oft_blocks": a(2, 4, 8, 8)},
        "dora": {"lora_down.weight": DOWN, "lora_up.weight": UP, "dora_scale": a(7, 1)},
        "diff": {"diff": a(16, 64)},
        "bias": {"diff": a(32, 32), "diff_b": a(32)},
    }.items():
        path = saved(tmp_path, {f"{STEM}.{key}": value for key, value in tensors.items()})
        found = str(refusal(model, path))
        assert "'l.safetensors'" in found and ("a bias that the model does not have" in found) == (
            kind == "bias"
        )


def test_settings_in_metadata_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not JSON"):
        open_adapter(saved(tmp_path, lora(STEM), {"lora_adapter_metadata": "{"}))
    endless = {"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+$": 3}}
    adapter = open_adapter(
        saved(tmp_path, lora("unet." + "a" * 60), {"lora_adapter_metadata": json.dumps(endless)})
    )
    assert float(adapter.groups["unet." + "a" * 60]["alpha"]) == 4


def test_no_two_modules_share_a_spelling() -> None:
    for arch in (ARCH1, ARCHXL):
        model = Model(arch)
        seen: dict[str, lora_names.Place] = {}
        for part, module in model.modules.items():
            own = [
                name
                for name, child in module.named_modules()
                if isinstance(getattr(child, "weight", None), Tensor)
            ]
            pairs = (
                lora_names.unet_spellings(own, arch.unet)
                if part == "unet"
                else lora_names.text_spellings(own, int(part[-1]), len(arch.text))
            )
            for spelling, place in pairs:
                assert seen.setdefault(spelling, place) == place
        assert len(seen) > 500
    assert diffusers.__version__  # the referee is there
