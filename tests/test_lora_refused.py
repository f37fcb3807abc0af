"""Adapters that are refused or only partly of use: another family, limits, damage; each named."""

import json
import math
from pathlib import Path

import pytest
import torch
from lora_cases import DOWN, STEM, STEM_CONV, UP, Model, a, saved
from torch import Tensor

from ddgen.errors import ModelError
from ddgen.weights.lora import open_adapter


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
        == "LoRA 'l.safetensors': none of its 2 keys fit model 'small' (looks like SDXL); "
        "choose an SDXL model"
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
