"""Whole pictures against diffusers' pipelines, in float64: prompts to conditioning, ten guided steps,
decoding; small networks, random weights.

What the road has beside its stations is what is tested here: tokens and padding, which hidden states, two
towers, pooled text and size
numbers, the unconditional side, the start of the noise, scale factors. MUTATIONS shows that each of them is
seen.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL as TheirVAE,
)
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from referees import Record, redraw, unet_state, vae_state
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers import (
    CLIPTextModel as TheirText,
)

from ddgen.app import conditions
from ddgen.app import pipeline as pipelines
from ddgen.app.pipeline import Pipeline, sample
from ddgen.app.plan import plan
from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.rng import make_noise
from ddgen.diffusion.schedule import make_schedule
from ddgen.nets.config import KLConfig, UNetConfig
from ddgen.nets.unet import UNet
from ddgen.nets.vae import AutoencoderKL
from ddgen.request import Job, Request
from ddgen.text.clip import CLIPTextModel, TextEncoder
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.text.tokens import END_ID, Tokenizer
from ddgen.weights.arch import REFINER_IDS, SIZE_IDS, Arch
from ddgen.weights.spec import SCALED_LINEAR, Defaults, Spec

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

TOLERANCE = 1e-6
STEPS = 10
SEEDS = (7, 8)
PROMPTS = ("a photo of an astronaut riding a horse, 4k", "two red apples")
NEGATIVES = ("blurry", "")

SMALL = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    heads=(2, 4),
    context_dim=32,
    down_depth=((1,), (1,)),
    up_depth=((1, 1), (1, 1)),
)
KL = KLConfig(model_channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
L = CLIPConfig(width=32, layers=3, heads=2, mlp=64)
H = CLIPConfig(width=32, layers=4, heads=2, mlp=64, activation="gelu", projection_dim=32)
G = CLIPConfig(width=48, layers=3, heads=3, mlp=96, activation="gelu", projection_dim=40)
TOWERS_XL = (
    TowerSpec(L, layer=-2, final_norm=False),
    TowerSpec(G, layer=-2, final_norm=False, pooled=True, pad_id=0),
)
XL = replace(
    SMALL,
    context_dim=80,
    linear_projection=True,
    vector_dim=40 + 6 * 256,
    down_depth=((0,), (2,)),
    up_depth=((0, 0), (2, 2)),
    mid_depth=2,
)
XL_KL = replace(KL, scale_factor=0.13025)
REFINER = replace(XL, context_dim=48, vector_dim=40 + 5 * 256)


@dataclass(frozen=True)
class Family:
    """A family in miniature, how it is sampled, and what diffusers is told in its own words."""

    arch: Arch
    scheduler: str
    config: dict[str, object]
    job: dict[str, object] = field(default_factory=dict)
    prediction: str = "eps"
    zero_negative: bool = False
    negatives: tuple[str, ...] | None = NEGATIVES


EULER = {"timestep_spacing": "leading", "steps_offset": 1}
DDIM = {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": True}
DPM = {
    "timestep_spacing": "trailing",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "final_sigmas_type": "zero",
}
SD1 = Arch("sd1", SMALL, KL, (TowerSpec(L),))
SD2 = Arch("sd2", replace(SMALL, linear_projection=True), KL, (TowerSpec(H, layer=-2, pad_id=0),))
SDXL = Arch("sdxl", XL, XL_KL, TOWERS_XL, SIZE_IDS)
FAMILIES = {
    "sd1 ddim": Family(SD1, "ddim.DDIMScheduler", DDIM, {"sampler": "ddim", "spacing": "leading"}),
    "sd1 dpmpp_2m": Family(
        SD1,
        "dpmsolver_multistep.DPMSolverMultistepScheduler",
        DPM,
        {"sampler": "dpmpp_2m", "spacing": "trailing"},
    ),
    "sd1 euler a": Family(
        SD1,
        "euler_ancestral_discrete.EulerAncestralDiscreteScheduler",
        EULER,
        {"sampler": "euler_ancestral", "spacing": "leading"},
    ),
    "sd2 v ddim": Family(SD2, "ddim.DDIMScheduler", DDIM, {"sampler": "ddim", "spacing": "leading"}, "v"),
    "sdxl euler": Family(
        SDXL, "euler_discrete.EulerDiscreteScheduler", EULER, {"sampler": "euler", "spacing": "leading"}
    ),
    "sdxl zeroed negative": Family(
        SDXL,
        "euler_discrete.EulerDiscreteScheduler",
        EULER,
        {"sampler": "euler", "spacing": "leading"},
        zero_negative=True,
        negatives=None,
    ),
    "sdxl trailing, not guided": Family(
        SDXL,
        "euler_discrete.EulerDiscreteScheduler",
        {"timestep_spacing": "trailing"},
        {"sampler": "euler", "spacing": "trailing", "guidance": 1.0},
    ),
}


def build(family: Family) -> Pipeline:
    """Return our pipeline with random weights in float64."""
    arch = family.arch
    spec = Spec(
        arch.name,
        arch,
        family.prediction,
        dict(SCALED_LINEAR),
        zero_negative=family.zero_negative,
        defaults=Defaults(64, 64, STEPS),
    )
    network = redraw(UNet(arch.unet).double().eval(), 1)
    assert isinstance(arch.first_stage, KLConfig)
    stage = redraw(AutoencoderKL(arch.first_stage).double().eval(), 2)
    towers = [redraw(CLIPTextModel(tower.config).double().eval(), 3 + i) for i, tower in enumerate(arch.text)]
    text = TextEncoder(towers, arch.text, Tokenizer())  # type: ignore[arg-type]
    return Pipeline(
        spec,
        text,
        Denoiser(network, family.prediction, make_schedule(spec.schedule)),
        stage,
        torch.device("cpu"),
    )  # type: ignore[arg-type]


# The same in diffusers' words


def their_unet(config: UNetConfig, network: nn.Module) -> UNet2DConditionModel:
    kinds = ["CrossAttn" if depth[-1] else "" for depth in config.down_depth]
    options: dict[str, object] = {
        "transformer_layers_per_block": [max(1, depth[-1]) for depth in config.down_depth]
    }
    if config.vector_dim:
        options |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": config.vector_dim,
        }
    theirs = UNet2DConditionModel(
        sample_size=8,
        in_channels=config.in_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=config.context_dim,
        attention_head_dim=(2, 4),
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        use_linear_projection=config.linear_projection,
        **options,
    ).double()
    theirs.load_state_dict(unet_state(network, config))
    return theirs.eval()


def their_vae(network: nn.Module, config: KLConfig) -> TheirVAE:
    theirs = TheirVAE(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        scaling_factor=config.scale_factor,
        sample_size=64,
        force_upcast=False,
    ).double()
    theirs.load_state_dict(vae_state(network, 4))
    return theirs.eval()


def their_text(tower: nn.Module, spec: TowerSpec) -> nn.Module:
    """Return transformers' tower; of one read at its penultimate layer with the final norm (SD2), the last
    block is left out.
    """
    config = spec.config
    layers = config.layers - 1 if spec.layer == -2 and spec.final_norm else config.layers
    settings = CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        hidden_act=config.activation,
        projection_dim=config.projection_dim or config.width,
        eos_token_id=2,
        bos_token_id=0,
        pad_token_id=1,
    )
    theirs = (CLIPTextModelWithProjection if spec.pooled else TheirText)(settings).double().eval()
    prefix = "text_model." if any(name.startswith("text_model.") for name in theirs.state_dict()) else ""
    state = {
        name if name == "text_projection.weight" else prefix + name: tensor
        for name, tensor in tower.state_dict().items()
        if not name.startswith(f"encoder.layers.{layers}.")
        and (spec.pooled or name != "text_projection.weight")
    }
    theirs.load_state_dict(state, strict=True)
    return theirs


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, data in Tokenizer().files().items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


class Doubled:
    """A module seen from outside, but for its float32, which is its float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


@pytest.fixture(autouse=True)
def in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let both sides draw noise and keep tables in float64."""
    monkeypatch.setattr(pipelines, "make_noise", partial(make_noise, dtype=torch.float64))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def their_scheduler(family: Family, monkeypatch: pytest.MonkeyPatch) -> object:
    module_name, class_name = family.scheduler.split(".")
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{module_name}")
    monkeypatch.setattr(module, "torch", Doubled(torch))
    monkeypatch.setattr(module, "np", Doubled(np), raising=False)
    words = {"eps": "epsilon", "v": "v_prediction"}
    return getattr(module, class_name)(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=words[family.prediction],
        **family.config,
    )


def tokenizer(vocabulary: Path, pad_id: int) -> CLIPTokenizer:
    pad = "<|endoftext|>" if pad_id == END_ID else "!"
    made = CLIPTokenizer(
        str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"), pad_token=pad, model_max_length=77
    )
    assert made.pad_token_id == pad_id
    return made


def their_pipeline(
    family: Family, ours: Pipeline, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> object:
    arch = family.arch
    assert isinstance(arch.first_stage, KLConfig)
    texts = [their_text(tower, spec) for tower, spec in zip(ours.text.towers, arch.text, strict=True)]  # type: ignore[attr-defined]
    tokenizers = [tokenizer(vocabulary, spec.pad_id) for spec in arch.text]
    parts = {
        "unet": their_unet(arch.unet, ours.denoiser.network),  # type: ignore[arg-type]
        "vae": their_vae(ours.first_stage, arch.first_stage),  # type: ignore[arg-type]
        "scheduler": their_scheduler(family, monkeypatch),
    }
    if len(texts) == 1:
        made = StableDiffusionPipeline(
            **parts,
            text_encoder=texts[0],
            tokenizer=tokenizers[0],
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    else:
        made = StableDiffusionXLPipeline(
            **parts,
            text_encoder=texts[0],
            text_encoder_2=texts[1],
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            force_zeros_for_empty_prompt=family.zero_negative,
            add_watermarker=False,
        )
    made.set_progress_bar_config(disable=True)
    return made


def their_relative(place: str, base: object, **parts: object) -> object:
    """Return diffusers' pipeline of another class, "module.Class", with the parts of a plain one and some more."""
    module_name, _, class_name = place.rpartition(".")
    kind = getattr(importlib.import_module(f"diffusers.pipelines.{module_name}"), class_name)
    without = ("image_encoder", "feature_extractor")
    shared = {name: part for name, part in base.components.items() if name not in without}  # type: ignore[attr-defined]
    more = {"feature_extractor": None, "requires_safety_checker": False, "add_watermarker": False}
    taken = inspect.signature(kind).parameters
    made = kind(**shared, **parts, **{name: part for name, part in more.items() if name in taken})
    made.set_progress_bar_config(disable=True)
    return made


def asked(**more: object) -> dict[str, object]:
    """Return what diffusers' pipelines are called with: the texts, steps and seeds that all tests share."""
    return {
        "prompt": list(PROMPTS),
        "negative_prompt": list(NEGATIVES),
        "num_inference_steps": STEPS,
        "guidance_scale": 7.5,
        "generator": [torch.Generator().manual_seed(seed) for seed in SEEDS],
        "output_type": "latent",
        **more,
    }



def jobs_of(family: Family, ours: Pipeline) -> list[Job]:
    jobs = []
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        negative = None if family.negatives is None else family.negatives[i]
        request = Request(
            (prompt,), negative=negative, seed=seed, rng="diffusers", **({"guidance": 7.5} | family.job)
        )  # type: ignore[arg-type]
        jobs += plan(request, ours.spec)
    return jobs


def run_ours(family: Family, ours: Pipeline) -> tuple[Tensor, Tensor]:
    """Return latents and pictures."""
    with torch.inference_mode():
        latents = sample(ours, jobs_of(family, ours))
        return latents, ours.first_stage.decode(latents)


def run_theirs(family: Family, theirs: object) -> tuple[Tensor, Tensor]:
    options: dict[str, object] = (
        {} if family.negatives is None else {"negative_prompt": list(family.negatives)}
    )
    results = []
    for kind in ("latent", "pt"):
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        results.append(
            theirs(  # type: ignore[operator]
                prompt=list(PROMPTS),
                height=64,
                width=64,
                num_inference_steps=STEPS,
                guidance_scale=family.job.get("guidance", 7.5),
                generator=generators,
                output_type=kind,
                **options,
            ).images
        )
    return results[0], results[1]


def difference(family: Family, ours: Pipeline, theirs: object) -> float:
    """Return the larger of the differences of latents and of pictures (in [0, 1], as diffusers has them)."""
    latents, pixels = run_ours(family, ours)
    their_latents, their_pixels = run_theirs(family, theirs)
    assert latents.dtype == their_latents.dtype == torch.float64 and their_latents.std() > 0.1
    inside = (their_pixels > 0) & (their_pixels < 1)
    assert inside.double().mean() > 0.2  # diffusers cuts its pictures to [0, 1]: enough is left to compare
    shown = (pixels / 2 + 0.5).clamp(0, 1)
    return max((latents - their_latents).abs().max().item(), (shown - their_pixels).abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_pictures_equal_diffusers(
    name: str, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    family = FAMILIES[name]
    ours = build(family)
    found = difference(family, ours, their_pipeline(family, ours, vocabulary, monkeypatch))
    record_property("whole picture, ten guided steps, against diffusers", found)
    assert found < TOLERANCE


def test_the_refiner_takes_over_as_in_diffusers(
    vocabulary: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """Base for the first 80 % of the times, refiner for the rest; its five numbers end in the aesthetic
    score.
    """
    base_family = FAMILIES["sdxl euler"]
    refiner_family = replace(base_family, arch=Arch("refiner", REFINER, XL_KL, (TOWERS_XL[1],), REFINER_IDS))
    base, refiner = build(base_family), build(refiner_family)
    their_base = their_pipeline(base_family, base, vocabulary, monkeypatch)
    tower = refiner_family.arch.text[0]
    their_refiner = StableDiffusionXLImg2ImgPipeline(
        vae=their_vae(refiner.first_stage, XL_KL),  # type: ignore[arg-type]
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=their_text(refiner.text.towers[0], tower),
        tokenizer_2=tokenizer(vocabulary, tower.pad_id),  # type: ignore[attr-defined]
        unet=their_unet(REFINER, refiner.denoiser.network),  # type: ignore[arg-type]
        scheduler=their_scheduler(base_family, monkeypatch),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    their_refiner.set_progress_bar_config(disable=True)
    shared = {"num_inference_steps": STEPS, "guidance_scale": 7.5, "output_type": "latent"}
    words = {"prompt": list(PROMPTS), "negative_prompt": list(NEGATIVES)}
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    half = their_base(**words, **shared, height=64, width=64, generator=generators, denoising_end=0.8).images  # type: ignore[operator]
    whole = their_refiner(**words, **shared, image=half, denoising_start=0.8).images

    def ours(start: float) -> Tensor:
        base.refiner, base.spec = refiner, replace(base.spec, refiner_start=start)
        return run_ours(base_family, base)[0]

    found = (ours(0.8) - whole).abs().max().item()
    record_property("whole picture, ten guided steps, against diffusers", found)
    assert found < TOLERANCE
    assert (ours(0.7) - whole).abs().max() > 10 * TOLERANCE
    assert torch.equal(ours(1.0), run_ours(base_family, replace_refiner(base))[0])
    ids_of_base = replace(refiner.spec.arch, vector_ids=SIZE_IDS[:5])
    refiner.spec = replace(refiner.spec, arch=ids_of_base)
    assert (ours(0.8) - whole).abs().max() > 10 * TOLERANCE


def replace_refiner(base: Pipeline) -> Pipeline:
    base.refiner = None
    return base


def rule(**changes: object):
    """Return a change of our side: another rule for the first or (second_...) tower."""

    def change(ours: Pipeline) -> None:
        towers = list(ours.text.specs)  # type: ignore[attr-defined]
        for key, value in changes.items():
            i = 1 if key.startswith("second_") else 0
            towers[i] = replace(towers[i], **{key.removeprefix("second_"): value})
        ours.text.specs = tuple(towers)  # type: ignore[attr-defined]

    return change


def of_spec(**changes: object):
    def change(ours: Pipeline) -> None:
        ours.spec = replace(ours.spec, **changes)

    return change


def ids_swapped(ours: Pipeline) -> None:
    names = ours.spec.arch.vector_ids
    ours.spec = replace(
        ours.spec, arch=replace(ours.spec.arch, vector_ids=(names[2], *names[1:2], names[0], *names[3:]))
    )


def scale_factor(ours: Pipeline) -> None:
    ours.first_stage.config = replace(ours.first_stage.config, scale_factor=0.18)  # type: ignore[attr-defined]


def prediction(ours: Pipeline) -> None:
    ours.denoiser.prediction = "eps"


MUTATIONS = {
    "padding of SD2": ("sd2 v ddim", rule(pad_id=END_ID)),
    "last layer for the penultimate": ("sd2 v ddim", rule(layer=-1)),
    "no final norm": ("sd1 ddim", rule(final_norm=False)),
    "eps for v": ("sd2 v ddim", prediction),
    "final norm of SDXL": ("sdxl euler", rule(final_norm=True)),
    "padding of the second tower": ("sdxl euler", rule(second_pad_id=END_ID)),
    "layer of the second tower": ("sdxl euler", rule(second_layer=-1)),
    "order of the size numbers": ("sdxl euler", ids_swapped),
    "empty text is encoded": ("sdxl zeroed negative", of_spec(zero_negative=False)),
    "scale factor": ("sd1 ddim", scale_factor),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_change_is_noticed(name: str, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family_name, change = MUTATIONS[name]
    family = FAMILIES[family_name]
    ours = build(family)
    theirs = their_pipeline(family, ours, vocabulary, monkeypatch)
    change(ours)
    assert difference(family, ours, theirs) > 10 * TOLERANCE


def test_guidance_and_start_are_noticed(vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["sd1 ddim"]
    ours = build(family)
    theirs = their_pipeline(family, ours, vocabulary, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setitem(family.job, "guidance", 7.5001)
        changed = run_ours(family, ours)[0]
    assert (changed - run_theirs(family, theirs)[0]).abs().max() > 10 * TOLERANCE
    euler = FAMILIES["sdxl trailing, not guided"]
    ours = build(euler)
    theirs = their_pipeline(euler, ours, vocabulary, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "initial_scale", lambda name, grid, **rest: grid.initial_scale)
        assert difference(euler, ours, theirs) > 10 * TOLERANCE


def test_the_sizes_are_those_of_the_picture() -> None:
    ours = build(FAMILIES["sdxl euler"])
    (job,) = plan(Request(("a",), seed=1, width=128, height=64), ours.spec)
    ids = conditions.size_vector(ours.spec, job.width, job.height).reshape(6, 256)
    assert torch.equal(ids[0], ids[4]) and torch.equal(ids[1], ids[5]) and not torch.equal(ids[0], ids[1])
    assert torch.equal(ids[2], ids[3]) and ids[2, 0] == 1.0  # cos 0: not cropped
