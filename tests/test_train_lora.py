"""LoRA training: what is saved is what was trained, for us and for diffusers, in both dialects."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from lora_cases import ARCH1, ARCHXL
from PIL import Image
from referees import draw
from safetensors.torch import load_file
from small import ldm_keys, modules
from test_lora_referees import their_unet
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from ddgen.app.dataset import Dataset, Frame
from ddgen.app.pipeline import Pipeline
from ddgen.app.subjects import LowRankChange
from ddgen.app.train import Settings, Trainer
from ddgen.errors import InputError
from ddgen.nets.config import KLConfig
from ddgen.nets.layers import Linear
from ddgen.nets.lowrank import ATTENTION, LowRanks, attach, detach, shared, targets
from ddgen.weights.arch import FAMILIES, Arch
from ddgen.weights.checkpoint import save_tensors, spec_metadata
from ddgen.weights.spec import Defaults, Spec

STAGE = KLConfig(model_channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
CLOSE = 1e-6
QUICK = Settings(
    steps=2, batch=2, optimizer="adamw", lr=1e-2, warmup=0, hold=0.9, weighting="output", fixed=2, report_every=1
)


def whole(arch: Arch) -> Arch:
    """The small families of the LoRA tests, with an autoencoder and CLIP's own vocabulary."""
    published = FAMILIES[arch.name].text
    text = tuple(
        replace(theirs, pooled=tower.pooled, config=replace(tower.config, vocab_size=49408))
        for tower, theirs in zip(arch.text, published, strict=True)
    )
    return replace(
        arch,
        first_stage=STAGE,
        text=text,
        unet=replace(
            arch.unet,
            context_dim=sum(tower.config.width for tower in text),
            vector_dim=20 + 6 * 256 if arch.unet.vector_dim else 0,
        ),
        vector_ids=FAMILIES[arch.name].vector_ids,
    )


SPECS = {
    "sd1": Spec("sd1", whole(ARCH1), defaults=Defaults(width=64, height=64)),
    "sdxl": Spec("sdxl", whole(ARCHXL), defaults=Defaults(width=64, height=64), zero_negative=True),
}
MIXINS = {"sd1": StableDiffusionLoraLoaderMixin, "sdxl": StableDiffusionXLLoraLoaderMixin}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A small checkpoint of each family, with random weights."""
    found = {}
    for name, spec in SPECS.items():
        found[name] = tmp_path_factory.mktemp(name) / f"{name}.safetensors"
        save_tensors(found[name], ldm_keys(spec.arch, modules(spec.arch)), spec_metadata(spec))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    path = tmp_path_factory.mktemp("data")
    for i, colour in enumerate(("red", "green", "blue")):
        image = Image.new("RGB", (64, 64), "white")
        image.paste(colour, (16, 16, 48, 48))
        image.save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"a {colour} square")
    return Dataset(path, 64, 64)


def trainer(model: Path, data: Dataset, out: Path, settings: Settings = QUICK, **options) -> Trainer:
    pipeline = Pipeline.load(str(model), device="cpu", dtype="float32")
    subject = LowRankChange(pipeline, seed=settings.seed, **({"rank": 4, "alpha": 6.0} | options))
    return Trainer(pipeline, data, out, settings, subject)


def test_sdxl_is_told_how_each_picture_came_to_its_size(files, tmp_path):
    for i, size in enumerate(((64, 64), (256, 64))):
        Image.new("RGB", size, "red").save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("red")
    run = trainer(files["sdxl"], Dataset(tmp_path, 64, 64), tmp_path / "run")
    told, captions, drawn = [], run.captions, run.draws(0)[0]
    run.captions = lambda *given: told.append(given[-1]) or captions(*given)
    run.losses(run.pipeline.denoiser.network, drawn)
    expected = {0: Frame((64, 64), (0, 0)), 1: Frame((256, 64), (96, 0))}
    assert told == [[expected[i] for i in drawn.pictures.tolist()]]
    one, other = (captions([1], (64, 64), torch.device("cpu"), None, [expected[i]]).vector for i in (0, 1))
    sizes = SPECS["sdxl"].arch.unet.vector_dim - one.shape[1] + 6 * 256
    assert sizes == 6 * 256 and torch.equal(one[:, :-sizes], other[:, :-sizes])
    differ = (one != other).reshape(-1)[-sizes:].reshape(6, 256).any(1)
    assert differ.tolist() == [False, True, False, True, False, False]


def unet_output(network: nn.Module, spec: Spec) -> torch.Tensor:
    unet = spec.arch.unet
    x, context = draw(2, 4, 8, 8, seed=1), draw(2, 7, unet.context_dim, seed=2)
    vector = draw(2, unet.vector_dim, seed=3) if unet.vector_dim else None
    with torch.no_grad():
        return network.double()(x, torch.tensor([10.0, 700.0], dtype=torch.float64), context, vector)


@pytest.mark.parametrize(
    ("name", "dialect", "on"),
    [
        ("sd1", "kohya", "attention"),
        ("sd1", "peft", "transformer"),
        ("sdxl", "kohya", "transformer"),
        ("sdxl", "peft", "attention"),
        ("sd1", "kohya", "all"),
        ("sd1", "peft", "all"),
        ("sdxl", "kohya", "all"),
        ("sdxl", "peft", "all"),
    ],
)
def test_diffusers_and_ddgen_load_what_was_trained(name, dialect, on, files, data, tmp_path):
    spec = SPECS[name]
    run = trainer(files[name], data, tmp_path, on=on, dialect=dialect)
    list(run.run())
    state = run.average.state
    moved = [float(value.abs().max()) for key, value in state.items() if key.endswith(".up")]
    assert len(moved) >= 20 and min(moved) > 1e-4
    for key, value in state.items():
        state[key] = value.double()
    trained = unet_output(run.subject.averaged(state), spec)

    loaded = Pipeline.load(str(files[name]), device="cpu", dtype="float32")
    base = unet_output(loaded.denoiser.network, spec)
    assert (trained - base).abs().max() > 1e-3
    ours = Pipeline.load(str(files[name]), loras=[str(tmp_path / "lora.safetensors")], device="cpu", dtype="float32")
    assert ours.notes == []
    assert (unet_output(ours.denoiser.network, spec) - trained).abs().max() < 1e-5  # merged in float32

    theirs = their_unet(spec.arch, loaded.denoiser.network.double(), ids=256)
    state_dict, *more = MIXINS[name].lora_state_dict(
        str(tmp_path / "lora.safetensors"), unet_config=theirs.config, return_lora_metadata=True
    )
    alphas, metadata = more
    MIXINS[name].load_lora_into_unet(
        {key: value.double() for key, value in state_dict.items()}, alphas, theirs, metadata=metadata
    )
    assert sum("lora_A" in key for key in theirs.state_dict()) == len(moved)
    unet = spec.arch.unet
    x, context = draw(2, 4, 8, 8, seed=1), draw(2, 7, unet.context_dim, seed=2)
    extra = {}
    if unet.vector_dim:
        pooled, ids = torch.zeros(2, 20, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.float64)
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        vector = torch.cat([pooled, torch.tensor([1.0] * 128 + [0.0] * 128).double().repeat(2, 6)], dim=1)
        trained = run.subject.averaged(state).double()(x, torch.tensor([10.0, 700.0]), context, vector).detach()
    with torch.no_grad():
        output = theirs(x, torch.tensor([10.0, 700.0]), context, **extra).sample
    assert (output - trained).abs().max() <= CLOSE


def test_the_comparison_can_fail(files, data, tmp_path):
    """An alpha left out of the file is seen."""
    run = trainer(files["sd1"], data, tmp_path)
    list(run.run())
    path = tmp_path / "lora.safetensors"
    tensors = load_file(path)
    assert {float(value) for key, value in tensors.items() if key.endswith(".alpha")} == {6.0}
    save_tensors(path, {k: v for k, v in tensors.items() if not k.endswith(".alpha")}, {})
    ours = Pipeline.load(str(files["sd1"]), loras=[str(path)], device="cpu", dtype="float32")
    trained = unet_output(run.subject.averaged({k: v.double() for k, v in run.average.state.items()}), SPECS["sd1"])
    assert (unet_output(ours.denoiser.network, SPECS["sd1"]) - trained).abs().max() > 1e-3


def test_a_convolution_left_askew_in_the_file_is_seen(files, data, tmp_path):
    """So is a kernel that lies on its side: what convolutions learn reaches the file as it was trained."""
    run = trainer(files["sd1"], data, tmp_path, on="all")
    list(run.run())
    path = tmp_path / "lora.safetensors"
    tensors = load_file(path)
    kernels = [key for key, value in tensors.items() if key.endswith("lora_down.weight") and value.shape[2:] == (3, 3)]
    ups = [tensors[key.replace("lora_down", "lora_up")] for key in kernels]
    assert len(kernels) == 2 * 8 + 2 and all(up.shape[2:] == (1, 1) for up in ups)
    trained = unet_output(run.subject.averaged({k: v.double() for k, v in run.average.state.items()}), SPECS["sd1"])

    def differs() -> float:
        ours = Pipeline.load(str(files["sd1"]), loras=[str(path)], device="cpu", dtype="float32")
        return float((unet_output(ours.denoiser.network, SPECS["sd1"]) - trained).abs().max())

    assert differs() < 1e-5
    tensors[kernels[0]] = tensors[kernels[0]].transpose(2, 3).contiguous()
    save_tensors(path, tensors, {})
    assert differs() > 1e-4


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_text_towers_are_trained_too(dialect, files, data, tmp_path):
    """What the towers with the LoRA make of a caption, we make again from the file, and diffusers does."""
    run = trainer(files["sd1"], data, tmp_path, text=True, dialect=dialect)
    caption = ["a red square"]
    before = Pipeline.load(str(files["sd1"]), device="cpu", dtype="float32").text.encode(caption).context
    list(run.run())
    trained = run.subject.text(run.average.state).encode(caption).context
    assert (trained - before).abs().max() > 1e-3
    path = tmp_path / "lora.safetensors"
    ours = Pipeline.load(str(files["sd1"]), loras=[str(path)], device="cpu", dtype="float32")
    assert ours.notes == []
    assert (ours.text.encode(caption).context - trained).abs().max() < 1e-5

    tower = SPECS["sd1"].arch.text[0].config
    theirs = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=tower.width,
            intermediate_size=tower.mlp,
            num_hidden_layers=tower.layers,
            num_attention_heads=tower.heads,
            eos_token_id=49407,
        )
    )
    held = load_file(files["sd1"])
    state = {
        key.removeprefix("cond_stage_model.transformer."): value
        for key, value in held.items()
        if key.startswith("cond_stage_model.")
    }
    if not any(name.startswith("text_model.") for name in theirs.state_dict()):
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    theirs.load_state_dict(state)
    state_dict, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(path), return_lora_metadata=True
    )
    StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(state_dict, alphas, theirs, metadata=metadata)
    ids = torch.tensor(run.pipeline.text.tokenizer.encode(caption[0]))
    row = torch.full((1, 77), 49407)
    row[0, 0] = 49406
    row[0, 1 : 1 + len(ids)] = ids
    with torch.no_grad():
        output = theirs(row).last_hidden_state
    assert (output - trained).abs().max() < 1e-5


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_towers_are_trained_as_far_as_they_are_read(dialect, files, data, tmp_path):
    """SDXL reads the last state but one; only the tower that is pooled needs its last block."""
    run = trainer(files["sdxl"], data, tmp_path, text=True, dialect=dialect)
    last = [f"text.{i} encoder.layers.{tower.config.layers - 1}." for i, tower in enumerate(SPECS["sdxl"].arch.text)]
    trained = [any(name.startswith(block) for name in run.trained.names) for block in last]
    assert trained == [tower.pooled for tower in SPECS["sdxl"].arch.text] == [False, True]
    list(run.run())
    caption = ["a red square"]
    expected = run.subject.text(run.average.state).encode(caption)
    before = Pipeline.load(str(files["sdxl"]), device="cpu", dtype="float32").text.encode(caption)
    lora = [str(tmp_path / "lora.safetensors")]
    ours = Pipeline.load(str(files["sdxl"]), loras=lora, device="cpu", dtype="float32")
    assert ours.notes == []
    for part in ("context", "vector"):
        made, told = getattr(ours.text.encode(caption), part), getattr(expected, part)
        assert (made - told).abs().max() < 1e-5 < 1e-3 < (told - getattr(before, part)).abs().max()


def test_a_resumed_lora_ends_at_the_same_bits(files, data, tmp_path):
    settings = replace(QUICK, steps=4, save_every=1)
    whole_run = trainer(files["sd1"], data, tmp_path / "whole", settings)
    list(whole_run.run())
    begun = trainer(files["sd1"], data, tmp_path / "halves", settings)
    for report in begun.run():
        if report.step == 2:
            break
    again = trainer(files["sd1"], data, tmp_path / "halves", settings)
    assert again.step == 2
    list(again.run())
    first, second = (tmp_path / name / "lora.safetensors" for name in ("whole", "halves"))
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(InputError, match="what is trained"):
        trainer(files["sd1"], data, tmp_path / "whole", settings, rank=2)


def test_attaching_and_taking_off_leave_no_trace():
    torch.manual_seed(0)
    layer = nn.Sequential(Linear(8, 6), nn.Conv2d(3, 5, 1))
    x, image = torch.randn(2, 3, 8), torch.randn(2, 3, 4, 4)
    before = layer[0](x), layer[1](image)
    changes = LowRanks({"0": layer[0], "1": layer[1]}, rank=2, alpha=1.0)
    twin = shared(layer)
    for name, factors in changes.factors():
        nn.init.normal_(factors.up)
        attach(layer[int(name)], factors)
    factors = dict(changes.factors())["0"]
    expected = before[0] + 0.5 * x @ factors.down.T @ factors.up.T
    assert torch.allclose(layer[0](x), expected, atol=1e-5)
    assert not torch.allclose(layer[1](image), before[1], atol=1e-2)
    assert torch.equal(twin[0](x), before[0]) and twin[0].weight is layer[0].weight
    for module in layer:
        detach(module)
    assert torch.equal(layer[0](x), before[0]) and torch.equal(layer[1](image), before[1])
    assert list(targets(nn.ModuleDict({"to_q": nn.Linear(1, 1)}), ATTENTION)) == []  # whole names only


def test_a_frozen_linear_has_the_gradient_of_torchs():
    torch.manual_seed(0)
    layer = Linear(24, 40).requires_grad_(False)
    x = torch.randn(3, 7, 24, requires_grad=True)
    ours = layer(x)
    weights = torch.randn_like(ours)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), x)
    theirs = nn.functional.linear(x, layer.weight, layer.bias)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), x)
    assert torch.allclose(ours, theirs, atol=1e-5) and torch.allclose(gradient, expected, atol=1e-5)
