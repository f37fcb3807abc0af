"""ControlNets: parity with diffusers in float64, one and two at a time; when they act; files of both
layouts."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from referees import Record, redraw
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
from test_edit_parity import MASK, NINE, PICTURE
from torch import Tensor

from ddgen.app.control import Control, changes
from ddgen.app.pipeline import Pipeline, sample
from ddgen.app.verbs import Source
from ddgen.io import images
from ddgen.nets.config import UNetConfig
from ddgen.nets.controlnet import ControlNet
from ddgen.nets.unet import UNet
from ddgen.request import Edit, Job
from ddgen.weights.control import control_part, load_control

__all__ = ["in_double", "vocabulary"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
HINTS = [np.random.default_rng(i).random((1, 3, 64, 64)) for i in (1, 2)]
PLACES = {
    "sd1 ddim": "controlnet.pipeline_controlnet.StableDiffusionControlNetPipeline",
    "sdxl euler": "controlnet.pipeline_controlnet_sd_xl.StableDiffusionXLControlNetPipeline",
}


def their_net(config: UNetConfig, network: ControlNet) -> ControlNetModel:
    """Return diffusers' ControlNet with our weights, renamed by its own order of execution."""
    kinds = ["CrossAttn" if depth[-1] else "" for depth in config.down_depth]
    options: dict[str, object] = {}
    if config.vector_dim:
        options = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": config.vector_dim,
            "transformer_layers_per_block": [max(1, depth[-1]) for depth in config.down_depth],
        }
    theirs = ControlNetModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=config.context_dim,
        attention_head_dim=(2, 4),
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        use_linear_projection=config.linear_projection,
        conditioning_embedding_out_channels=(16, 32, 96, 256),
        **options,
    ).double()
    theirs.load_state_dict(diffusers_state(network, config))
    return theirs.eval()


def diffusers_state(network: ControlNet, config: UNetConfig) -> dict[str, Tensor]:
    from referees import unet_state

    whole = UNet(config).double()
    trunk = {name: tensor for name, tensor in network.state_dict().items() if name in whole.state_dict()}
    whole.load_state_dict(trunk, strict=False)
    state = {
        name: tensor
        for name, tensor in unet_state(whole, config).items()
        if not name.startswith(("up_blocks", "conv_out", "conv_norm_out"))
    }
    for name, tensor in network.state_dict().items():
        if name in trunk:
            continue
        kind, index, *rest = name.split(".")
        if kind == "zero_convs":
            state[f"controlnet_down_blocks.{index}.{rest[-1]}"] = tensor
        elif kind == "middle_block_out":
            state[f"controlnet_mid_block.{rest[-1]}"] = tensor
        else:
            place = {0: "conv_in", 14: "conv_out"}.get(int(index), f"blocks.{int(index) // 2 - 1}")
            state[f"controlnet_cond_embedding.{place}.{rest[-1]}"] = tensor
    return state


def controls_of(pipeline: Pipeline, count: int) -> list[Control]:
    weights = ((0.8, 0.0, 1.0), (1.3, 0.2, 0.7))
    found = []
    for i, (weight, start, end) in enumerate(weights[:count]):
        config = replace(pipeline.spec.arch.unet, in_channels=4)
        network = redraw(ControlNet(config).double().eval(), 20 + i)
        with torch.no_grad():
            hint = network.hint(torch.from_numpy(HINTS[i]))
        found.append(Control(network, hint, weight, start, end))
    return found


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", PLACES)
def test_controls_equal_diffusers(
    name: str, count: int, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    family = FAMILIES[name]
    ours = build(family)
    controls = controls_of(ours, count)
    base = their_pipeline(family, ours, vocabulary, monkeypatch)
    nets = [their_net(ours.spec.arch.unet, control.network) for control in controls]
    theirs = their_relative(PLACES[name], base, controlnet=nets if count > 1 else nets[0])
    pictures = [torch.from_numpy(hint).expand(2, -1, -1, -1) for hint in HINTS[:count]]

    def one_or_all(values: list[object]) -> object:
        return values if count > 1 else values[0]

    expected = theirs(
        **asked(
            image=one_or_all(pictures),
            width=64,
            height=64,
            controlnet_conditioning_scale=one_or_all([control.weight for control in controls]),
            control_guidance_start=[control.start for control in controls],
            control_guidance_end=[control.end for control in controls],
        )
    ).images

    def difference(used: list[Control]) -> float:
        with torch.inference_mode():
            return (sample(ours, jobs_of(family, ours), controls=used) - expected).abs().max().item()

    found = difference(controls)
    record_property("whole picture with ControlNets, against diffusers", found)
    assert found < TOLERANCE
    if (name, count) != ("sd1 ddim", 2):
        return
    mutations = [
        [replace(controls[-1], weight=controls[-1].weight * 1.001), *controls[:-1]],
        [replace(controls[-1], end=0.5), *controls[:-1]],
        [replace(controls[-1], hint=controls[-1].hint.flip(-1)), *controls[:-1]],
        controls[:-1],
    ]
    for mutated in mutations:
        assert difference(mutated) > 10 * TOLERANCE


# Under a mask

MASKED = {
    "4 channels": (
        "sd1 ddim",
        "controlnet.pipeline_controlnet_inpaint.StableDiffusionControlNetInpaintPipeline",
        None,
        Edit("inpaint", strength=0.8),
    ),
    "9 channels": (
        "sd1 ddim",
        "controlnet.pipeline_controlnet_inpaint.StableDiffusionControlNetInpaintPipeline",
        NINE,
        Edit("inpaint"),
    ),
    "sdxl": (
        "sdxl euler",
        "controlnet.pipeline_controlnet_inpaint_sd_xl.StableDiffusionXLControlNetInpaintPipeline",
        None,
        Edit("inpaint", strength=0.6),
    ),
}


@pytest.mark.parametrize("case", MASKED)
def test_controls_under_a_mask_equal_diffusers(
    case: str, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    name, place, arch, record = MASKED[case]
    family = FAMILIES[name] if arch is None else replace(FAMILIES[name], arch=arch)
    ours = build(family)
    (control,) = controls_of(ours, 1)
    base = their_pipeline(family, ours, vocabulary, monkeypatch)
    config = replace(ours.spec.arch.unet, in_channels=4)
    module = importlib.import_module("diffusers.pipelines." + place.rpartition(".")[0])
    monkeypatch.setattr(module, "retrieve_latents", lambda found, *rest, **named: found.latent_dist.mode())
    theirs = their_relative(place, base, controlnet=their_net(config, control.network))
    pixels = torch.from_numpy(images.to_unit(PICTURE)).double() / 2 + 0.5
    expected = theirs(
        **asked(
            image=pixels.expand(2, -1, -1, -1),
            mask_image=torch.from_numpy(MASK[None, None]).double(),
            control_image=torch.from_numpy(HINTS[0]).expand(2, -1, -1, -1),
            strength=1.0 if record.strength is None else record.strength,
            width=64,
            height=64,
            controlnet_conditioning_scale=control.weight,
        )
    ).images

    def difference(used: list[Control], mask: np.ndarray = MASK) -> float:
        jobs = [replace(job, edit=record) for job in jobs_of(family, ours)]
        with torch.inference_mode():
            found = sample(ours, jobs, source=Source(PICTURE, mask), controls=used)
        return (found - expected).abs().max().item()

    found = difference([control])
    record_property("whole picture with a ControlNet under a mask, against diffusers", found)
    assert found < TOLERANCE
    mutations = [replace(control, weight=control.weight * 1.001), replace(control, hint=control.hint.flip(-1))]
    for mutated in mutations:
        assert difference([mutated]) > 10 * TOLERANCE
    assert difference([]) > 0.01 and difference([control], ~MASK) > 0.01


def test_when_a_control_acts() -> None:
    control = Control(None, None, 1.0, 0.2, 0.7)  # type: ignore[arg-type]
    assert [step for step in range(1, 11) if control.active(step, 10)] == [3, 4, 5, 6, 7]
    assert changes([control], 10) == {2, 7} and changes([replace(control, start=0.0, end=1.0)], 10) == set()


@pytest.mark.parametrize("layout", ["ldm", "bare", "diffusers"])
def test_files_of_every_layout_are_read(layout: str, tmp_path: Path) -> None:
    config = replace(FAMILIES["sd1 ddim"].arch.unet)
    network = redraw(ControlNet(config).eval().float(), 5)
    state = {
        "ldm": lambda: {f"control_model.{k}": v for k, v in network.state_dict().items()},
        "bare": network.state_dict,
        "diffusers": lambda: diffusers_state(network.double(), config),
    }[layout]()
    from safetensors.torch import save_file

    path = tmp_path / "c.safetensors"
    save_file({name: tensor.float().contiguous() for name, tensor in state.items()}, path)
    assert len(control_part(path)) == len(network.state_dict())
    loaded = load_control(path, replace(config, in_channels=4), torch.float32, torch.device("cpu"))
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.float()), name
    from ddgen.errors import DdgenError

    for other in (FAMILIES["sdxl euler"].arch.unet, replace(config, context_dim=64), replace(config, model_channels=64)):
        with pytest.raises(DdgenError, match="ControlNet 'c.safetensors' is made for another family of models") as caught:
            load_control(path, other, torch.float32, torch.device("cpu"))
        assert caught.value.exit_code == 5 and caught.value.hint
    with pytest.raises(DdgenError, match=r"middle_block\.1\.transformer_blocks\.1"):  # some are missing: damage
        load_control(path, replace(config, mid_depth=2), torch.float32, torch.device("cpu"))


def test_edges_are_thin_and_where_the_picture_has_them() -> None:
    from ddgen.app.maps import canny, control_map

    picture = np.full((48, 64, 3), 20, np.uint8)
    picture[12:36, 16:48] = 220
    edges = canny(picture)
    assert edges[20].sum() == 2 and edges[:, 30].sum() == 2, "one pixel wide, at both sides"
    assert not edges[18:30, 20:44].any() and not edges[:10].any()
    assert not canny(np.full((8, 8, 3), 90, np.uint8)).any()
    bold = control_map(picture, "scribble")
    assert bold.shape == picture.shape and (bold > 0).sum() > 3 * 3 * edges.sum()
    assert control_map(picture, "map") is picture


def steered(folder: Path, steps: int) -> tuple[Pipeline, list[Job], ControlNet, Path, np.ndarray]:
    """Return a pipeline, a job, a ControlNet with the file it is in, and a picture for it."""
    from safetensors.torch import save_file

    family = FAMILIES["sd1 ddim"]
    pipeline = build(family)
    pipeline.denoiser.dtype = torch.float64
    network = redraw(ControlNet(pipeline.spec.arch.unet).double().eval(), 5)
    save_file(network.state_dict(), folder / "c.safetensors")
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jobs = [replace(jobs_of(family, pipeline)[0], steps=steps)]
    return pipeline, jobs, network, folder / "c.safetensors", picture


@pytest.mark.parametrize("tile", ["", "x"])
def test_window_by_window_a_control_reads_what_is_under_the_window(tmp_path: Path, tile: str) -> None:
    from ddgen.app import control, verbs

    pipeline, (job,), _, path, picture = steered(tmp_path, steps=2)
    wide = np.concatenate([picture, picture[::-1], picture[:, ::-1]], 1)
    read: list[Tensor] = []
    file = verbs.ControlFile(path, wide, 0.7, 0.0, 1.0)
    loaded = control.load(pipeline, file).network
    assert loaded is not None
    loaded.input_hint_block.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    job = replace(job, width=192, height=64, tile=tile, edit=Edit("upscale", strength=1.0, window=64))

    def made(controls: list[verbs.ControlFile]) -> np.ndarray:
        (found,) = verbs.enlarged(wide, 192, 64, controls=controls)(pipeline, [job], lambda step, steps: None)
        return found

    steered_one = made([file])
    starts = [0, 48, 96, 144] if tile else [0, 40, 88, 128]
    assert len(read) == 2 * 4, "four windows, at each of two steps; no picture is read whole"
    columns = torch.from_numpy(np.concatenate([wide, wide], 1)).permute(2, 0, 1).double() / 255
    for number, seen in enumerate(read):
        start = starts[number % 4]
        assert torch.equal(seen[0], columns[:, :, start : start + 64])
    assert not np.array_equal(steered_one, made([])) and steered_one.shape == (64, 192, 3)


def test_a_control_from_its_file_to_the_picture(tmp_path: Path) -> None:
    from ddgen.app import verbs
    from ddgen.app.pipeline import run

    pipeline, jobs, network, path, picture = steered(tmp_path, steps=2)
    hint = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255
    with torch.no_grad():
        (expected,) = run(pipeline, jobs, controls=[Control(network, network.hint(hint), 0.7)])
    file = verbs.ControlFile(path, picture, 0.7, 0.0, 1.0)
    (found,) = verbs.whole(None, [file])(pipeline, jobs, lambda step, steps: None)
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, run(pipeline, jobs)[0])


def test_a_control_costs_its_own_forward_alone(tmp_path: Path) -> None:
    """The network runs as often as without; the control once at each step at which it acts; its picture is read once."""
    from ddgen.app import control, verbs
    from ddgen.app.pipeline import run

    pipeline, jobs, _, path, picture = steered(tmp_path, steps=10)
    calls: dict[str, int] = {}

    def counting(name: str, module: torch.nn.Module) -> None:
        module.register_forward_pre_hook(lambda *given: calls.update({name: calls.get(name, 0) + 1}))

    counting("unet", pipeline.denoiser.network.middle_block[0])
    run(pipeline, jobs)
    assert calls == {"unet": 10}
    calls.clear()
    file = verbs.ControlFile(path, picture, 0.7, 0.2, 0.7)
    loaded = control.load(pipeline, file).network
    counting("control", loaded.middle_block[0])
    counting("hint", loaded.input_hint_block)
    verbs.whole(None, [file])(pipeline, jobs, lambda step, steps: None)
    assert calls == {"unet": 10, "control": 5, "hint": 1}
