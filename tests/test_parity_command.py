"""The installed command against diffusers' pipeline on the same weights: same seed, same noise, same picture
within 2/255.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from referees import redraw
from safetensors.torch import load_file, save_file

from ddgen.app.assemble import part_modules
from ddgen.nets.config import KLConfig, UNetConfig
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights.arch import Arch
from ddgen.weights.checkpoint import open_checkpoint, read_tensors, save_tensors, spec_metadata
from ddgen.weights.spec import Defaults, Spec

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

UNET = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    heads=(2, 2),
    context_dim=32,
    down_depth=((1,), (1,)),
    up_depth=((1, 1), (1, 1)),
)
KL = KLConfig(model_channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
ARCH = Arch("custom", UNET, KL, (TowerSpec(CLIPConfig(width=32, layers=2, heads=2, mlp=64)),))
SPEC = Spec("small", ARCH, defaults=Defaults(64, 64, 8, 5.0, 0.0, "euler", "leading"))
PREFIXES = {
    "unet": "model.diffusion_model.",
    "first_stage": "first_stage_model.",
    "text.0": "cond_stage_model.transformer.text_model.",
}
STEM = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"
COMMAND = str(Path(sys.executable).with_name("ddgen"))


def ddgen(folder: Path, *arguments: str) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DDGEN_")}
    done = subprocess.run(
        [COMMAND, *arguments],
        cwd=folder,
        env=clean | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with the model as one file, as a folder for diffusers, and a LoRA."""
    place = tmp_path_factory.mktemp("parity")
    tensors = {}
    for i, (part, module) in enumerate(part_modules(ARCH).items()):
        tensors |= {PREFIXES[part] + name: tensor for name, tensor in redraw(module, i).state_dict().items()}
    save_tensors(place / "small.safetensors", tensors, spec_metadata(SPEC))
    generator = torch.Generator().manual_seed(1)
    factors = {
        f"{STEM}.lora_A.weight": torch.randn(4, 32, generator=generator),
        f"{STEM}.lora_B.weight": torch.randn(32, 4, generator=generator),
    }
    save_file(factors, place / "ink.safetensors")
    ddgen(place, "models", "convert", "small.safetensors", "folder")
    return place


def theirs(place: Path, *, lora: float | None = None, clip_skip: int | None = None) -> np.ndarray:
    pipeline = StableDiffusionPipeline.from_pretrained(
        place / "folder", safety_checker=None, requires_safety_checker=False
    )
    settings = {**pipeline.scheduler.config, "timestep_spacing": "leading", "steps_offset": 1}
    pipeline.scheduler = EulerDiscreteScheduler.from_config(settings)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(place / "ink.safetensors")
        pipeline.fuse_lora(lora_scale=lora)
    words: dict[str, object] = {"prompt": "a red cat", "negative_prompt": "blurry"}
    if clip_skip is not None:  # diffusers' own option does not know the present transformers
        words = {key + "_embeds": skipped(pipeline, str(text), clip_skip) for key, text in words.items()}
    image = pipeline(
        **words,
        height=64,
        width=64,
        num_inference_steps=8,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    return np.asarray(image).astype(int)


def skipped(pipeline: StableDiffusionPipeline, text: str, clip_skip: int) -> torch.Tensor:
    """Return the states of a layer that is not the last, with the final norm."""
    ids = pipeline.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    hidden = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
    return pipeline.text_encoder.final_layer_norm(hidden).detach()


def ours(place: Path, *arguments: str) -> np.ndarray:
    ddgen(
        place,
        "sample",
        "a red cat",
        "-N",
        "blurry",
        "--model",
        "small.safetensors",
        "--seed",
        "7",
        "--force",
        "-o",
        "cat.png",
        *arguments,
    )
    return np.asarray(Image.open(place / "cat.png").convert("RGB")).astype(int)


def test_the_same_picture_from_the_same_seed(folder: Path) -> None:
    expected = theirs(folder)
    assert expected.std() > 20
    assert np.abs(ours(folder, "--rng", "diffusers") - expected).max() <= 2
    assert np.abs(ours(folder) - expected).max() > 20


def test_the_same_picture_with_a_lora(folder: Path) -> None:
    expected = theirs(folder, lora=0.8)
    assert np.abs(ours(folder, "--rng", "diffusers", "--lora", "ink.safetensors:0.8") - expected).max() <= 2
    assert np.abs(ours(folder, "--rng", "diffusers") - expected).max() > 20


def test_the_same_picture_with_clip_skip(folder: Path) -> None:
    expected = theirs(folder, clip_skip=2)
    assert np.abs(ours(folder, "--rng", "diffusers", "--clip-skip", "2") - expected).max() <= 2
    assert np.abs(ours(folder, "--rng", "diffusers") - expected).max() > 2


def test_a_pickled_copy_is_read_like_the_file(folder: Path) -> None:
    torch.save(
        {"state_dict": load_file(folder / "small.safetensors"), "global_step": 3}, folder / "small.ckpt"
    )
    told = [inspected(folder, name) for name in ("small.safetensors", "small.ckpt")]
    assert told[0]["parameters"] == told[1]["parameters"] > 0
    assert told[0]["parts"] == told[1]["parts"]


def inspected(folder: Path, name: str) -> dict[str, object]:
    done = subprocess.run(
        [COMMAND, "models", "inspect", name, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_folder_of_pickles_is_read_like_one_of_safetensors(folder: Path, tmp_path: Path) -> None:
    """As tiny-sd is published: only .bin, with tensors that are not contiguous."""
    pickled = tmp_path / "pickled"
    shutil.copytree(folder / "folder", pickled)
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        plain = pickled / part / f"{stem}.safetensors"
        turned = {name: turn(tensor) for name, tensor in load_file(plain).items()}
        torch.save(turned, plain.with_name(("pytorch_model" if stem == "model" else stem) + ".bin"))
        plain.unlink()
    ours, theirs = open_checkpoint(folder / "folder"), open_checkpoint(pickled)
    assert ours.arch == theirs.arch and set(ours.parts) == set(theirs.parts)
    for name, part in ours.parts.items():
        read = dict(read_tensors(theirs.parts[name]))
        assert all(torch.equal(tensor, read[key]) for key, tensor in read_tensors(part))
    assert any(info.stride is not None for header in theirs.headers for info in header.tensors.values())


def turn(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same values in another order of memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.ndim > 1 else tensor
