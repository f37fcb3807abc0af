"""Spec -> Pipeline: build on meta, load strictly, place on device and dtype.

    U-Net         bf16 or fp16 on GPUs that have it, bf16 on CPUs that have it where it pays, else float32
    text towers   float16 beside a half-precision U-Net on a GPU, else float32
    first stage   float32: SDXL's autoencoder overflows in float16, 8-bit pixels do not survive bf16

Every tensor is read once, from the file into the memory it stays in.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ddgen.app import kept, memory
from ddgen.app.allocator import give_back_freed_memory, keep_freed_memory
from ddgen.app.identity import weights_digests
from ddgen.app.pipeline import FirstStage, Pipeline, TextEncoder
from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.schedule import make_schedule
from ddgen.errors import ModelError, ResourceError, UsageError
from ddgen.nets.config import FirstStageConfig, KLConfig, PatchConfig
from ddgen.nets.unet import UNet
from ddgen.weights.arch import Arch, arch_from_json, arch_to_json, check_arch
from ddgen.weights.checkpoint import Checkpoint, load_module, open_checkpoint, read_tensors, unfilled
from ddgen.weights.header import product
from ddgen.weights.infer import first_stage_config as infer_first_stage
from ddgen.weights.infer import shapes_of
from ddgen.weights.registry import absent
from ddgen.weights.spec import Addition, Spec

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEVICES = ("auto", "cpu", "cuda", "mps")
TEXT_BACKENDS = ("native", "transformers", "open_clip")
LARGE = 100_000_000  # parameters; below, half precision saves nothing on a CPU


def assemble(
    spec: Spec,
    *,
    device: str = "auto",
    dtype: str = "auto",
    text_backend: str = "native",
    offload: str = "auto",
) -> Pipeline:
    """Load a Spec's weights and return the Pipeline that samples from them.

    offload: "parts" lets text towers, U-Net and autoencoder take turns on the device, "blocks" keeps weights in
    16 bits and brings each layer's when it runs; "auto" where they do not fit otherwise.

    Raises:
        ModelError: the weights are not here, damaged, or do not fit the Spec's Arch.
        ResourceError: a device or dtype that this machine does not have.
        UsageError: an unknown device, dtype or text backend.
    """
    place = choose_device(device)
    path = local_path(spec)
    found = open_checkpoint(path)
    check_arch(spec.arch, spec.name)
    if spec.ema:
        found = found.averaged()
    compute = choose_dtype(dtype, place, spec, found)
    text_dtype = torch.float16 if _half_gpu(compute, place) else torch.float32
    word = "none" if place.type == "cpu" and offload == "auto" and kept.holds() else offload  # loaded already
    mode = memory.offload_mode(word, place, weights_bytes(found, compute))
    turns, blocks = mode == "parts", mode == "blocks"
    if place.type == "cpu":
        give_back_freed_memory() if blocks else keep_freed_memory()
    home = torch.device("cpu") if turns or blocks else place
    small = torch.float16 if blocks and compute.itemsize > 2 else compute
    if text_backend == "native" and not blocks:
        kept.note(entry_of(spec, path, compute, text_dtype))
    with ThreadPoolExecutor(1) as pool:
        digests = pool.submit(weights_digests, spec)
        network = load_unet(spec, found, small, home)
        stage = load_first_stage(spec, found, torch.float16 if blocks else torch.float32, home)
        if blocks and text_backend == "native":
            text_dtype = torch.float16
        text = load_text(spec, found, text_backend, text_dtype, place if blocks else home)
    denoiser = Denoiser(
        network, spec.prediction, make_schedule(spec.schedule), spec.x0_clamp, compute, spec.sigma_data
    )
    pipeline = Pipeline(spec, text, denoiser, stage, place, digests.result())
    if spec.refiner is not None:
        kind = str(compute).removeprefix("torch.")
        where = "cpu" if turns else device
        pipeline.refiner = assemble(
            spec.refiner, device=where, dtype=kind, text_backend=text_backend, offload="blocks" if blocks else offload
        )
    if any(item.kind != "vae" for item in spec.additions):
        from ddgen.app.additions import Added

        pipeline.notes = Added(spec, network, text, found).set(spec.additions)
    if blocks:
        memory.keep_small(pipeline, compute)
    if turns:
        memory.take_turns([pipeline, *([] if pipeline.refiner is None else [pipeline.refiner])], place)
    return pipeline


def entry_of(spec: Spec, path: Path, compute: torch.dtype, text_dtype: torch.dtype) -> kept.Entry:
    """Return what `hold` needs to load the same parts in another process."""
    return {
        "path": os.path.realpath(path),
        "arch": arch_to_json(spec.arch),
        "ema": spec.ema,
        "vae": [os.path.realpath(item.path) for item in spec.additions if item.kind == "vae"],
        "dtype": str(compute).removeprefix("torch."),
        "text_dtype": str(text_dtype).removeprefix("torch."),
    }


def hold(entry: kept.Entry) -> set[kept.Key]:
    """Load a model's parts into main memory, for the calls that a warm worker forks; return their keys.

    Raises:
        ModelError: the files are not there any more, or not what they were.
    """
    additions = tuple(Addition("vae", Path(path)) for path in entry["vae"])
    spec = Spec("held", arch_from_json(entry["arch"]), additions=additions)
    found, cpu = open_checkpoint(entry["path"]), torch.device("cpu")
    if entry["ema"]:
        found = found.averaged()
    with kept.holding() as keys:
        load_unet(spec, found, DTYPES[entry["dtype"]], cpu)
        load_first_stage(spec, found, torch.float32, cpu)
        load_text(spec, found, "native", DTYPES[entry["text_dtype"]], cpu)
    return keys


def held_bytes(entry: kept.Entry) -> int:
    """Return about how many bytes `hold` takes.

    Raises:
        ModelError: the files are not there any more, or not what they were.
    """
    return sum(weights_bytes(open_checkpoint(entry["path"]), DTYPES[entry["dtype"]]).values())


def weights_bytes(found: Checkpoint, compute: torch.dtype) -> dict[str, int]:
    """Return about how many bytes each part of a checkpoint takes in memory: the first stage in float32, the
    rest in the compute dtype."""
    return {
        name: sum((4 if name == "first_stage" else compute.itemsize) * product(stored.shape) for stored in part.values())
        for name, part in found.parts.items()
    }


def local_path(spec: Spec) -> Path:
    """Return where the weights of a Spec lie on this machine.

    Raises:
        ModelError: they are not here.
    """
    if spec.source.path is None:
        raise absent(spec.name)
    return spec.source.path


def choose_device(device: str) -> torch.device:
    """Return the device meant by `device`; "auto" takes a GPU if there is one.

    Raises:
        UsageError: an unknown word. ResourceError: this machine has no such device.
    """
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (number and not (kind == "cuda" and number.isdigit())):
        raise UsageError(
            f"unknown device '{device}'", "one of: " + ", ".join(DEVICES) + ", cuda:N", id="usage.device"
        )
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "auto":
        kind = "cuda" if cuda else "mps" if mps else "cpu"
    if kind == "cuda" and (not cuda or int(number or 0) >= torch.cuda.device_count()):
        which = f"no CUDA device {number}" if cuda else "no CUDA device"
        raise ResourceError(f"--device {device}: {which} found", "use --device cpu", id="resource.device")
    if kind == "mps" and not mps:
        raise ResourceError(
            "--device mps: this machine has no Metal device", "use --device cpu", id="resource.device"
        )
    return torch.device(kind, int(number)) if number else torch.device(kind)


def choose_dtype(dtype: str, device: torch.device, spec: Spec, found: Checkpoint) -> torch.dtype:
    """Return what the U-Net computes in; "auto" asks what the device does natively.

    Networks that work on pixels stay in float32: their output is the picture, and half precision shows in it.

    Raises:
        UsageError: an unknown word.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(
                f"unknown dtype '{dtype}'", "one of: auto, " + ", ".join(DTYPES), id="usage.dtype"
            )
        return DTYPES[dtype]
    if isinstance(spec.arch.first_stage, PatchConfig):
        return torch.float32
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if native >= (8, 0) else torch.float16 if native >= (6, 0) else torch.float32
    if device.type == "mps":
        return torch.float16
    size = sum(
        stored.header.tensors[stored.take.names[0]].count for stored in found.parts.get("unet", {}).values()
    )
    return torch.bfloat16 if size >= LARGE and cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively; without, bf16 is emulated and many times slower than
    float32."""
    probes = (
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe is not None and bool(probe()) for probe in probes)


def _half_gpu(compute: torch.dtype, device: torch.device) -> bool:
    return compute != torch.float32 and device.type != "cpu"


def part_modules(arch: Arch) -> dict[str, nn.Module]:
    """Return the modules of an architecture that have weights, by part; build it under
    `unfilled()`."""
    from ddgen.text.clip import CLIPTextModel

    made: dict[str, nn.Module] = {"unet": UNet(arch.unet)}
    if not isinstance(arch.first_stage, PatchConfig):
        made["first_stage"] = make_first_stage(arch.first_stage)
    return made | {f"text.{i}": CLIPTextModel(tower.config) for i, tower in enumerate(arch.text)}


def make_first_stage(config: FirstStageConfig) -> nn.Module:
    """Return the first stage of a configuration."""
    if isinstance(config, PatchConfig):
        from ddgen.nets.patch import PatchStage

        return PatchStage(config)
    if isinstance(config, KLConfig):
        from ddgen.nets.vae import AutoencoderKL

        return AutoencoderKL(config)
    from ddgen.nets.taesd import TinyAutoencoder

    return TinyAutoencoder(config)


def load_unet(spec: Spec, found: Checkpoint, dtype: torch.dtype, device: torch.device) -> UNet:
    """Build the U-Net of a Spec and load it.

    Raises:
        ModelError: the checkpoint has none, or one of another shape.
    """
    def load() -> UNet:
        with unfilled():
            network = UNet(spec.arch.unet)
        load_module(network, found.part("unet"), dtype=dtype, device=device, name="unet")
        return network

    return kept.take("unet", found.part("unet"), spec.arch.unet, dtype, device, load)


def load_first_stage(spec: Spec, found: Checkpoint, dtype: torch.dtype, device: torch.device) -> FirstStage:
    """Build the first stage of a Spec and load it, from the file that this run puts in its place if there is
    one; one of patches has no weights.

    Raises:
        ModelError: the checkpoint has none, or one of another shape.
    """
    config = spec.arch.first_stage
    for item in spec.additions:
        if item.kind == "vae":
            found = open_checkpoint(item.path)
            config = replaced_first_stage(config, found)
    if isinstance(config, PatchConfig):
        return make_first_stage(config)  # type: ignore[return-value]

    def load() -> nn.Module:
        with unfilled():
            stage = make_first_stage(config)
        load_module(stage, found.part("first_stage"), dtype=dtype, device=device, name="first_stage")
        return stage

    return kept.take("first_stage", found.part("first_stage"), config, dtype, device, load)  # type: ignore[return-value]


def replaced_first_stage(config: FirstStageConfig, found: Checkpoint) -> FirstStageConfig:
    """Return the shapes of another file's autoencoder; how latents are scaled is the model's, which was
    trained with it.

    Raises:
        ModelError: it holds none, or one with another number of channels.
    """
    other = infer_first_stage(shapes_of(found.part("first_stage")))
    if other.channels != config.channels or other.factor != config.factor:
        raise ModelError(
            f"autoencoder '{found.path.name}' makes {other.channels} channels of 1/{other.factor}, "
            f"the model takes {config.channels} of 1/{config.factor}",
            "choose an autoencoder of the model's family",
            id="model.vae",
        )
    if isinstance(other, KLConfig) and isinstance(config, KLConfig):
        return replace(
            config,
            model_channels=other.model_channels,
            channel_mult=other.channel_mult,
            num_res_blocks=other.num_res_blocks,
        )
    return other


def load_text(
    spec: Spec, found: Checkpoint, backend: str, dtype: torch.dtype, device: torch.device
) -> TextEncoder:
    """Build the text towers of a Spec, with our own modules or through a library, and load them.

    Raises:
        UsageError: an unknown backend. ModelError: the checkpoint has no such tower, or one of another shape.
    """
    from ddgen.text.tokens import Tokenizer

    if backend not in TEXT_BACKENDS:
        raise UsageError(
            f"unknown text backend '{backend}'",
            "one of: " + ", ".join(TEXT_BACKENDS),
            id="usage.text-backend",
        )
    specs = spec.towers
    parts = [found.part(f"text.{i}") for i in range(len(specs))]
    if backend != "native":
        from ddgen.text.library import library_encoder

        states = [dict(read_tensors(part, dtype=dtype)) for part in parts]
        return library_encoder(backend, states, specs, Tokenizer(), device=device)
    from ddgen.text.clip import CLIPTextModel, TextEncoder

    def load(i: int) -> CLIPTextModel:
        with unfilled():
            model = CLIPTextModel(specs[i].config)
        load_module(model, parts[i], dtype=dtype, device=device, name=f"text.{i}")
        return model

    towers = [
        kept.take(f"text.{i}", parts[i], tower.config, dtype, device, lambda i=i: load(i))  # type: ignore[misc]
        for i, tower in enumerate(specs)
    ]
    return TextEncoder(towers, specs, Tokenizer())
