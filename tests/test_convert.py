"""Between layouts: what we convert, diffusers and transformers load, and compute the same with; there and
back nothing changes."""

import json
from dataclasses import replace

import pytest
import torch
from referees import TOLERANCE, distance, draw
from safetensors.torch import load_file, save_file
from small import FAMILY_NAMES, PROJECTION, ldm_keys, modules, small_arch, small_file, small_spec
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ddgen.errors import ModelError
from ddgen.text.tokens import Tokenizer
from ddgen.weights import convert, export
from ddgen.weights.arch import FAMILIES
from ddgen.weights.checkpoint import load_module, open_checkpoint
from ddgen.weights.export import folder_tower
from ddgen.weights.folder import read_folder, unet_from

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def converted(request, tmp_path_factory):
    """A family's single file and the folder made from it."""
    folder = tmp_path_factory.mktemp(request.param)
    arch, parts = small_file(folder / "one.safetensors", request.param, dtype=torch.float64)
    spec = small_spec(request.param)
    report = convert.to_folder(open_checkpoint(folder / "one.safetensors"), spec, folder / "many")
    return arch, parts, spec, folder, report


def unet_arguments(arch):
    x = draw(2, arch.unet.in_channels, 16, 16, seed=1)
    time = torch.tensor([980.0, 13.0], dtype=torch.float64)
    context = draw(2, 5, arch.unet.context_dim, seed=2)
    return x, time, context


def vector_arguments(arch):
    """The pooled text and the ids as diffusers takes them, and the vector as we do."""
    if not arch.vector_ids:
        return {}, None
    pooled, ids = (
        draw(2, PROJECTION, seed=3),
        torch.tensor([[64.0, 48, 0, 8, 64, 48], [32.0, 32, 1, 0, 32, 16]], dtype=torch.float64),
    )
    ids = ids[:, : len(arch.vector_ids)]
    half = torch.exp(
        -torch.log(torch.tensor(10_000.0, dtype=torch.float64)) * torch.arange(128, dtype=torch.float64) / 128
    )
    angles = ids[..., None] * half
    sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}, torch.cat(
        [pooled, sinusoid], dim=1
    )


@torch.no_grad()
def test_the_unet_of_the_folder_is_diffusers(converted, record_property):
    arch, parts, _, folder, _ = converted
    theirs = diffusers.UNet2DConditionModel.from_pretrained(
        folder / "many", subfolder="unet", torch_dtype=torch.float64
    ).eval()
    x, time, context = unet_arguments(arch)
    extra, vector = vector_arguments(arch)
    ours = parts["unet"].double()(x, time, context, vector)
    # diffusers rounds the sinusoids of ids to float32
    found = distance(ours, theirs(x, time, context, **extra).sample)
    record_property("family: U-Net, converted, against diffusers", found)
    assert found < (1e-5 if arch.vector_ids else TOLERANCE)


@torch.no_grad()
def test_the_autoencoder_of_the_folder_is_diffusers(converted, record_property):
    arch, parts, _, folder, _ = converted
    theirs = diffusers.AutoencoderKL.from_pretrained(
        folder / "many", subfolder="vae", torch_dtype=torch.float64
    ).eval()
    latents = draw(1, 4, 8, 8, seed=4)
    scale = arch.first_stage.scale_factor
    assert theirs.config.scaling_factor == scale
    ours = parts["first_stage"].double().decode(latents)
    found = distance(ours, theirs.decode(latents / scale).sample)
    record_property("family: autoencoder, converted, against diffusers", found)
    assert found < TOLERANCE


@torch.no_grad()
def test_the_text_encoders_of_the_folder_are_transformers(converted, record_property):
    arch, parts, _, folder, _ = converted
    ids = torch.randint(0, 999, (2, 77), generator=torch.Generator().manual_seed(5))
    for i, name in enumerate(
        ("text_encoder_2",)
        if arch.name == "REFINER"
        else ("text_encoder", "text_encoder_2")[: len(arch.text)]
    ):
        tower = arch.text[i]
        cls = transformers.CLIPTextModelWithProjection if tower.pooled else transformers.CLIPTextModel
        theirs = cls.from_pretrained(folder / "many" / name, dtype=torch.float64).eval()
        found = theirs(ids, output_hidden_states=True)
        ours = parts[f"text.{i}"].double()(ids)
        if tower.layer == -2 and tower.final_norm:
            expected = parts[f"text.{i}"].final_layer_norm(ours.hidden[-2])
            worst = distance(expected, found.last_hidden_state)
        else:
            worst = max(
                distance(ours.final, found.last_hidden_state),
                distance(ours.hidden[-2], found.hidden_states[-2]),
            )
        record_property("family: text towers, converted, against transformers", worst)
        assert worst < TOLERANCE


def test_the_single_file_is_loaded_by_diffusers_as_the_folder_is(converted):
    arch, _, _, folder, _ = converted
    options = {"config": str(folder / "many"), "torch_dtype": torch.float64, "local_files_only": True}
    for cls, subfolder in ((diffusers.UNet2DConditionModel, "unet"), (diffusers.AutoencoderKL, "vae")):
        if subfolder == "unet" and arch.name == "SD15_LCM":
            continue  # diffusers' converter leaves the guidance embedding out
        single = cls.from_single_file(
            str(folder / "one.safetensors"), subfolder=subfolder, **options
        ).state_dict()
        many = cls.from_pretrained(
            folder / "many", subfolder=subfolder, torch_dtype=torch.float64
        ).state_dict()
        assert single.keys() == many.keys()
        assert all(torch.equal(single[key], many[key]) for key in many)


def test_what_the_folder_does_not_hold_is_named(converted):
    arch, _, _, _, report = converted
    if arch.name == "SD21":
        assert len(report.dropped) == 17 and "text.0: text_projection.weight" in report.dropped
        assert all(
            name.startswith(("text.0: encoder.layers.2.", "text.0: text_projection"))
            for name in report.dropped
        )
    else:
        assert report.dropped == ()


def test_there_and_back_nothing_changes(converted):
    arch, parts, _, folder, report = converted
    back = open_checkpoint(folder / "many")
    assert back.own is not None and back.unknown == ()
    convert.to_file(back, back.own, folder / "back.safetensors")
    before, after = load_file(folder / "one.safetensors"), load_file(folder / "back.safetensors")
    assert after.keys() <= before.keys()
    assert len(before) - len(after) == (13 if arch.name == "SD21" else 0)
    assert all(torch.equal(before[key], after[key]) for key in after)
    assert before.keys() == ldm_keys(arch, parts).keys()


def test_the_folders_own_files_say_what_its_ddgen_json_says(converted):
    arch, _, spec, folder, _ = converted
    own = open_checkpoint(folder / "many").own
    (folder / "many" / "ddgen.json").rename(folder / "many" / "hidden.json")
    try:
        found = read_folder(folder / "many")
        assert found.arch.unet == arch.unet and found.arch.first_stage == arch.first_stage
        rules = [replace(tower, prefix="", layout="", pad_id=0) for tower in found.arch.text]
        assert rules == [replace(folder_tower(tower), prefix="", layout="", pad_id=0) for tower in arch.text]
        said = open_checkpoint(folder / "many").said
        assert said["prediction"] == spec.prediction and said["schedule"]["kind"] == "scaled_linear"
    finally:
        (folder / "many" / "hidden.json").rename(folder / "many" / "ddgen.json")
    assert own.prediction == spec.prediction and own.schedule == spec.schedule


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "PLAYGROUND"])
def test_config_files_of_full_size_families_come_back(name):
    assert unet_from(export.unet_config(FAMILIES[name])) == FAMILIES[name].unet


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # within diffusers' schedulers
@pytest.mark.parametrize("name", ["SD15", "SDXL"])
def test_the_folder_is_a_pipeline_of_diffusers_with_our_tokens(name, tmp_path):
    small_file(tmp_path / "one.safetensors", name, vocab=49408)
    convert.to_folder(
        open_checkpoint(tmp_path / "one.safetensors"), small_spec(name, 49408), tmp_path / "many"
    )
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "many")
    assert (
        type(pipeline).__name__
        == {"SD15": "StableDiffusionPipeline", "SDXL": "StableDiffusionXLPipeline"}[name]
    )
    prompt = "a photo of an astronaut, 8k (best)"
    for tokenizer, pad in ((pipeline.tokenizer, 49407), (getattr(pipeline, "tokenizer_2", None), 0)):
        if tokenizer is not None:
            ids = tokenizer(prompt, padding="max_length", max_length=77).input_ids
            assert [ids] == Tokenizer().chunks(prompt, pad)
    picture = pipeline(prompt, num_inference_steps=2, width=64, height=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)


@torch.no_grad()
def test_an_autoencoder_of_patches_is_diffusers_between_the_patches(tmp_path):
    arch = small_arch("SD15")
    stage = replace(arch.first_stage, patch=4, latent_channels=16, scale_factor=1.0)
    unet = replace(arch.unet, in_channels=16, out_channels=16, position_channels=16, vector_dim=PROJECTION)
    arch = replace(arch, unet=unet, first_stage=stage)
    network = modules(arch)["first_stage"].double()
    save_file(ldm_keys(arch, modules(arch)), tmp_path / "one.safetensors")
    spec = replace(small_spec("SD15"), arch=arch, schedule={"kind": "cosine"})
    report = convert.to_folder(open_checkpoint(tmp_path / "one.safetensors"), spec, tmp_path / "many")

    theirs = diffusers.AutoencoderKL.from_pretrained(
        tmp_path / "many", subfolder="vae", torch_dtype=torch.float64
    )
    images, latents = draw(1, 3, 32, 32, seed=1), draw(1, 16, 4, 4, seed=2)
    mean = theirs.encode(pixel_unshuffle(images, 4)).latent_dist.mean
    decoded = pixel_shuffle(theirs.decode(latents).sample, 4)
    assert distance(network.encode(images), mean) < TOLERANCE
    assert distance(network.decode(latents), decoded) < TOLERANCE

    assert [line.partition(":")[0] for line in report.unsaid] == ["vae", "unet", "unet", "scheduler"]
    assert "48 channels are 4 x 4 pixels" in report.unsaid[0] and "16 of its 32 input" in report.unsaid[1]
    assert not (tmp_path / "many" / "model_index.json").exists()
    found = open_checkpoint(tmp_path / "many")
    assert found.own.arch.first_stage == stage
    (tmp_path / "many" / "ddgen.json").unlink()
    assert read_folder(tmp_path / "many").arch.first_stage == stage

    config = json.loads((tmp_path / "many" / "vae" / "config.json").read_text())
    for patch in (5, 0, "4"):
        (tmp_path / "many" / "vae" / "config.json").write_text(json.dumps(config | {"patch": patch}))
        with pytest.raises(ModelError, match="patches of .* which its channels do not hold"):
            read_folder(tmp_path / "many")


def test_what_diffusers_runs_by_itself_needs_no_words(converted):
    assert converted[-1].unsaid == ()


def test_half_precision_is_kept_or_asked_for(tmp_path):
    small_file(tmp_path / "one.safetensors", "SD15", dtype=torch.bfloat16)
    found, spec = open_checkpoint(tmp_path / "one.safetensors"), small_spec("SD15")
    convert.to_file(found, spec, tmp_path / "same.safetensors")
    convert.to_file(found, spec, tmp_path / "wide.safetensors", dtype=torch.float32)
    before, same, wide = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "same", "wide"))
    for key, tensor in before.items():
        assert same[key].dtype == torch.bfloat16 and torch.equal(same[key], tensor)
        assert wide[key].dtype == torch.float32 and torch.equal(wide[key], tensor.float())


@torch.no_grad()
def test_a_folder_in_shards_is_one_model(converted, tmp_path):
    arch, parts, _, folder, _ = converted
    theirs = diffusers.UNet2DConditionModel.from_pretrained(
        folder / "many", subfolder="unet", torch_dtype=torch.float64
    )
    theirs.save_pretrained(tmp_path / "unet", max_shard_size="1MB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    found = open_checkpoint(tmp_path)
    module = type(parts["unet"])(arch.unet)
    load_module(module, found.part("unet"), dtype=torch.float64, name="unet")
    expected = parts["unet"].double().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())
