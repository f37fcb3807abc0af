"""The calls that are timed inside a warm process; each function prepares one and returns it.

    python -m bench.workers NAME [ARGUMENT...]          NAME: a function here, or MODULE:FUNCTION

prints "ready" when prepared, then, for every line on standard input, runs the call and prints its seconds.
Ours and the peer's get the same random weights: how fast a network is does not depend on them.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

Call = Callable[[], object]
SIDE = 64  # latent cells of a 512 x 512 picture


def sticker_calls() -> Call:
    """The network calls of one default sample of the embedded model, both branches in a batch, and nothing
    else."""
    from ddgen.app.pipeline import Pipeline

    pipeline = Pipeline.load()
    network, arch, defaults = pipeline.denoiser.network, pipeline.spec.arch, pipeline.spec.defaults
    stage = arch.first_stage
    x = torch.randn(2, stage.channels, defaults.height // stage.factor, defaults.width // stage.factor)
    cond = pipeline.text.encode(["a red apple", ""])
    time_ = torch.full((2,), 500.0)
    return lambda: [network(x, time_, cond.context, cond.vector) for _ in range(defaults.steps)]


def sticker_sample() -> Call:
    """One default sample from a loaded pipeline, to a picture in memory."""
    from ddgen.app.pipeline import Pipeline, generate
    from ddgen.request import Request

    pipeline = Pipeline.load()
    return lambda: generate(pipeline, Request(prompts=("a red apple",), seed=7))


def batch_of_eight() -> Call:
    """Eight prompts through a loaded pipeline in one tensor batch."""
    jobs, pipeline = _eight_jobs()
    from ddgen.app.pipeline import run

    return lambda: run(pipeline, jobs)


def loop_of_eight() -> Call:
    """The same eight prompts one after the other."""
    jobs, pipeline = _eight_jobs()
    from ddgen.app.pipeline import run

    return lambda: [run(pipeline, [job]) for job in jobs]


def _eight_jobs() -> tuple[list[Any], Any]:
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.plan import plan
    from ddgen.request import Request

    pipeline = Pipeline.load()
    prompts = tuple(f"a red apple number {index}" for index in range(8))
    return list(plan(Request(prompts=prompts, seed=7), pipeline.spec)), pipeline


def random_weights(network: nn.Module, *, empty: bool = True) -> nn.Module:
    """Fill a network built on the meta device with numbers that keep its activations near unit size."""
    network = network.to_empty(device="cpu") if empty else network
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            reach = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-reach, reach, generator=generator)
        else:
            parameter.uniform_(0.9, 1.1, generator=generator)
    return network.eval()


def sd15_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, SIDE, SIDE), torch.full((2,), 500.0), torch.randn(2, 77, 768)


def step_ours() -> Call:
    """One guided step (both branches) of an SD1.5-shaped U-Net at 512 x 512."""
    from ddgen.app.allocator import keep_freed_memory
    from ddgen.nets.config import UNetConfig
    from ddgen.nets.unet import UNet

    keep_freed_memory()
    with torch.device("meta"):
        network = UNet(UNetConfig())
    random_weights(network)
    inputs = sd15_inputs()
    return lambda: network(*inputs)


def step_diffusers() -> Call:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(sample_size=SIDE, cross_attention_dim=768, attention_head_dim=8)
    random_weights(network)
    x, time_, context = sd15_inputs()
    return lambda: network(x, time_, context).sample


def decode_ours() -> Call:
    """One picture of 512 x 512 from its latents."""
    from ddgen.app.allocator import keep_freed_memory
    from ddgen.nets.config import KLConfig
    from ddgen.nets.vae import AutoencoderKL

    keep_freed_memory()
    with torch.device("meta"):
        network = AutoencoderKL(KLConfig())
    random_weights(network)
    latents = torch.randn(1, 4, SIDE, SIDE)
    return lambda: network.decode(latents)


def decode_diffusers() -> Call:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    random_weights(network)
    latents = torch.randn(1, 4, SIDE, SIDE)
    return lambda: network.decode(latents).sample


def write_unet(path: str) -> None:
    """Write an SD1.5-shaped U-Net in float16, as published files hold it (1.7 GB)."""
    from safetensors.torch import save_file

    from ddgen.nets.config import UNetConfig
    from ddgen.nets.unet import UNet

    with torch.device("meta"):
        network = UNet(UNetConfig())
    random_weights(network)
    save_file({f"model.diffusion_model.{k}": v.half() for k, v in network.state_dict().items()}, path)


def load_ours(path: str) -> Call:
    """A U-Net of a single file, from the file to float32 in memory, ready to run."""
    from ddgen.nets.config import UNetConfig
    from ddgen.nets.unet import UNet
    from ddgen.weights.checkpoint import load_module
    from ddgen.weights.layout import open_checkpoint

    def load() -> nn.Module:
        with torch.device("meta"):
            network = UNet(UNetConfig())
        part = open_checkpoint(Path(path)).part("unet")
        load_module(network, part, dtype=torch.float32, device=torch.device("cpu"), name="unet")
        return network

    return load


def load_safetensors(path: str) -> Call:
    """The same tensors as a dictionary, in float32."""
    from safetensors.torch import load_file

    return lambda: {name: tensor.float() for name, tensor in load_file(path).items()}


def main(name: str, *arguments: str) -> None:
    module, _, function = name.rpartition(":")
    prepare: Any = getattr(importlib.import_module(module), function) if module else globals()[name]
    with torch.inference_mode():
        call = prepare(*arguments)
        print(json.dumps("ready"), flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            kept = call()
            seconds = time.perf_counter() - start
            del kept
            print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
