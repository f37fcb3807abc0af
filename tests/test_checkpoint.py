"""Opening and loading checkpoints: every prefix, dialect and storage that files come in; what does not fit is
told in one line."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import FAMILY_NAMES, full_size, modules, small_arch, small_file, small_spec, sparse

from ddgen.errors import ModelError, NumericsError
from ddgen.nets.unet import UNet
from ddgen.weights import arch as archs
from ddgen.weights.arch import FAMILIES
from ddgen.weights.checkpoint import (
    check_finite,
    load_module,
    open_checkpoint,
    read_tensors,
    save_tensors,
    spec_metadata,
)
from ddgen.weights.infer import V_NORM, family_of


def loaded(path, part, module, dtype=torch.float32):
    """Load a part of a file into a module on `meta`; return its tensors."""
    load_module(module, open_checkpoint(path).part(part), dtype=dtype, name=part)
    return module.state_dict()


def on_meta(cls, config):
    with torch.device("meta"):
        return cls(config)


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_single_file_is_loaded_into_our_modules_exactly(name, tmp_path):
    arch, parts = small_file(tmp_path / "m.safetensors", name, seed=3)
    found = open_checkpoint(tmp_path / "m.safetensors")
    assert (found.layout, found.unknown, found.ignored) == ("ldm", (), ())
    assert set(found.parts) == set(parts)
    for part, module in parts.items():
        config = {"unet": arch.unet, "first_stage": arch.first_stage}.get(part) or module.config
        assert same(
            loaded(tmp_path / "m.safetensors", part, on_meta(type(module), config)), module.state_dict()
        )


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_architecture_is_read_from_shapes(name, tmp_path):
    arch, _ = small_file(tmp_path / "m.safetensors", name)
    found = open_checkpoint(tmp_path / "m.safetensors").arch
    # Head counts are not in the shapes, these small networks have unusual ones.
    assert replace(found.unet, heads=arch.unet.heads) == arch.unet
    assert replace(found.first_stage, scale_factor=1.0, force_upcast=False) == replace(
        arch.first_stage, scale_factor=1.0, force_upcast=False
    )
    for tower, expected in zip(found.text, arch.text, strict=True):
        assert tower.config.width == expected.config.width and tower.config.layers == expected.config.layers
        assert (tower.prefix, tower.layout) == (expected.prefix, expected.layout)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "PLAYGROUND"])
def test_a_full_size_file_of_every_family_is_recognised(name, tmp_path):
    sparse(tmp_path / "m.safetensors", full_size(name))
    found = open_checkpoint(tmp_path / "m.safetensors")
    assert found.arch == FAMILIES[name] and found.unknown == ()


def test_a_unet_alone_is_recognised_under_every_prefix(tmp_path):
    shapes = {
        key.removeprefix("model.diffusion_model."): shape
        for key, shape in full_size("TINY_SD").items()
        if key.startswith("model.diffusion_model.")
    }
    for prefix in ("", "diffusion_model.", "unet.", "model.diffusion_model."):
        sparse(tmp_path / "m.safetensors", {prefix + key: shape for key, shape in shapes.items()})
        found = open_checkpoint(tmp_path / "m.safetensors")
        assert found.arch == archs.TINY_SD and set(found.parts) == {"unet"}


def test_marker_keys_tell_what_shapes_cannot(tmp_path):
    shapes = full_size("SDXL")
    path = tmp_path / "m.safetensors"
    sparse(path, shapes | {"v_pred": (0,), "ztsnr": (0,)})
    assert open_checkpoint(path).said == {
        "prediction": "v",
        "schedule": {
            "kind": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "zero_terminal_snr": True,
        },
    }
    sparse(path, shapes | {"v_pred": (0,)})
    assert "zero_terminal_snr" not in open_checkpoint(path).said["schedule"]
    sparse(path, shapes | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)})
    assert (
        open_checkpoint(path).arch == archs.PLAYGROUND and open_checkpoint(path).said["prediction"] == "edm"
    )
    sparse(path, shapes, {"modelspec.prediction_type": "v"})
    assert open_checkpoint(path).said == {"prediction": "v"}
    sparse(path, shapes)
    assert open_checkpoint(path).said == {}


@pytest.mark.parametrize(("spread", "prediction"), [(0.2, "v"), (0.03, "eps")])
def test_version_2_tells_its_prediction_by_the_spread_of_one_norm(spread, prediction, tmp_path):
    path = tmp_path / "m.safetensors"
    sparse(path, full_size("SD21"))
    info = open_checkpoint(path).part("unet")[V_NORM].header.tensors["model.diffusion_model." + V_NORM]
    values = torch.linspace(-1, 1, info.count)
    with open(path, "r+b") as file:
        file.seek(info.start)
        file.write((values * spread / values.std()).half().numpy().tobytes())
    assert open_checkpoint(path).said == {"prediction": prediction}


def rewritten(tmp_path, name, change):
    """A small file whose tensors `change` has renamed or added to; and our modules."""
    arch, parts = small_file(tmp_path / "one.safetensors", name)
    save_file(change(load_file(tmp_path / "one.safetensors")), tmp_path / "two.safetensors")
    return tmp_path / "two.safetensors", arch, parts


def test_the_text_tower_without_its_inner_name(tmp_path):
    path, arch, parts = rewritten(
        tmp_path,
        "SD15",
        lambda state: {key.replace(".text_model.", "."): value for key, value in state.items()},
    )
    tower = parts["text.0"]
    assert same(loaded(path, "text.0", on_meta(type(tower), tower.config)), tower.state_dict())


def test_known_junk_is_ignored_and_the_unknown_is_named(tmp_path):
    junk = ("betas", "alphas_cumprod_prev", "model_ema.decay", "cond_stage_model.logit_scale")
    position = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    path, _, _ = rewritten(
        tmp_path, "SD15", lambda state: state | {key: torch.ones(3) for key in (*junk, position, "surprise")}
    )
    found = open_checkpoint(path)
    assert found.ignored == tuple(sorted((*junk, position))) and found.unknown == ("surprise",)


def test_the_averaged_unet_is_kept_apart(tmp_path):
    def with_average(state):
        flat = {
            "model_ema." + "".join(key.split(".")[1:]): value + 1
            for key, value in state.items()
            if key.startswith("model.diffusion_model.")
        }
        assert "model_ema.diffusion_modelinput_blocks00weight" in flat
        return state | flat

    path, _, parts = rewritten(tmp_path, "TINY_SD", with_average)
    found = open_checkpoint(path)
    assert found.unknown == () and found.ema.keys() == found.parts["unet"].keys()
    plain = parts["unet"].state_dict()
    assert all(torch.equal(tensor, plain[name].float() + 1) for name, tensor in read_tensors(found.ema))


def with_gaps(state):
    """The numbering of files that diffusers' export script writes for one ResBlock a level: a stride of 3."""
    renamed = {}
    for key, value in state.items():
        pieces = key.split(".")
        if key.startswith("model.diffusion_model.input_blocks.") and pieces[3] != "0":
            level, j = divmod(int(pieces[3]) - 1, 2)
            pieces[3] = str(3 * level + (1 if j == 0 else 3))
        if key.startswith("model.diffusion_model.output_blocks."):
            level, j = divmod(int(pieces[3]), 2)
            pieces[3] = str(3 * level + j)
            if pieces[5] == "conv":
                pieces[3], pieces[4] = str(3 * level + 2), "1" if level == 0 else "2"
        renamed[".".join(pieces)] = value
    return renamed


@pytest.mark.parametrize("name", ["TINY_SD", "SMALL_SD"])
def test_both_numberings_of_single_block_files(name, tmp_path):
    path, arch, parts = rewritten(tmp_path, name, with_gaps)
    keys = load_file(path).keys()
    assert "model.diffusion_model.input_blocks.3.0.op.weight" in keys
    assert not any(key.startswith("model.diffusion_model.input_blocks.2.") for key in keys)
    assert same(loaded(path, "unet", on_meta(UNet, arch.unet)), parts["unet"].state_dict())


def test_an_autoencoder_alone_in_both_layouts_and_with_old_names(tmp_path):
    arch, parts = small_file(tmp_path / "one.safetensors", "SD15")
    vae = parts["first_stage"]
    expected = vae.state_dict()
    save_file(expected, tmp_path / "ldm.safetensors")
    diffusers = pytest.importorskip("diffusers")
    widths = [32, 64]
    theirs = diffusers.AutoencoderKL(
        block_out_channels=widths, layers_per_block=1, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=32,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "vae")
    new = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    old_names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    old = {}
    for key, value in new.items():
        for modern, former in old_names:
            key = key.replace(f"attentions.0.{modern}.", f"attentions.0.{former}.")
        old[key] = value
    save_file(old, tmp_path / "old.safetensors")
    assert same(
        loaded(tmp_path / "ldm.safetensors", "first_stage", on_meta(type(vae), arch.first_stage)), expected
    )
    from_new = loaded(
        tmp_path / "vae" / "diffusion_pytorch_model.safetensors",
        "first_stage",
        on_meta(type(vae), arch.first_stage),
    )
    assert same(
        loaded(tmp_path / "old.safetensors", "first_stage", on_meta(type(vae), arch.first_stage)), from_new
    )
    theirs_q = new["decoder.mid_block.attentions.0.to_q.weight"]
    assert torch.equal(from_new["decoder.mid.attn_1.q.weight"], theirs_q[:, :, None, None])


def test_the_tiny_autoencoder_in_diffusers_layout(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from ddgen.nets.config import TinyConfig
    from ddgen.nets.taesd import TinyAutoencoder

    diffusers.AutoencoderTiny().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    found = loaded(path, "first_stage", on_meta(TinyAutoencoder, TinyConfig()))
    stored = load_file(path)
    assert torch.equal(found["decoder.1.weight"], stored["decoder.layers.0.weight"])
    assert torch.equal(found["encoder.0.weight"], stored["encoder.layers.0.weight"])


def test_a_linear_stored_as_a_convolution_is_loaded(tmp_path):
    def as_convolution(state):
        return {
            key: value[:, :, None, None] if "proj_in.weight" in key else value for key, value in state.items()
        }

    path, arch, parts = rewritten(tmp_path, "SDXL", as_convolution)
    assert same(loaded(path, "unet", on_meta(UNet, arch.unet)), parts["unet"].state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_storage_is_converted_to_the_compute_dtype(dtype, tmp_path):
    arch, parts = small_file(tmp_path / "m.safetensors", "TINY_SD", dtype=dtype)
    found = loaded(tmp_path / "m.safetensors", "unet", on_meta(UNet, arch.unet))
    expected = parts["unet"].state_dict()
    assert all(torch.equal(found[name], expected[name].to(dtype).float()) for name in expected)


def test_scaled_fp8_is_multiplied_out(tmp_path):
    key = "model.diffusion_model.input_blocks.1.0.in_layers.2"

    def scaled(state):
        state[key + ".weight"] = (state[key + ".weight"] * 4).to(torch.float8_e4m3fn)
        return state | {key + ".scale_weight": torch.tensor(0.25), "scaled_fp8": torch.zeros(2)}

    path, arch, parts = rewritten(tmp_path, "TINY_SD", scaled)
    found = loaded(path, "unet", on_meta(UNet, arch.unet))
    name = "input_blocks.1.0.in_layers.2.weight"
    expected = (parts["unet"].state_dict()[name] * 4).to(torch.float8_e4m3fn).float() / 4
    assert torch.equal(found[name], expected)
    assert open_checkpoint(path).unknown == ()


def test_loading_changes_neither_file_nor_memory_twice(tmp_path):
    arch, _ = small_file(tmp_path / "m.safetensors", "SD15")
    before = (tmp_path / "m.safetensors").read_bytes()
    module = on_meta(UNet, arch.unet)
    load_module(module, open_checkpoint(tmp_path / "m.safetensors").part("unet"), dtype=torch.float32)
    with torch.no_grad():
        for parameter in module.parameters():
            assert not parameter.requires_grad and parameter.is_contiguous()
            parameter.zero_()
    assert not module.training
    assert (tmp_path / "m.safetensors").read_bytes() == before


REPORTS = {
    "another family": (
        lambda state: state,
        "SD15_INPAINT",
        "unet: 'input_blocks.0.0.weight' is 32x4x3x3, expected 32x9x3x3; 1 of 684 tensors differ",
    ),
    "missing": (
        lambda state: {key: value for key, value in state.items() if not key.endswith("out.2.bias")},
        "SD15",
        "unet: 'out.2.bias' is missing; 1 of 684 tensors differ",
    ),
    "left over": (
        lambda state: state | {"model.diffusion_model.out.3.bias": torch.ones(2)},
        "SD15",
        "unet: 'out.3.bias' is not expected; 1 of 684 tensors differ",
    ),
    "many": (
        lambda state: {key: value for key, value in state.items() if ".emb_layers.1.bias" not in key},
        "SD15",
        "(+19 more); 22 of 684 tensors differ",
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_what_does_not_fit_is_reported_in_one_line(name, tmp_path):
    change, family, words = REPORTS[name]
    path, _, _ = rewritten(tmp_path, "SD15", change)
    with pytest.raises(ModelError) as caught:
        loaded(path, "unet", on_meta(UNet, small_arch(family).unet))
    text = caught.value.message
    assert text.startswith("model 'two.safetensors': ") and words in text, text
    assert caught.value.id == "model.unfit"


@pytest.mark.parametrize("cut", [193, 191, None])
def test_fused_rows_that_three_does_not_divide_are_refused(cut, tmp_path):
    """Cut or lengthened by a row, q, k and v would be read from the wrong places, and fit."""
    small_file(tmp_path / "m.safetensors", "SD21")
    state = load_file(tmp_path / "m.safetensors")
    (name,) = (name for name in state if name.endswith("resblocks.1.attn.in_proj_weight"))
    rows = torch.cat([state[name], state[name]])
    assert state[name].shape == (192, 64)
    state[name] = torch.tensor(0.5) if cut is None else rows[:cut].clone()
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path / "m.safetensors")
    said = "no sides" if cut is None else f"{cut}x64"
    assert caught.value.message == f"model 'm.safetensors' is damaged: '{name}' ({said}) has no 3 equal parts"


def test_the_likely_family_is_named(tmp_path):
    sparse(tmp_path / "m.safetensors", full_size("SD15_INPAINT"))
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path / "m.safetensors", "unet", on_meta(UNet, archs.SD15.unet))
    assert caught.value.message == (
        "model 'm.safetensors': unet: 'input_blocks.0.0.weight' is 320x9x3x3, expected 320x4x3x3; "
        "1 of 686 tensors differ (it looks like SD15_INPAINT)"
    )
    assert family_of(archs.SD15_INPAINT.unet) == archs.SD15_INPAINT


def test_a_missing_part_is_named(tmp_path):
    save_file(modules(small_arch("SD15"))["unet"].state_dict(), tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match=r"model 'unet.safetensors' holds no first_stage \(it holds unet\)"):
        open_checkpoint(tmp_path / "unet.safetensors").part("first_stage")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "is a LoRA adapter"),
        ("emb_params", "is a textual inversion"),
        ("control_model.input_hint_block.0.weight", "is a ControlNet"),
        ("image_proj.proj.weight", "is an IP-Adapter"),
        ("adapter.body.0.weight", "is a T2I-Adapter"),
        ("language_model.weight", "holds nothing that ddgen knows (first tensor: 'language_model.weight')"),
    ],
)
def test_what_is_no_model_is_told_by_name(key, words, tmp_path):
    save_file({key: torch.ones(2, 2)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path / "m.safetensors")
    assert words in caught.value.message


def test_non_finite_weights_are_found(tmp_path):
    def poisoned(state):
        state["model.diffusion_model.out.2.bias"][1] = float("nan")
        return state

    path, _, _ = rewritten(tmp_path, "SD15", poisoned)
    with pytest.raises(NumericsError) as caught:
        check_finite(open_checkpoint(path).part("unet"), "unet")
    assert (
        caught.value.message == "model 'two.safetensors': unet tensor 'out.2.bias' holds 1 non-finite values"
    )


def test_equal_tensors_give_equal_bytes_and_the_formats_own_reader_reads_them(tmp_path):
    tensors = {"b": torch.randn(3, 2), "a": torch.arange(4).half(), "c": torch.randn(2, 3).bfloat16().T}
    size = save_tensors(tmp_path / "one.safetensors", tensors, {"x": "1", "a": "2"})
    save_tensors(tmp_path / "two.safetensors", dict(reversed(tensors.items())), {"a": "2", "x": "1"})
    assert size == os.path.getsize(tmp_path / "one.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert same(load_file(tmp_path / "one.safetensors"), tensors)


def test_a_file_carries_its_spec(tmp_path):
    spec = replace(
        small_spec("SDXL"),
        zero_negative=True,
        distilled=True,
        sigma_data=0.5,
        x0_clamp={"kind": "static", "min": -1.0},
    )
    save_tensors(tmp_path / "m.safetensors", modules(spec.arch)["unet"].state_dict(), spec_metadata(spec))
    found = open_checkpoint(tmp_path / "m.safetensors")
    assert replace(found.own, source=spec.source) == spec and found.arch == spec.arch
