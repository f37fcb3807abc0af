"""What a run puts on a model: LoRAs, embeddings, another autoencoder, other rules; from a file to the
picture.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from referees import redraw
from safetensors.torch import load_file, save_file

from ddgen.app.additions import Added
from ddgen.app.adjust import adjust, few_step_defaults, parse_lora
from ddgen.app.assemble import assemble, part_modules
from ddgen.app.identity import job_id, model_key, weights_digests
from ddgen.app.pipeline import Pipeline, run
from ddgen.app.plan import plan
from ddgen.errors import ModelError, UsageError
from ddgen.nets.config import KLConfig, PatchConfig, TinyConfig, UNetConfig
from ddgen.request import Job, Request
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights import registry
from ddgen.weights.arch import Arch
from ddgen.weights.checkpoint import open_checkpoint, save_tensors, spec_metadata
from ddgen.weights.convert import to_file
from ddgen.weights.spec import Addition, Defaults, Spec

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
SPEC = Spec(
    "small",
    Arch("custom", UNET, KL, (TowerSpec(CLIPConfig(width=32, layers=3, heads=2, mlp=64)),)),
    defaults=Defaults(64, 64, 3, 4.0, 0.0, "euler", "leading"),
)
PREFIXES = {
    "unet": "model.diffusion_model.",
    "first_stage": "first_stage_model.",
    "text.0": "cond_stage_model.transformer.text_model.",
}
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {}
    for i, (part, module) in enumerate(part_modules(SPEC.arch).items()):
        tensors |= {PREFIXES[part] + name: tensor for name, tensor in redraw(module, i).state_dict().items()}
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_tensors(path, tensors, spec_metadata(SPEC))
    return path


def saved(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> str:
    save_file(tensors, folder / name)
    return str(folder / name)


def lora(folder: Path, name: str = "ink.safetensors", size: float = 1.0) -> str:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"{STEM}.lora_{end}.weight": size * torch.randn(shape, generator=generator)
        for end, shape in (("down", (4, 32)), ("up", (32, 4)))
    }
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors |= {
        f"{text}.lora_down.weight": torch.randn(2, 32, generator=generator),
        f"{text}.lora_up.weight": torch.randn(64, 2, generator=generator),
    }
    return saved(folder, name, tensors)


def picture(pipeline: Pipeline, prompt: str = "a red cat", **options: object) -> np.ndarray:
    (job,) = plan(Request(prompts=(prompt,), seed=5, **options), pipeline.spec)  # type: ignore[arg-type]
    return run(pipeline, [job])[0].astype(int)


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() > 3)


def test_a_lora_changes_the_picture_and_says_so(model: Path, tmp_path: Path) -> None:
    plain = Pipeline.load(str(model))
    inked = Pipeline.load(str(model), loras=[lora(tmp_path) + ":0.8"])
    assert inked.notes == [] and differ(picture(plain), picture(inked))
    assert (
        set(inked.digests) == {"model", "lora:ink.safetensors x 0.8"}
        and inked.digests["model"] == plain.digests["model"]
    )
    assert not differ(picture(plain), picture(Pipeline.load(str(model), loras=[lora(tmp_path) + ":0"])))


def with_average(model: Path, folder: Path, shift: float = 0.01, part: int = 1) -> Path:
    """Write the model with a second U-Net beside the first, or with every part-th tensor of one."""
    tensors = load_file(model)
    names = [name for name in tensors if name.startswith(PREFIXES["unet"])][::part]
    flat = {"model_ema." + "".join(name.split(".")[1:]): tensors[name] + shift for name in names}
    path = folder / "full.safetensors"
    save_tensors(path, tensors | flat, spec_metadata(SPEC))
    return path


def test_the_averaged_unet_is_taken_when_asked_for(model: Path, tmp_path: Path) -> None:
    full = with_average(model, tmp_path)
    trained, averaged = Pipeline.load(str(full)), Pipeline.load(str(full), ema=True)
    lean = tmp_path / "lean.safetensors"
    report = to_file(open_checkpoint(full).averaged(), SPEC, lean)
    assert len(report.dropped) == len(averaged.denoiser.network.state_dict())  # type: ignore[attr-defined]
    assert all(name.startswith("model.diffusion_model.") for name in report.dropped)
    assert (picture(averaged) == picture(Pipeline.load(str(lean)))).all()
    assert differ(picture(averaged), picture(trained))
    assert (picture(trained) == picture(Pipeline.load(str(model)))).all()
    assert averaged.digests == trained.digests | {"ema of model": trained.digests["model"]}


def test_a_lora_goes_on_the_averaged_unet(model: Path, tmp_path: Path) -> None:
    full, ink = with_average(model, tmp_path), lora(tmp_path)
    to_file(open_checkpoint(full).averaged(), SPEC, tmp_path / "lean.safetensors")
    ours = Pipeline.load(str(full), ema=True, loras=[ink])
    theirs = Pipeline.load(str(tmp_path / "lean.safetensors"), loras=[ink])
    assert (picture(ours) == picture(theirs)).all()


def test_a_file_without_a_whole_average_says_so(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no averaged \(EMA\) tensors; drop --ema"):
        adjust(registry.find(str(model)), ema=True)
    torn = with_average(model, tmp_path, part=2)
    with pytest.raises(ModelError, match=r"holds \d+ of \d+ averaged"):
        adjust(registry.find(str(torn)), ema=True)


def test_additions_change_the_id_of_a_job(model: Path, tmp_path: Path) -> None:
    spec = registry.find(str(model))
    path = lora(tmp_path)
    variants = [
        spec,
        adjust(spec, loras=[path]),
        adjust(spec, loras=[f"{path}:0.5"]),
        adjust(spec, clip_skip=2),
        adjust(spec, prediction="v"),
    ]
    ids = set()
    for variant in variants:
        (job,) = plan(Request(prompts=("a",), seed=1), variant)
        ids.add(job_id(job, model_key(variant, weights_digests(variant))))
    assert len(ids) == len(variants)


def test_loras_are_exchanged_and_taken_off_bit_for_bit(model: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(str(model))
    network = pipeline.denoiser.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}  # type: ignore[attr-defined]
    added = Added(pipeline.spec, network, pipeline.text, open_checkpoint(model))  # type: ignore[arg-type]
    added.set([Addition("lora", Path(lora(tmp_path)), 1.0)])
    touched = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])]  # type: ignore[attr-defined]
    assert len(touched) == 1
    added.set([])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())  # type: ignore[attr-defined]


def test_what_fits_nothing_is_noted(model: Path, tmp_path: Path) -> None:
    odd = saved(
        tmp_path,
        "odd.safetensors",
        {f"{STEM}.diff": torch.zeros(32, 32), "lora_unet_nowhere.diff": torch.zeros(2)},
    )
    (note,) = Pipeline.load(str(model), loras=[odd]).notes
    assert "'odd.safetensors'" in note and "lora_unet_nowhere" in note


def test_an_embedding_is_a_word_of_the_prompt(model: Path, tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        "zebra-style.safetensors",
        {"emb_params": 3 * torch.randn(2, 32, generator=torch.Generator().manual_seed(1))},
    )
    plain, told = Pipeline.load(str(model)), Pipeline.load(str(model), embeddings=[path])
    assert not differ(picture(plain), picture(told))
    assert differ(picture(plain, "a zebra-style cat"), picture(told, "a zebra-style cat"))


def test_another_autoencoder(model: Path, tmp_path: Path) -> None:
    wide = replace(KL, model_channels=64)
    for config, name in ((wide, "wide"), (TinyConfig(width=16), "tiny")):
        module = redraw(part_modules(replace(SPEC.arch, first_stage=config))["first_stage"], 9)
        path = saved(
            tmp_path,
            f"{name}.safetensors",
            {key: tensor.contiguous() for key, tensor in module.state_dict().items()},
        )
        replaced = Pipeline.load(str(model), vae=path)
        plain = Pipeline.load(str(model))
        assert differ(picture(plain), picture(replaced)) and f"vae:{name}.safetensors" in replaced.digests
        if name == "wide":
            assert replaced.first_stage.config.scale_factor == KL.scale_factor  # type: ignore[attr-defined]
    narrow = redraw(
        part_modules(replace(SPEC.arch, first_stage=TinyConfig(latent_channels=8, width=16)))["first_stage"],
        9,
    )
    path = saved(
        tmp_path,
        "eight.safetensors",
        {key: tensor.contiguous() for key, tensor in narrow.state_dict().items()},
    )
    with pytest.raises(ModelError, match="makes 8 channels"):
        Pipeline.load(str(model), vae=path)


def test_prediction_and_clip_skip_change_the_rule(model: Path) -> None:
    spec = registry.find(str(model))
    plain = picture(assemble(spec))
    for changed in (adjust(spec, prediction="v"), adjust(spec, clip_skip=2)):
        assert differ(plain, picture(assemble(changed)))
    assert not differ(plain, picture(assemble(adjust(spec, prediction="eps", clip_skip=1))))
    assert adjust(spec, clip_skip=2).towers[0].layer == -2
    penultimate = replace(spec, arch=replace(spec.arch, text=(replace(spec.arch.text[0], layer=-2),)))
    assert [adjust(penultimate, clip_skip=n).towers[0].layer for n in (1, 2, 3)] == [-2, -2, -3]
    with pytest.raises(UsageError, match="use 1 to 3"):
        adjust(spec, clip_skip=4)
    with pytest.raises(UsageError, match="unknown prediction"):
        adjust(spec, prediction="epsilon-ish")


@pytest.mark.parametrize("rng", ["ddgen", "diffusers", "a1111", "comfy"])
def test_every_rng_makes_its_own_picture(rng: str, model: Path) -> None:
    pipeline = Pipeline.load(str(model))
    first = picture(pipeline, rng=rng, sampler="euler_ancestral")
    assert not differ(first, picture(pipeline, rng=rng, sampler="euler_ancestral"))
    assert (rng == "ddgen") != differ(first, picture(pipeline, sampler="euler_ancestral"))


def test_a_refiner_takes_over(model: Path) -> None:
    spec = registry.find(str(model))
    plain = picture(assemble(spec))
    # The same model as its own refiner: a first-order sampler does not notice, a prediction that differs
    # does.
    same = assemble(adjust(spec, refiner=str(model), refiner_start=0.5))
    assert not differ(plain, picture(same)) and "refiner from 0.5: model" in same.digests
    other = adjust(spec, refiner=str(model))
    assert other.refiner is not None and other.refiner_start == 0.8
    assert differ(
        plain,
        picture(assemble(replace(other, refiner=replace(other.refiner, prediction="v"), refiner_start=0.3))),
    )
    with pytest.raises(UsageError, match="use 0 to 1"):
        adjust(spec, refiner=str(model), refiner_start=1.5)
    with pytest.raises(ModelError, match="cannot go on with the latents"):
        adjust(
            replace(spec, arch=replace(spec.arch, first_stage=replace(KL, scale_factor=0.5))),
            refiner=str(model),
        )


def test_lora_arguments() -> None:
    assert parse_lora("ink.safetensors") == ("ink.safetensors", 1.0)
    assert parse_lora("ink.safetensors:0.8") == ("ink.safetensors", 0.8)
    assert parse_lora("a:b.safetensors:-1.5") == ("a:b.safetensors", -1.5)
    assert parse_lora("C:ink") == ("C:ink", 1.0)
    assert parse_lora("ink:0") == ("ink", 0.0)
    with pytest.raises(UsageError, match="use -10 to 10"):
        parse_lora("ink:11")
    with pytest.raises(ModelError, match="no such file"):
        adjust(SPEC, loras=["/nowhere/ink.safetensors:0.5"])
    with pytest.raises(ModelError, match="no autoencoder to replace"):
        adjust(replace(SPEC, arch=replace(SPEC.arch, first_stage=PatchConfig())), vae="x.safetensors")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ink.safetensors", (25, 7.5, "dpmpp_2m")),
        ("lcm-lora-sdv1-5.safetensors", (4, 1.0, "lcm")),
        ("lcm-lora-sdxl/pytorch_lora_weights.safetensors", (4, 1.0, "lcm")),
        ("sdxl_lightning_8step_lora.safetensors", (8, 1.0, "euler")),
        ("Hyper-SDXL-4steps-lora.safetensors", (4, 1.0, "ddim")),
        ("Hyper-SD15-12steps-CFG-lora.safetensors", (12, 6.0, "ddim")),
        ("calculus.safetensors", (25, 7.5, "dpmpp_2m")),
    ],
)
def test_loras_of_few_steps_bring_their_defaults(
    path: str, expected: tuple[int, float, str], tmp_path: Path
) -> None:
    found = few_step_defaults(Defaults(), [Addition("lora", tmp_path / path)])
    assert (found.steps, found.guidance, found.sampler) == expected


def test_a_request_goes_before_those_defaults(tmp_path: Path) -> None:
    (tmp_path / "sdxl_lightning_4step_lora.safetensors").touch()
    spec = adjust(SPEC, loras=[str(tmp_path / "sdxl_lightning_4step_lora.safetensors")])
    jobs: list[Job] = [
        *plan(Request(prompts=("a",), seed=1), spec),
        *plan(Request(prompts=("a",), seed=1, steps=9, guidance=3.0), spec),
    ]
    assert [(job.steps, job.guidance, job.spacing) for job in jobs] == [
        (4, 1.0, "trailing"),
        (9, 3.0, "trailing"),
    ]
