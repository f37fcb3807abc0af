"""Every spelling of an adapter's keys means the same weight, in the U-Net and in both text towers."""

from pathlib import Path

import pytest
import torch
from lora_cases import ALPHA, ARCH1, ARCHXL, DOWN, PLAIN, UP, Model, Q, only, saved
from referees import draw
from torch import Tensor

from ddgen.weights import lora_names
from ddgen.weights.arch import Arch

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
