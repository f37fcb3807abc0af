"""Training the autoencoder: it learns, resumes bit for bit, is measured; the decoder alone leaves latents be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddgen.app.dataset import Dataset
from ddgen.app.first_stage import FirstStageTrainer
from ddgen.app.pipeline import Pipeline
from ddgen.app.train import Settings, Trainer
from ddgen.errors import InputError
from ddgen.nets.config import KLConfig, PatchConfig, UNetConfig
from ddgen.nets.unet import UNet
from ddgen.nets.vae import AutoencoderKL
from ddgen.text.clip import CLIPTextModel
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights.arch import Arch
from ddgen.weights.checkpoint import save_tensors, spec_metadata
from ddgen.weights.header import read_header
from ddgen.weights.spec import Defaults, Spec

STAGE = KLConfig(latent_channels=4, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, patch=4, scale_factor=1.0)
NETWORK = UNetConfig(
    in_channels=4,
    out_channels=4,
    model_channels=32,
    channel_mult=(1,),
    num_res_blocks=1,
    down_depth=((1,),),
    up_depth=((1, 1),),
    mid_depth=1,
    heads=(2,),
    context_dim=16,
    linear_projection=True,
)
TOWER = TowerSpec(CLIPConfig(width=16, layers=1, heads=2, mlp=32, projection_dim=24))
SPEC = Spec(
    "tiny",
    Arch("tiny", NETWORK, STAGE, (TOWER,)),
    prediction="v",
    schedule={"kind": "cosine", "shift": 0.0},
    defaults=Defaults(width=64, height=64, steps=4, guidance=2.0, sampler="ddim", spacing="linspace"),
)
QUICK = Settings(part="first-stage", steps=12, batch=4, warmup=2, lr=2e-3, optimizer="adamw", report_every=6, save_every=6)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(path: Path, spec: Spec) -> Path:
    torch.manual_seed(1)
    tensors = {f"model.diffusion_model.{key}": value for key, value in UNet(NETWORK).state_dict().items()}
    if isinstance(spec.arch.first_stage, KLConfig):
        stage = AutoencoderKL(spec.arch.first_stage).state_dict()
        tensors |= {f"first_stage_model.{key}": value for key, value in stage.items()}
    save_tensors(path, tensors | tower(), spec_metadata(spec))
    return path


def tower() -> dict[str, torch.Tensor]:
    """The text tower under the names of a single file."""
    above = TOWER.prefix.removesuffix("text_model.")
    return {
        (above if key.startswith("text_projection") else TOWER.prefix) + key: value
        for key, value in CLIPTextModel(TOWER.config).state_dict().items()
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.safetensors", SPEC)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    path = tmp_path_factory.mktemp("data")
    lines = []
    for i, colour in enumerate(("red", "green", "blue", "yellow")):
        image = Image.new("RGB", (64, 64), "white")
        image.paste(colour, (16, 16, 48, 48))
        image.save(path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": colour}))
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return Dataset(path, 64, 64)


def load(path: Path) -> Pipeline:
    return Pipeline.load(str(path), device="cpu")


def test_it_learns_and_a_stopped_run_goes_on_bit_for_bit(model, data, tmp_path):
    whole = FirstStageTrainer(load(model), data, tmp_path / "whole", QUICK)
    reports = list(whole.run())
    assert reports[-1].fixed < 0.8 * reports[0].fixed
    run = FirstStageTrainer(load(model), data, tmp_path / "cut", QUICK).run()
    assert next(run).step == 6
    run.close()
    again = FirstStageTrainer(load(model), data, tmp_path / "cut", QUICK)
    assert again.step == 6
    list(again.run())
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key


def test_the_saved_model_has_unit_latents_and_the_old_unet(model, data, tmp_path):
    list(FirstStageTrainer(load(model), data, tmp_path, QUICK).run())
    made = load(tmp_path / "model.safetensors")
    latents = made.first_stage.encode(data.images(np.arange(4)))
    assert latents.mean((0, 2, 3)).abs().max() < 0.05
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05
    old, new = load(model).denoiser.network.state_dict(), made.denoiser.network.state_dict()
    assert all(torch.equal(value.half(), new[key].half()) for key, value in old.items())


def test_the_decoder_alone_leaves_the_latents_as_they_were(model, data, tmp_path):
    run = FirstStageTrainer(load(model), data, tmp_path, replace(QUICK, part="decoder"))
    assert not any(key.startswith(("encoder.", "quant_conv.")) for key in run.optimizer.parameters)
    reports = list(run.run())
    assert reports[-1].fixed < reports[0].fixed
    before, after = read_header(model).metadata, read_header(tmp_path / "model.safetensors").metadata
    assert before == after
    images = data.images(np.arange(4))
    old, new = load(model).first_stage, load(tmp_path / "model.safetensors").first_stage
    assert (old.encode(images) - new.encode(images)).abs().max() < 2e-2  # float16 in the file
    assert (old.decode(old.encode(images)) - new.decode(new.encode(images))).abs().max() > 2e-2


def test_a_decoder_from_scratch_leaves_the_encoder(model, data, tmp_path):
    held = load(model).first_stage.state_dict()
    run = FirstStageTrainer(load(model), data, tmp_path, replace(QUICK, part="decoder", scratch=True))
    for key, value in run.network.state_dict().items():
        if key.startswith(("encoder.", "quant_conv.")):
            assert torch.equal(value, held[key])
        elif key.endswith("conv_in.weight"):
            assert not torch.equal(value, held[key])


def test_a_model_without_an_autoencoder_is_named(data, tmp_path):
    patches = replace(
        SPEC, arch=Arch("tiny", replace(NETWORK, in_channels=192, out_channels=192), PatchConfig(), (TOWER,))
    )
    torch.manual_seed(1)
    path = tmp_path / "patch.safetensors"
    unet = UNet(patches.arch.unet)
    tensors = {f"model.diffusion_model.{key}": value for key, value in unet.state_dict().items()}
    save_tensors(path, tensors | tower(), spec_metadata(patches))
    with pytest.raises(InputError, match="no KL autoencoder to train.*--part"):
        FirstStageTrainer(load(path), data, tmp_path / "run", QUICK)


def test_posterior_mean_targets_train_the_unet_and_make_the_loss_smaller(model, data, tmp_path):
    """A caption with one picture has that picture as its mean; the empty one has the mean of all."""
    settings = replace(QUICK, part="unet", target="mean", dropout=0.5, scratch=True)
    run = Trainer(load(model), data, tmp_path / "a", settings)
    draw = data.draw(0, 0, 8, run.shapes, dropout=0.5, high_noise=0.3)
    assert (draw.captions == 0).any() and (draw.captions > 0).any()
    x0, eps = run.latents[draw.pictures], torch.from_numpy(draw.eps)
    sigma = torch.full((8,), 50.0)
    means = run._means(x0, eps, sigma, draw)
    centre = run.latents[np.arange(len(data))].mean(0)
    for i, caption in enumerate(draw.captions):
        wanted = x0[i] if caption else centre
        assert (means[i] - wanted).abs().max() < (1e-5 if caption else 0.2)
    reports = list(run.run())
    assert np.isfinite(reports[-1].fixed) and reports[-1].fixed < reports[0].fixed
