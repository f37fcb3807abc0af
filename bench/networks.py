"""Calls of networks of the published shapes, ours and the peers', on random weights.

How fast a network is does not depend on its numbers, so parameters of one shape share one tensor: a network
of gigabytes is then ready at once. They are still more than a processor's caches hold. Functions return the
call, and the operations that the published arithmetic needs for it (both branches of a guided step in full).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ddgen.conditioning import Conditioning
    from ddgen.diffusion.denoiser import Denoiser

Call = Callable[[], object]
Counted = tuple[Call, float]
TOKENS = 77
SIGMA = 3.0
SCALE = 7.5
GEMM = 2048  # sides of the matrices whose product is the limit


def shared_weights(network: nn.Module, place: torch.device, dtype: torch.dtype) -> nn.Module:
    """Give a network of the meta device random weights that keep activations near unit size."""
    pool: dict[tuple[int, ...], nn.Parameter] = {}
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            if shape not in pool:
                drawn = torch.empty(shape)
                if len(shape) > 1:
                    reach = (3 / drawn[0].numel()) ** 0.5
                    drawn.uniform_(-reach, reach, generator=generator)
                else:
                    drawn.uniform_(0.9, 1.1, generator=generator)
                pool[shape] = nn.Parameter(drawn.to(place, dtype), requires_grad=False)
            setattr(module, name, pool[shape])
    return network.to(place).eval()


def operations(call: Call) -> float:
    """Return the operations of a call on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def place_of(device: str, *, keep: bool = True) -> tuple[torch.device, torch.dtype]:
    """Return a device and what networks compute in there. device: as torch names it; "cpu/bfloat16" asks the processor
    for 16 bits. keep: freed memory, on the processor, as runs do."""
    name, _, kind = device.partition("/")
    place = torch.device(name)
    if place.type == "cpu" and keep:
        from ddgen.app.allocator import keep_freed_memory

        keep_freed_memory()
    return place, torch.float32 if place.type == "cpu" and not kind else torch.bfloat16


def waited(call: Call, place: torch.device) -> Call:
    """Return a call that ends when the device has ended, too."""
    if place.type != "cuda":
        return call

    def whole() -> object:
        made = call()
        torch.cuda.synchronize()
        return made

    return whole


def gemm(device: str = "cpu") -> Counted:
    """A matrix product in the precision that the networks compute in; the faster of the ways that there are."""
    from ddgen.nets.layers import Linear

    place, dtype = place_of(device)
    layer = Linear(GEMM, GEMM, bias=False).to(place, dtype)
    x = torch.randn(GEMM, GEMM, device=place, dtype=dtype)
    weight = layer.weight
    return fastest([waited(lambda: layer(x), place), waited(lambda: x @ weight, place)]), 2.0 * GEMM**3


def fastest(calls: list[Call]) -> Call:
    """Return the call that was quicker in the second of two trials."""
    import time

    def seconds(call: Call) -> float:
        call()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return min(calls, key=seconds)


def told(family: str, side: int, batch: int, place: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return x of `batch` pictures and what both branches are told."""
    from ddgen.weights.arch import FAMILIES

    unet = FAMILIES[family].unet
    make = partial(torch.randn, device=place)
    vector = make(2 * batch, unet.vector_dim, dtype=dtype) if unet.vector_dim else None
    context = make(2 * batch, TOKENS, unet.context_dim, dtype=dtype)
    return {"x": make(batch, unet.in_channels, side, side), "context": context, "vector": vector}


def described(family: str, side: int, batch: int) -> tuple[Any, dict[str, Any], Tensor]:
    """Return our U-Net on the meta device, what it is told, and the rows of both branches in full: counting is free
    there."""
    meta = torch.device("meta")
    given = told(family, side, batch, meta, torch.float32)
    return meta_unet(family), given, given["x"].repeat(2, 1, 1, 1)


def meta_unet(family: str) -> nn.Module:
    """Return our U-Net of a family without numbers."""
    from ddgen.nets.unet import UNet
    from ddgen.weights.arch import FAMILIES

    with torch.device("meta"):
        return UNet(FAMILIES[family].unet)


def guided_work(family: str, side: int, batch: int) -> float:
    """Return the operations of both branches in full."""
    network, given, x = described(family, side, batch)
    return operations(lambda: network(x, x.new_zeros(len(x)), given["context"], given["vector"]))


def random_unet(family: str, place: torch.device, dtype: torch.dtype) -> Any:
    """Return our U-Net of a family with random weights."""
    return shared_weights(meta_unet(family), place, dtype)


def bound(
    network: Any, given: dict[str, Any], dtype: torch.dtype
) -> "tuple[Denoiser, Conditioning, Conditioning]":
    """Return a denoiser of the network, and what its branches with and without the prompt are told."""
    from ddgen.conditioning import Conditioning
    from ddgen.diffusion.denoiser import Denoiser
    from ddgen.diffusion.schedule import make_schedule

    count = len(given["x"])
    uncond, cond = (
        Conditioning(given["context"][rows], None if given["vector"] is None else given["vector"][rows])
        for rows in (slice(count), slice(count, None))
    )
    return Denoiser(network, "eps", make_schedule({"kind": "scaled_linear"}), dtype=dtype), cond, uncond


def step_ours(family: str, side: str, batch: str, device: str = "cpu", without: str = "") -> Counted:
    """A guided step as a run does it. side: latent cells. without: one of bench.without.WAYS that is left out."""
    from ddgen.diffusion.guidance import guided
    from ddgen.nets import layers, winograd
    from ddgen.nets.attention import remembering

    place, dtype = place_of(device, keep=without != "memory")
    layers.ONEDNN ^= without == "linear"
    winograd.QUICK &= without != "winograd"
    network = random_unet(family, place, dtype)
    network.one_for_many = without != "prefix"
    given = told(family, int(side), int(batch), place, dtype)
    denoiser, cond, uncond = bound(network, given, dtype)
    denoise = guided(denoiser, cond, uncond, scale=SCALE)
    if without == "batch":
        denoise = partial(_one_by_one, [guided(denoiser, one, None, scale=1.0) for one in (cond, uncond)])

    if without != "keys":
        remembering([network]).__enter__()  # for as long as the worker lives
    return waited(lambda: denoise(given["x"], SIGMA), place), guided_work(family, int(side), int(batch))


def _one_by_one(branches: list[Callable[[Tensor, float], Tensor]], x: Tensor, sigma: float) -> Tensor:
    d_cond, d_uncond = (branch(x, sigma) for branch in branches)
    return d_uncond + SCALE * (d_cond - d_uncond)


def step_diffusers(family: str, side: str, batch: str, device: str = "cpu", how: str = "eager") -> Counted:
    """The same as diffusers' pipelines do it. how: "eager" or "compiled"."""
    from diffusers import UNet2DConditionModel

    place, dtype = place_of(device)
    unet = diffusers_unet(family)
    shared_weights(unet, place, dtype)
    assert isinstance(unet, UNet2DConditionModel)
    network: Any = torch.compile(unet) if how == "compiled" else unet
    given = told(family, int(side), int(batch), place, dtype)
    time = torch.tensor(500.0, device=place)
    more = None
    if given["vector"] is not None:
        ids = torch.ones(2 * int(batch), 6, device=place, dtype=dtype)
        more = {"text_embeds": given["vector"][:, :1280], "time_ids": ids}

    def step() -> Tensor:
        x = torch.cat([given["x"]] * 2).to(dtype)
        out = network(x, time, given["context"], added_cond_kwargs=more).sample.float()
        uncond, cond = out.chunk(2)
        return uncond + SCALE * (cond - uncond)

    return waited(step, place), guided_work(family, int(side), int(batch))


def diffusers_unet(family: str) -> nn.Module:
    """Return diffusers' U-Net of a family on the meta device."""
    from diffusers import UNet2DConditionModel

    from ddgen.weights.arch import FAMILIES
    from ddgen.weights.export import unet_config

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(unet_config(FAMILIES[family]))


def vae_ours(what: str, side: str, tile: str = "0") -> Counted:
    """One picture to its latents ("encode") or back ("decode"). side, tile: latent cells; tile 0 is none."""
    from ddgen.nets.config import KLConfig
    from ddgen.nets.tiling import Tiling
    from ddgen.nets.vae import AutoencoderKL

    place, dtype = place_of("cpu")
    with torch.device("meta"):
        stage, shape = AutoencoderKL(KLConfig()), AutoencoderKL(KLConfig())
    shared_weights(stage, place, dtype)
    if int(tile):
        stage.tiling = Tiling(int(tile), int(tile) // 4)
    given = vae_input(what, int(side), place)
    work = operations(lambda: getattr(shape, what)(vae_input(what, int(side), torch.device("meta"))))
    return lambda: getattr(stage, what)(given), work


def vae_diffusers(what: str, side: str, tile: str = "0") -> Counted:
    """The same with diffusers."""
    from diffusers import AutoencoderKL

    place, dtype = place_of("cpu")
    with torch.device("meta"):
        stage = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    shared_weights(stage, place, dtype)
    if int(tile):
        stage.enable_tiling()
        stage.tile_latent_min_size, stage.tile_sample_min_size = int(tile), 8 * int(tile)
    given = vae_input(what, int(side), place)
    if what == "encode":
        return lambda: stage.encode(given).latent_dist.mode(), 0.0
    return lambda: stage.decode(given).sample, 0.0


def vae_input(what: str, side: int, place: torch.device) -> Tensor:
    if what == "encode":
        return torch.randn(1, 3, 8 * side, 8 * side, device=place).clamp(-1, 1)
    return torch.randn(1, 4, side, side, device=place)


def step_openvino(family: str, side: str, batch: str) -> Counted:
    """diffusers' U-Net converted to OpenVINO, in float32."""
    import openvino

    from diffusers import UNet2DConditionModel

    unet = diffusers_unet(family)
    shared_weights(unet, torch.device("cpu"), torch.float32)
    assert isinstance(unet, UNet2DConditionModel)
    given = told(family, int(side), int(batch), torch.device("cpu"), torch.float32)

    class Plain(nn.Module):
        """The network with tensors for arguments and result."""

        def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
            return unet(x, time, context, return_dict=False)[0]

    x = torch.cat([given["x"]] * 2)
    arguments = (x, torch.full((len(x),), 500.0), given["context"])
    converted = openvino.convert_model(Plain(), example_input=arguments)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(converted, "CPU", hint)
    arrays = [argument.numpy() for argument in arguments]
    return lambda: compiled(arrays), guided_work(family, int(side), int(batch))


def write_unet(family: str, path: str) -> None:
    """Write a U-Net in float16 under the published names."""
    from safetensors.torch import save_file

    from ddgen.nets.unet import UNet
    from ddgen.weights.arch import FAMILIES

    with torch.device("meta"):
        network = UNet(FAMILIES[family].unet)
    shared_weights(network, torch.device("cpu"), torch.float16)
    save_file({f"model.diffusion_model.{k}": v.clone() for k, v in network.state_dict().items()}, path)


def write_checkpoint(path: str) -> None:
    """Write a whole SD1.5-shaped file in float16 (2.1 GB), as they are published."""
    from safetensors.torch import save_file

    from ddgen.app.assemble import part_modules
    from ddgen.weights.arch import FAMILIES

    prefixes = {
        "unet": "model.diffusion_model.",
        "first_stage": "first_stage_model.",
        "text.0": "cond_stage_model.transformer.text_model.",
    }
    tensors = {}
    with torch.device("meta"):
        parts = part_modules(FAMILIES["SD15"])
    for part, module in parts.items():
        shared_weights(module, torch.device("cpu"), torch.float16)
        tensors |= {prefixes[part] + name: value.clone() for name, value in module.state_dict().items()}
    save_file(tensors, path)


def load(how: str, family: str, path: str, dtype: str) -> Call:
    """A U-Net from its file: "ours", ready to run, or "safetensors", as a dictionary of tensors.

    load_file only maps the file: in the same dtype, nothing would be read without the copy."""
    kind = getattr(torch, dtype)
    if how == "safetensors":
        from safetensors.torch import load_file

        return lambda: {name: tensor.to(kind, copy=True) for name, tensor in load_file(path).items()}
    from ddgen.nets.unet import UNet
    from ddgen.weights.arch import FAMILIES
    from ddgen.weights.checkpoint import load_module, open_checkpoint, unfilled

    def ready() -> nn.Module:
        with unfilled():
            network = UNet(FAMILIES[family].unet)
        load_module(network, open_checkpoint(Path(path)).part("unet"), dtype=kind, name="unet")
        return network

    return ready
