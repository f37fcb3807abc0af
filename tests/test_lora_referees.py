"""Adapters merged by us against peft's and diffusers' merges, in float64; proof that it can fail."""

from pathlib import Path

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from lora_cases import ARCH1, ARCHXL, CLOSE, Model, saved
from referees import Record, draw, unet_places, unet_state
from torch import Tensor, nn

from ddgen.nets.unet import UNet
from ddgen.weights import lora_maths
from ddgen.weights.arch import Arch


def their_unet(arch: Arch, network: nn.Module, ids: int = 8) -> UNet2DConditionModel:
    """Return diffusers' U-Net with the same weights."""
    config = arch.unet
    kinds = ["CrossAttn" if depth[-1] else "" for depth in config.down_depth]
    options: dict[str, object] = {
        "transformer_layers_per_block": [max(1, depth[-1]) for depth in config.down_depth]
    }
    if config.vector_dim:
        options |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": ids,
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
def test_equals_pefts_merge(arch: Arch, name: str, tmp_path: Path, record_property: Record) -> None:
    model = Model(arch)
    tuned = peft.get_peft_model(their_unet(arch, model.modules["unet"]), PEFT_CONFIGS[name])  # type: ignore[arg-type]
    randomise(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload()
    assert model.put((tmp_path / "adapter", 1.0)) == []
    found = compare(model, merged, at_least=20)
    record_property("adapter, against peft's merge", found)
    assert found < CLOSE


@pytest.mark.parametrize("arch", [ARCH1, ARCHXL], ids=["sd1", "sdxl"])
@pytest.mark.parametrize("metadata", [True, False])
def test_equals_what_diffusers_saves_and_fuses(
    arch: Arch, metadata: bool, tmp_path: Path, record_property: Record
) -> None:
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
    found = compare(model, theirs, at_least=20)
    record_property("adapter, against diffusers' fused LoRA", found)
    assert found < CLOSE


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
def test_kohya_files_equal_what_diffusers_makes_of_them(
    arch: Arch, sgm: bool, tmp_path: Path, record_property: Record
) -> None:
    model = Model(arch)
    path = saved(tmp_path, kohya(arch, sgm=sgm))
    theirs = their_unet(arch, model.modules["unet"])
    mixin = StableDiffusionXLLoraLoaderMixin if arch is ARCHXL else StableDiffusionLoraLoaderMixin
    state, alphas = mixin.lora_state_dict(str(path), unet_config=theirs.config)[:2]
    mixin.load_lora_into_unet(state, alphas, theirs)
    theirs.fuse_lora(lora_scale=0.6)
    theirs.unload_lora()
    assert model.put((path, 0.6)) == []
    found = compare(model, theirs, at_least=20)
    record_property("adapter, against diffusers' reading of kohya's", found)
    assert found < CLOSE


def test_the_comparison_with_diffusers_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unheard(name: str, value: object) -> None: ...

    def broken(name: str, new: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(lora_maths, name, new)
            with pytest.raises(AssertionError):
                test_kohya_files_equal_what_diffusers_makes_of_them(ARCH1, False, tmp_path, unheard)

    scale, lora = lora_maths.scale_of, lora_maths._lora
    broken("scale_of", lambda roles, weight: 1.0)
    broken("scale_of", lambda roles, weight: scale(roles, weight) * (1 + 1e-6))
    broken(
        "_lora",
        lambda roles: (
            lora(roles).transpose(0, 1) if roles["down"].shape[1] == roles["up"].shape[0] else lora(roles)
        ),
    )
