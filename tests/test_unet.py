"""The U-Net against diffusers' on the same random weights, in float64; and proof that each comparison can
fail."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from referees import TOLERANCE, Record, distance, draw, redraw, unet_state
from torch import Tensor, nn
from torch.nn import functional as F

from ddgen.nets import attention, layers, unet
from ddgen.nets.config import UNetConfig
from ddgen.nets.layers import guidance_embedding, position_channels, timestep_embedding
from ddgen.nets.unet import UNet


@dataclass(frozen=True)
class Case:
    """One family in miniature: our configuration, and what diffusers must be told in its own words."""

    config: UNetConfig
    theirs: dict[str, object] = field(default_factory=dict)
    size: tuple[int, int] = (16, 16)
    vector: str = "add_embedding"


SD1 = UNetConfig(
    model_channels=32, channel_mult=(1, 2, 4), heads=(4, 4, 4), context_dim=24,
    down_depth=((1, 1), (1, 1), (0, 0)), up_depth=((1, 1, 1), (1, 1, 1), (0, 0, 0)),
)  # fmt: skip
SDXL = UNetConfig(
    model_channels=32, channel_mult=(1, 2, 4), heads=(2, 4, 8), context_dim=40, linear_projection=True,
    down_depth=((0, 0), (1, 1), (2, 2)), up_depth=((0, 0, 0), (1, 1, 1), (2, 2, 2)), mid_depth=2,
    vector_dim=20 + 6 * 8,
)  # fmt: skip
TEXT_TIME: dict[str, object] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 68,
    "attention_head_dim": (2, 4, 8),
}
CASES = {
    "sd1": Case(SD1),
    "sd2": Case(replace(SD1, linear_projection=True, heads=(2, 4, 8)), {"attention_head_dim": (2, 4, 8)}),
    "odd": Case(SD1, size=(13, 11)),
    "inpaint": Case(replace(SD1, in_channels=9)),
    "sdxl": Case(SDXL, TEXT_TIME | {"transformer_layers_per_block": (1, 1, 2)}),
    "ssd1b": Case(
        replace(
            SDXL, mid_depth=0,
            down_depth=((0, 0), (2, 1), (1, 2)), up_depth=((0, 0, 0), (1, 2, 1), (2, 1, 3)),
        ),
        TEXT_TIME
        | {
            "transformer_layers_per_block": [[0, 0], [2, 1], [1, 2]],
            "reverse_transformer_layers_per_block": [[2, 1, 3], [1, 2, 1], 1],
            "mid_block_type": "UNetMidBlock2D",
        },
    ),
    "tiny": Case(
        replace(
            SD1, num_res_blocks=1, mid_depth=None,
            down_depth=((1,), (1,), (1,)), up_depth=((1, 1), (1, 1), (1, 1)),
        ),
        {"layers_per_block": 1, "mid_block_type": None},
    ),
    "lcm": Case(replace(SD1, guidance_dim=12), {"time_cond_proj_dim": 12}),
    "sticker": Case(
        UNetConfig(
            in_channels=12, out_channels=12, model_channels=32, channel_mult=(1, 2), heads=(4, 4),
            num_res_blocks=1, down_depth=((0,), (1,)), up_depth=((0, 0), (1, 1)),
            context_dim=24, vector_dim=36, position_channels=16,
        ),
        {
            "in_channels": 28, "out_channels": 12, "layers_per_block": 1,
            "class_embed_type": "projection", "projection_class_embeddings_input_dim": 36,
        },
        size=(8, 12),
        vector="class_embedding",
    ),
}  # fmt: skip


TIME = torch.tensor([3.0, 812.4], dtype=torch.float64)
GUIDANCE = torch.tensor([8.5, 1.75], dtype=torch.float64)
SIZES = torch.tensor([[1024, 768, 0, 16, 1024, 1024], [512, 640, 32, 0, 512, 512]], dtype=torch.float64)


def ours(network: UNet, case: Case) -> Tensor:
    config = case.config
    vector = draw(2, config.vector_dim, seed=3) if config.vector_dim else None
    if vector is not None and case.vector == "add_embedding":
        vector[:, 20:] = timestep_embedding(SIZES.flatten(), 8).view(2, 48)
    x, context = draw(2, config.in_channels, *case.size, seed=1), draw(2, 7, config.context_dim, seed=2)
    with torch.inference_mode():
        return network(x, TIME, context, vector, GUIDANCE if config.guidance_dim else None)


def theirs(referee: UNet2DConditionModel, case: Case) -> Tensor:
    config = case.config
    x, context = draw(2, config.in_channels, *case.size, seed=1), draw(2, 7, config.context_dim, seed=2)
    vector = draw(2, config.vector_dim, seed=3)
    options: dict[str, object] = {}
    if case.vector == "class_embedding":
        options["class_labels"] = vector
    elif config.vector_dim:
        options["added_cond_kwargs"] = {"text_embeds": vector[:, :20], "time_ids": SIZES}
    if config.position_channels:
        x = torch.cat([x, coordinates(*case.size)], dim=1)
    if config.guidance_dim:
        sinusoid = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        options["timestep_cond"] = sinusoid(
            SimpleNamespace(), GUIDANCE.float() - 1, config.guidance_dim
        ).double()
    with torch.inference_mode():
        return referee(x, TIME, context, **options).sample


def build_theirs(case: Case) -> UNet2DConditionModel:
    config = case.config
    down = ["CrossAttnDownBlock2D" if any(depths) else "DownBlock2D" for depths in config.down_depth]
    up = ["CrossAttnUpBlock2D" if any(depths) else "UpBlock2D" for depths in reversed(config.up_depth)]
    options: dict[str, object] = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": tuple(config.model_channels * m for m in config.channel_mult),
        "layers_per_block": config.num_res_blocks,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": config.heads[0],
        "use_linear_projection": config.linear_projection,
    }
    return UNet2DConditionModel(**(options | case.theirs)).double().eval()


def coordinates(height: int, width: int) -> Tensor:
    """The 16 position channels, written out place by place. (2, 16, height, width)"""
    grid = torch.empty(16, height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            x, y = (j + 0.5) / width * 2 - 1, (i + 0.5) / height * 2 - 1
            place = [x, y, x * y, x * x + y * y]
            for k in (1, 2, 3):
                place += [math.sin(math.pi * k * x), math.cos(math.pi * k * x)]
                place += [math.sin(math.pi * k * y), math.cos(math.pi * k * y)]
            grid[:, i, j] = torch.tensor(place, dtype=torch.float64)
    return grid.expand(2, -1, -1, -1)


def difference(name: str, change: Callable[[UNet], None] = lambda network: None) -> float:
    """Build both networks with the same weights, change ours, and return how far apart they land."""
    case = CASES[name]
    network = UNet(case.config).double().eval()
    redraw(network, seed=0)
    referee = build_theirs(case)
    referee.load_state_dict(unet_state(network, case.config, vector=case.vector), strict=True)
    change(network)
    return distance(ours(network, case), theirs(referee, case))


@pytest.mark.parametrize("name", CASES)
def test_equals_the_referee(name: str, record_property: Record) -> None:
    found = difference(name)
    record_property("U-Net, against diffusers", found)
    assert found <= TOLERANCE


class Altered:
    """A module with some of its functions replaced, so that the referee keeps the true ones."""

    def __init__(self, module: ModuleType, **changes: Callable[..., Tensor]) -> None:
        self._module, self._changes = module, changes

    def __getattr__(self, name: str) -> object:
        return self._changes.get(name) or getattr(self._module, name)


def set_eps(kind: type[nn.Module], old: float, new: float) -> Callable[[UNet], None]:
    def change(network: UNet) -> None:
        norms = [m for m in network.modules() if isinstance(m, kind) and m.eps == old]
        assert norms
        for norm in norms:
            norm.eps = new

    return change


def without_silu(network: UNet) -> None:
    for module in network.modules():
        if isinstance(module, layers.ResBlock):
            module.emb_layers[0] = nn.Identity()


def fewer_heads(network: UNet) -> None:
    for module in network.modules():
        if isinstance(module, attention.Attention):
            module.heads = 2


def flat_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])


def swap(sinusoid: Tensor) -> Tensor:
    return sinusoid.roll(sinusoid.shape[-1] // 2, dims=-1)


def pad_at_the_end(self: layers.Downsample, x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.op.weight, self.op.bias, stride=2)


def bilinear(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear")


def gelu_first(self: attention.GEGLU, x: Tensor) -> Tensor:
    gate, h = self.proj(x).chunk(2, dim=-1)
    return h * F.gelu(gate)


NETWORK_MUTATIONS = {
    "eps of the residual blocks": ("sd1", set_eps(nn.GroupNorm, 1e-5, 1e-6)),
    "eps of the transformers": ("sd1", set_eps(nn.GroupNorm, 1e-6, 1e-5)),
    "eps of the layer norms": ("sdxl", set_eps(nn.LayerNorm, 1e-5, 1e-6)),
    "SiLU on the embedding": ("sd1", without_silu),
    "heads": ("sd1", fewer_heads),
}
PATCHES = {
    "sin before cos": ("sd1", unet, "timestep_embedding", lambda t, dim: swap(timestep_embedding(t, dim))),
    "cos before sin": ("lcm", unet, "guidance_embedding", lambda w, dim: swap(guidance_embedding(w, dim))),
    "skip before x": (
        "sd1",
        unet,
        "torch",
        Altered(torch, cat=lambda parts, dim: torch.cat(parts[::-1], dim)),
    ),
    "tanh GELU": ("sd1", attention, "F", Altered(F, gelu=lambda x: F.gelu(x, approximate="tanh"))),
    "gate before value": ("sd1", attention.GEGLU, "forward", gelu_first),
    "attention scale": ("sd1", attention, "F", Altered(F, scaled_dot_product_attention=flat_scale)),
    "downsample padding": ("sd1", layers.Downsample, "forward", pad_at_the_end),
    "bilinear upsampling": ("odd", layers, "F", Altered(F, interpolate=bilinear)),
    "x and y": (
        "sticker",
        unet,
        "position_channels",
        lambda h, w, **o: position_channels(w, h, **o).transpose(1, 2),
    ),
}


@pytest.mark.parametrize("name", NETWORK_MUTATIONS)
def test_a_changed_network_is_noticed(name: str) -> None:
    case, change = NETWORK_MUTATIONS[name]
    assert difference(case, change) > TOLERANCE


@pytest.mark.parametrize("name", PATCHES)
def test_changed_mathematics_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, owner, attribute, value = PATCHES[name]
    monkeypatch.setattr(owner, attribute, value)
    assert difference(case) > TOLERANCE


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_inference_takes_another_road_to_the_same_place(name: str) -> None:
    """In float32 without gradients the linear layers run elsewhere than in training; only rounding may
    differ."""
    case = CASES[name]
    network = redraw(UNet(case.config).eval(), seed=0)
    x, context = (
        draw(2, case.config.in_channels, 9, 11, seed=1).float(),
        draw(2, 7, case.config.context_dim, seed=2).float(),
    )
    vector = draw(2, case.config.vector_dim, seed=3).float() if case.config.vector_dim else None
    trained = network(x, TIME, context, vector)
    with torch.no_grad():
        assert distance(network(x, TIME, context, vector), trained.detach()) <= 2e-5
    trained.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_linear_in_inference(bias: bool) -> None:
    layer = redraw(layers.Linear(48, 20, bias=bias), seed=0)
    for x in (
        draw(3, 5, 48, seed=1).float(),
        draw(3, 48, 5, seed=2).float().transpose(1, 2),
        draw(4, 48, seed=3).float(),
    ):
        with torch.inference_mode():
            assert distance(layer(x), F.linear(x, layer.weight, layer.bias)) <= 1e-5


def test_a_batch_is_its_images() -> None:
    """Nothing in the network mixes the images of a batch."""
    network = redraw(UNet(SDXL).double().eval(), seed=0)
    x, context, vector = draw(3, 4, 8, 8, seed=1), draw(3, 7, 40, seed=2), draw(3, 68, seed=3)
    time = torch.tensor([1.0, 500.0, 999.0], dtype=torch.float64)
    with torch.inference_mode():
        together = network(x, time, context, vector)
        alone = [
            network(x[i : i + 1], time[i : i + 1], context[i : i + 1], vector[i : i + 1]) for i in range(3)
        ]
    assert distance(together, torch.cat(alone)) <= 1e-12
