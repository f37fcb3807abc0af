"""T2I-Adapters and image prompts (IP-Adapter) against diffusers in float64, whole pictures, SD1- and SDXL-shaped;
files of every layout; and that a change of our side is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import T2IAdapter as TheirAdapter
from diffusers import UNet2DConditionModel
from referees import Record, redraw, unet_state
from safetensors.torch import save_file
from test_parity_pipelines import (
    FAMILIES,
    TOLERANCE,
    asked,
    build,
    in_double,
    jobs_of,
    their_pipeline,
    their_relative,
    vocabulary,
)
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ddgen.app import image_prompt
from ddgen.app.control import Control
from ddgen.app.image_prompt import ImagePrompt
from ddgen.app.pipeline import Pipeline, sample
from ddgen.app.verbs import ControlFile
from ddgen.errors import DdgenError
from ddgen.nets import image_tokens
from ddgen.nets.config import TokensConfig
from ddgen.nets.image_tokens import ImageReader, cross_attentions
from ddgen.nets.t2i_adapter import AdapterConfig, T2IAdapter
from ddgen.nets.unet import UNet
from ddgen.text.vision import VisionTower, prepare
from ddgen.weights.control import control_part, is_adapter, load_adapter
from ddgen.weights.image_prompt import check_reader, load_reader
from ddgen.weights.vision import find_tower, load_tower

__all__ = ["in_double", "vocabulary"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
CPU = torch.device("cpu")
PICTURES = [np.random.default_rng(i).random((1, 3, 64, 64)) for i in (1, 2)]
T2I = {
    "sd1 ddim": ("t2i_adapter.StableDiffusionAdapterPipeline", AdapterConfig(channels=(32, 64))),
    "sdxl euler": ("t2i_adapter.StableDiffusionXLAdapterPipeline", AdapterConfig(factor=16, channels=(32, 64))),
}


def kind_of(config: AdapterConfig) -> str:
    return "light_adapter" if config.light else "full_adapter_xl" if config.factor == 16 else "full_adapter"


def their_names(state: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """Return an adapter's weights as diffusers names them, from ours."""
    found = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "body" and config.light:
            name = name.replace(".body.", ".resnets.")
        elif parts[0] == "body":
            stage, block = divmod(int(parts[1]), config.blocks)
            inner = "" if parts[2] == "in_conv" else f"resnets.{block}."
            name = f"body.{stage}.{inner}{'.'.join(parts[2:])}"
        found[f"adapter.{name}"] = tensor
    return found


def their_adapter(network: T2IAdapter) -> TheirAdapter:
    config = network.config
    channels = config.channels[:-1] if config.light else config.channels
    theirs = TheirAdapter(
        config.colours, list(channels), config.blocks, config.factor, kind_of(config)
    ).double()
    theirs.load_state_dict(their_names(network.state_dict(), config))
    return theirs.eval()


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(channels=(8, 16, 32, 32)),
        AdapterConfig(colours=1, channels=(8, 16, 32, 32)),
        AdapterConfig(factor=16, channels=(8, 16, 32, 32)),
        AdapterConfig(channels=(8, 16, 32, 32), blocks=4, light=True),
    ],
    ids=["full", "grey", "xl", "light"],
)
def test_features_equal_diffusers(config: AdapterConfig) -> None:
    network = redraw(T2IAdapter(config).double().eval(), 3)
    picture = torch.from_numpy(np.random.default_rng(1).random((1, 3, 128, 192)))
    grey = (picture * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    with torch.no_grad():
        found = network(picture)
        expected = their_adapter(network)(picture if config.colours == 3 else grey)
    assert [f.shape for f in found] == [e.shape for e in expected]
    assert max((f - e).abs().max().item() for f, e in zip(found, expected, strict=True)) < 1e-10


def test_where_features_are_added_equals_diffusers() -> None:
    """Three levels as SDXL has them, so that a fourth feature reaches the middle."""
    config = replace(
        FAMILIES["sdxl euler"].arch.unet, channel_mult=(1, 2, 2), heads=(2, 4, 4), vector_dim=0,
        down_depth=((0,), (2,), (2,)), up_depth=((0, 0), (2, 2), (2, 2)),
    )  # fmt: skip
    network = redraw(UNet(config).double().eval(), 1)
    kinds = ["", "CrossAttn", "CrossAttn"]
    theirs = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64, 64), layers_per_block=1, cross_attention_dim=80,
        attention_head_dim=(2, 4, 4), down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)), use_linear_projection=True,
        transformer_layers_per_block=[1, 2, 2],
    ).double().eval()  # fmt: skip
    theirs.load_state_dict(unet_state(network, config))
    draw = np.random.default_rng(4).standard_normal
    x, context = torch.from_numpy(draw((2, 4, 16, 16))), torch.from_numpy(draw((2, 77, 80)))
    shapes = [(32, 8), (64, 8), (64, 4), (64, 4)]
    features = [torch.from_numpy(draw((1, width, side, side))) for width, side in shapes]
    time = torch.full((2,), 500.0)
    with torch.no_grad():
        found = network(x, time, context, features=features)
        spread = [feature.expand(2, -1, -1, -1).clone() for feature in features]
        expected = theirs(x, time, context, down_intrablock_additional_residuals=spread).sample
        plain = network(x, time, context)
        last = network(x, time, context, features=features[:3])
    assert (found - expected).abs().max() < 1e-10
    assert (found - plain).abs().max() > 0.1 and (found - last).abs().max() > 1e-3, "each is seen"


def features_of(pipeline: Pipeline, config: AdapterConfig, count: int) -> tuple[list[T2IAdapter], list[Control]]:
    networks = [redraw(T2IAdapter(config).double().eval(), 20 + i) for i in range(count)]
    with torch.no_grad():
        controls = [
            Control(None, None, weight, features=tuple(network(torch.from_numpy(picture))))
            for network, picture, weight in zip(networks, PICTURES, (0.8, 1.3), strict=False)
        ]
    return networks, controls


@pytest.mark.parametrize(("name", "count"), [("sd1 ddim", 1), ("sd1 ddim", 2), ("sdxl euler", 1)])
def test_adapters_equal_diffusers(
    name: str, count: int, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    family, (place, config) = FAMILIES[name], T2I[name]
    ours = build(family)
    networks, controls = features_of(ours, config, count)
    base = their_pipeline(family, ours, vocabulary, monkeypatch)
    adapters = [their_adapter(network) for network in networks]
    theirs = their_relative(place, base, adapter=adapters if count > 1 else adapters[0])
    pictures = [torch.from_numpy(picture).expand(2, -1, -1, -1) for picture in PICTURES[:count]]
    weights = [control.weight for control in controls]
    expected = theirs(
        **asked(
            image=pictures if count > 1 else pictures[0],
            width=64,
            height=64,
            adapter_conditioning_scale=weights if count > 1 else weights[0],
        )
    ).images

    def difference(used: list[Control]) -> float:
        with torch.inference_mode():
            return (sample(ours, jobs_of(family, ours), controls=used) - expected).abs().max().item()

    found = difference(controls)
    record_property("whole picture with T2I-Adapters, against diffusers", found)
    assert found < TOLERANCE
    first, *others = controls
    for mutated in (
        replace(first, weight=first.weight * 1.001),
        replace(first, end=0.5),
        replace(first, features=tuple(feature.flip(-1) for feature in first.features)),
        replace(first, features=(first.features[0], torch.zeros_like(first.features[1]))),
    ):
        assert difference([mutated, *others]) > 10 * TOLERANCE


@pytest.mark.parametrize("layout", ["published", "prefixed", "diffusers", "light", "light diffusers"])
def test_adapter_files_of_every_layout_are_read(layout: str, tmp_path: Path) -> None:
    config = AdapterConfig(channels=(32, 64), light="light" in layout, blocks=4 if "light" in layout else 2)
    network = redraw(T2IAdapter(config).float().eval(), 5)
    state = network.state_dict()
    if layout == "prefixed":
        state = {f"adapter.{name}": tensor for name, tensor in state.items()}
    elif "diffusers" in layout:
        state = their_names(state, config)
    path = tmp_path / "a.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    assert is_adapter(control_part(path))
    unet = FAMILIES["sd1 ddim"].arch.unet
    loaded = load_adapter(path, unet, torch.float32, CPU)
    assert loaded.config == config
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    for other in (FAMILIES["sdxl euler"].arch.unet, replace(unet, model_channels=64)):
        with pytest.raises(DdgenError, match="another family") as caught:
            load_adapter(path, other, torch.float32, CPU)
        assert caught.value.exit_code == 5


def test_an_adapter_from_its_file_to_the_picture(tmp_path: Path) -> None:
    from ddgen.app import verbs
    from ddgen.app.pipeline import run

    family = FAMILIES["sd1 ddim"]
    pipeline = build(family)
    pipeline.denoiser.dtype = torch.float64
    network = redraw(T2IAdapter(AdapterConfig(channels=(32, 64))).double().eval(), 5)
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jobs = [replace(jobs_of(family, pipeline)[0], steps=2)]
    with torch.no_grad():
        seen = network(torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255)
    (expected,) = run(pipeline, jobs, controls=[Control(None, None, 0.7, features=tuple(seen))])
    file = ControlFile(tmp_path / "a.safetensors", picture, 0.7, 0.0, 1.0)
    (found,) = verbs.whole(None, [file])(pipeline, jobs, lambda step, steps: None)
    assert np.array_equal(found, expected) and not np.array_equal(found, run(pipeline, jobs)[0])
    assert list(pipeline.controls) == [tmp_path / "a.safetensors"], "loaded once, for all lines of a batch"


# Image prompts

SEES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "projection_dim": 24, "hidden_act": "gelu"}  # fmt: skip
STATES = 1 + (28 // 14) ** 2
KINDS = {
    "plain": TokensConfig("plain", 24, 0, 4),
    "plus": TokensConfig("plus", 32, 0, 6, inner=32, heads=1, depth=4, feed=128),
    "full": TokensConfig("full", 32, 0, 0),
}


def tower() -> tuple[VisionTower, CLIPVisionModelWithProjection]:
    theirs = redraw(CLIPVisionModelWithProjection(CLIPVisionConfig(**SEES)).double().eval(), 9)
    return VisionTower(SEES, theirs.state_dict()), theirs  # type: ignore[arg-type,return-value]


def reader_of(pipeline: Pipeline, kind: str, seed: int) -> ImageReader:
    widths = [module.to_out[0].out_features for module in cross_attentions(pipeline.denoiser.network)]  # type: ignore
    config = replace(KINDS[kind], width=pipeline.spec.arch.unet.context_dim)
    return redraw(ImageReader(config, widths).double().eval(), seed)  # type: ignore[return-value]


def published(reader: ImageReader) -> dict[str, Tensor]:
    """Return a reader's weights as the published files name them."""
    found = {}
    for name, tensor in reader.state_dict().items():
        parts = name.split(".")
        if parts[0] != "image_proj":
            name = f"ip_adapter.{2 * int(parts[1]) + 1}.{parts[0]}_ip.weight"
        found[name] = tensor
    return found


def nested(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        found[part][rest] = tensor
    return found


IP_CASES = [("sd1 ddim", ["plain"]), ("sd1 ddim", ["plus"]), ("sd1 ddim", ["full"]),
            ("sd1 ddim", ["plain", "plus"]), ("sdxl euler", ["plain"]), ("sdxl euler", ["plus"])]  # fmt: skip


@pytest.mark.parametrize(("name", "kinds"), IP_CASES, ids=lambda value: str(value))
def test_image_prompts_equal_diffusers(
    name: str, kinds: list[str], vocabulary: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    family = FAMILIES[name]
    ours = build(family)
    sees, theirs_sees = tower()
    readers = [reader_of(ours, kind, 30 + i) for i, kind in enumerate(kinds)]
    pictures = [np.random.default_rng(5 + i).integers(0, 256, (28, 28, 3), dtype=np.uint8) for i in range(2)]
    weights = (0.7, 0.4)[: len(kinds)]
    theirs = their_pipeline(family, ours, vocabulary, monkeypatch)
    theirs.set_progress_bar_config(disable=True)
    theirs.image_encoder = theirs_sees
    theirs.unet._load_ip_adapter_weights([nested(published(reader)) for reader in readers], low_cpu_mem_usage=False)
    theirs.unet.double()
    theirs.set_ip_adapter_scale(list(weights))
    pixels = [prepare(picture, 28).double() for picture in pictures[: len(kinds)]]
    expected = theirs(**asked(ip_adapter_image=[p.expand(2, -1, -1, -1) for p in pixels])).images

    def prompts() -> list[ImagePrompt]:
        with torch.no_grad():
            shown = [image_prompt.look(reader, sees, picture) for reader, picture in zip(readers, pictures, strict=False)]
        return [
            ImagePrompt(reader, weight, *tokens)
            for reader, weight, tokens in zip(readers, weights, shown, strict=True)
        ]

    def difference(used: list[ImagePrompt]) -> float:
        with torch.inference_mode():
            return (sample(ours, jobs_of(family, ours), pictures=used) - expected).abs().max().item()

    found = difference(prompts())
    record_property("whole picture with image prompts (IP-Adapter), against diffusers", found)
    assert found < TOLERANCE
    first, *others = prompts()
    mutations = [
        replace(first, weight=first.weight * 1.001),
        replace(first, tokens=first.nothing),
        replace(first, nothing=first.tokens),
    ]
    if kinds != ["plus"]:
        mutations = mutations[:1]
    for mutated in mutations:
        assert difference([mutated, *others]) > 10 * TOLERANCE
    if name == "sd1 ddim" and kinds == ["plus"]:
        for mutate in (another_order, no_zeros, states_of_the_last_block):
            with pytest.MonkeyPatch.context() as patched:
                mutate(patched)
                assert difference(prompts()) > 10 * TOLERANCE, mutate.__name__


def another_order(patched: pytest.MonkeyPatch) -> None:
    """The middle before the way up: other files are read so, too, without an error if widths allow."""
    before = image_tokens.cross_attentions

    def other(network: UNet) -> list[nn.Module]:
        *first, second, third, fourth = before(network)  # type: ignore[misc]
        return [*first, third, second, fourth]

    patched.setattr(image_tokens, "cross_attentions", other)


def no_zeros(patched: pytest.MonkeyPatch) -> None:
    before: Callable[..., tuple[Tensor, Tensor]] = image_prompt.look
    patched.setattr(image_prompt, "look", lambda *given: (before(*given)[0], torch.zeros_like(before(*given)[1])))


def states_of_the_last_block(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(
        VisionTower, "states",
        lambda self, pixels: self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1],
    )  # fmt: skip


def test_the_tower_sees_what_transformers_sees() -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    for high, wide in ((28, 28), (50, 41), (90, 200)):
        rows, columns = np.mgrid[:high, :wide]
        picture = np.stack([rows * 255 // high, columns * 255 // wide, (rows + columns) % 64 * 4], 2).astype(np.uint8)
        expected = processor(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        found = prepare(picture, 28)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 2 / 255 / 0.26, "as near as two bicubics are"
    ours, theirs = tower()
    pixels = prepare(picture, 28).double()
    with torch.no_grad():
        assert (ours.pooled(pixels) - theirs(pixel_values=pixels).image_embeds).abs().max() < 1e-10


OPEN = {"embed_dim": 24, "vision_cfg": {"image_size": 28, "layers": 3, "width": 32, "head_width": 16, "patch_size": 14,
        "mlp_ratio": 2.0}, "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}}  # fmt: skip


@pytest.mark.parametrize(("file", "quick"), [("open_clip_model.safetensors", False), ("open_clip_pytorch_model.bin", True)])
def test_the_tower_in_open_clips_layout_equals_open_clip(
    file: str, quick: bool, tmp_path: Path, record_property: Record
) -> None:
    from open_clip.model import CLIP

    theirs = redraw(CLIP(**OPEN, quick_gelu=quick).double().eval(), 9)
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    path = tmp_path / file
    torch.save(state, path) if path.suffix == ".bin" else save_file(state, path)
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": {**OPEN, "quick_gelu": quick}}))
    ours = load_tower(find_tower(str(tmp_path), path), torch.float64, CPU)
    assert ours.side == 28
    pixels = prepare(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8), 28).double()
    before: list[Tensor] = []
    theirs.visual.transformer.resblocks[-1].register_forward_pre_hook(lambda block, given: before.append(given[0]))
    with torch.no_grad():
        expected = theirs.encode_image(pixels)
        pooled = (ours.pooled(pixels) - expected).abs().max().item()
        states = (ours.states(pixels) - before[0]).abs().max().item()
    record_property("vision tower in open_clip's layout, against open_clip", max(pooled, states))
    assert max(pooled, states) < 1e-10 and expected.std() > 0.01 and before[0].shape == (1, STATES, 32)
    config.write_text(json.dumps({"model_cfg": {**OPEN, "quick_gelu": not quick}}))
    with torch.no_grad():
        other = load_tower(find_tower(str(tmp_path), path), torch.float64, CPU).pooled(pixels)
    assert (other - expected).abs().max() > 1e-4, "its activation is seen"
    for wrong, message in (
        ({**OPEN, "vision_cfg": {**OPEN["vision_cfg"], "layers": [1, 2, 3, 4]}}, "says no vision tower that can be read"),
        ({**OPEN, "embed_dim": 25}, "is not what its config says"),
    ):
        config.write_text(json.dumps({"model_cfg": wrong}))
        with pytest.raises(DdgenError, match=message) as caught:
            load_tower(find_tower(str(tmp_path), path), torch.float64, CPU)
        assert caught.value.exit_code == 5 and caught.value.hint


@pytest.mark.parametrize("layout", ["flat", "nested"])
@pytest.mark.parametrize("kind", KINDS)
def test_image_prompt_files_are_read(kind: str, layout: str, tmp_path: Path) -> None:
    pipeline = build(FAMILIES["sd1 ddim"])
    reader = reader_of(pipeline, kind, 5).float()
    state = {name: tensor.contiguous() for name, tensor in published(reader).items()}
    path = tmp_path / ("a.safetensors" if layout == "flat" else "a.bin")
    save_file(state, path) if layout == "flat" else torch.save(nested(state), path)
    widths = [module.out_features for module in reader.to_k]
    loaded = load_reader(path, widths, 32, torch.float32, CPU)
    assert loaded.config == replace(reader.config, tokens=0 if kind == "full" else reader.config.tokens)
    for name, tensor in reader.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with pytest.raises(DdgenError, match="tokens of 32 channels, the model reads 80") as caught:
        load_reader(path, widths, 80, torch.float32, CPU)
    assert caught.value.exit_code == 5
    with pytest.raises(DdgenError):
        load_reader(path, [*widths, 32], 32, torch.float32, CPU)


def test_files_that_are_no_image_prompts(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for names, message in (
        (["conv_in.weight"], "is no IP-Adapter"),
        (["image_proj.proj.0.weight", "image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"], "face recogniser"),
        (["image_proj.other", "ip_adapter.1.to_k_ip.weight"], "unknown projection"),
    ):
        save_file({name: torch.zeros(2, 2) for name in names}, path)
        with pytest.raises(DdgenError, match=message) as caught:
            check_reader(path)
        assert caught.value.exit_code == 5 and caught.value.hint
    with pytest.raises(DdgenError, match="no image encoder beside"):
        find_tower(None, path)
    with pytest.raises(DdgenError, match="--image-encoder '/none'"):
        find_tower("/none", path)


def test_an_image_prompt_from_its_files_to_the_picture(tmp_path: Path) -> None:
    from ddgen.app import verbs
    from ddgen.app.pipeline import run

    family = FAMILIES["sd1 ddim"]
    pipeline = build(family)
    pipeline.denoiser.dtype = torch.float64
    sees, theirs = tower()
    folder = tmp_path / "image_encoder"
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["x"], **SEES}))
    reader = reader_of(pipeline, "plain", 5)
    save_file({k: v.contiguous() for k, v in published(reader).items()}, tmp_path / "ip.safetensors")
    picture = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    jobs = [replace(jobs_of(family, pipeline)[0], steps=2)]
    with torch.no_grad():
        tokens = image_prompt.look(reader, sees, picture)
    (expected,) = run(pipeline, jobs, pictures=[ImagePrompt(reader, 0.6, *tokens)])
    file = verbs.PromptPicture(tmp_path / "ip.safetensors", find_tower(None, tmp_path / "ip.safetensors"), picture, 0.6)
    (found,) = verbs.whole(None, (), [file])(pipeline, jobs, lambda step, steps: None)
    assert np.array_equal(found, expected) and not np.array_equal(found, run(pipeline, jobs)[0])
    (folder / "config.json").write_text(json.dumps({**SEES, "hidden_size": 64}))
    with pytest.raises(DdgenError, match="is not what its config says"):
        load_tower(find_tower(str(folder), folder), torch.float64, CPU)
    (folder / "config.json").write_text("[]")
    with pytest.raises(DdgenError, match="is not a config"):
        load_tower(find_tower(str(folder), folder), torch.float64, CPU)
