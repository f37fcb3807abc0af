"""A folder in diffusers' layout: its config files say what it is, its weight files what it holds. Torch-free.

    model_index.json  scheduler/scheduler_config.json  unet/config.json  vae/config.json
    text_encoder[_2]/config.json  [ddgen.json]

Weight files may be whole, a variant or sharded. Config files are data: numbers and words from a fixed set are
read, a class name is never looked up, an unknown kind of block is refused.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgen.errors import ModelError
from ddgen.nets.config import FirstStageConfig, KLConfig, TinyConfig, UNetConfig
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights.arch import REFINER, REFINER_IDS, SDXL_TOWERS, SIZE_IDS, Arch
from ddgen.weights.header import Header, read_header
from ddgen.weights.infer import family_of
from ddgen.weights.unpickle import read_pickled_header

MAX_JSON = 8 * 2**20  # bytes
TEXT_FOLDERS = ("text_encoder", "text_encoder_2")
VARIANTS = ("", ".fp16", ".bf16", ".fp32")

# Fields of a U-Net's config.json that must hold these values, or the network is not one we build.
_UNET_FIXED = {
    "act_fn": ("silu", "swish"), "norm_num_groups": (32,), "norm_eps": (1e-5,), "flip_sin_to_cos": (True,),
    "freq_shift": (0,), "downsample_padding": (1,), "center_input_sample": (False,), "conv_in_kernel": (3,),
    "conv_out_kernel": (3,), "dual_cross_attention": (False,), "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",), "encoder_hid_dim": (None,), "attention_type": ("default",),
    "time_embedding_type": ("positional",), "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None, "projection"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
}  # fmt: skip
_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


@dataclass(frozen=True)
class Folder:
    """What the config files say. scheduler, index, settings: model_index.json's, scheduler_config.json's and
    ddgen.json's tables."""

    path: Path
    arch: Arch
    scheduler: dict[str, Any]
    index: dict[str, Any]
    settings: dict[str, Any]
    text_folders: tuple[str, ...]


def read_folder(path: Path) -> Folder:
    """Read a folder's config files.

    Raises:
        ModelError: no U-Net, a file that is not JSON, a network of a kind that ddgen does not build.
    """
    if not (path / "unet" / "config.json").is_file():
        raise ModelError(
            f"model '{path.name}' is a folder without unet/config.json",
            "give a diffusers folder or a file",
            id="model.folder",
        )
    settings = read_json(path / "ddgen.json") if (path / "ddgen.json").is_file() else {}
    index = read_json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    scheduler_path = path / "scheduler" / "scheduler_config.json"
    scheduler = read_json(scheduler_path) if scheduler_path.is_file() else {}
    try:
        config = read_json(path / "unet" / "config.json")
        unet, sized = unet_from(config), config.get("addition_embed_type") == "text_time"
        known = family_of(unet)
        folders = tuple(name for name in TEXT_FOLDERS if (path / name / "config.json").is_file())
        towers = tuple(
            tower_from(
                read_json(path / name / "config.json"), name, path, sized=sized, pooled=unet.vector_dim > 0
            )
            for name in folders
        )
        stage_path = path / "vae" / "config.json"
        stage: FirstStageConfig = (
            first_stage_from(read_json(stage_path)) if stage_path.is_file() else KLConfig()
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ModelError(
            f"model '{path.name}' has a config file that cannot be read ({error})",
            "download it again",
            id="model.config",
        ) from None
    refiner = folders == ("text_encoder_2",) or unet.vector_dim == REFINER.unet.vector_dim
    ids = (REFINER_IDS if refiner else SIZE_IDS) if sized else ()
    return Folder(
        path,
        Arch(known.name if known else "custom", unet, stage, towers, ids),
        scheduler,
        index,
        settings,
        folders,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 8 MiB.

    Raises:
        ModelError: unreadable, too large, not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError("too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError):
        raise ModelError(
            f"'{path.parent.name}/{path.name}' is not readable JSON",
            "download the model again",
            id="model.config",
        ) from None
    return data


def unet_from(data: dict[str, Any]) -> UNetConfig:
    """Translate diffusers' UNet2DConditionModel config.

    Raises:
        ModelError: a field asks for something that ddgen's U-Net does not do.
    """
    for field, allowed in _UNET_FIXED.items():
        if data.get(field, allowed[0]) not in allowed:
            _unfit(f"unet/config.json has {field} = {data[field]!r}")
    widths = data["block_out_channels"]
    levels, base, blocks = len(widths), widths[0], data.get("layers_per_block", 2)
    if any(width % base for width in widths) or not isinstance(blocks, int):
        _unfit(
            "unet/config.json has widths that are no multiples of the first, or blocks that differ by level"
        )
    down_types, up_types = data["down_block_types"], data["up_block_types"]
    for kind in (*down_types, *up_types):
        if kind not in _DOWN and kind not in _UP:
            _unfit(f"unet/config.json asks for a block '{kind}'")
    depth = data.get("transformer_layers_per_block", 1)
    down = depth if isinstance(depth, list) else [depth] * levels
    up = data.get("reverse_transformer_layers_per_block") or down[::-1]
    heads = data.get("num_attention_heads") or data.get("attention_head_dim", 8)
    context = data.get("cross_attention_dim", 1280)
    middle = data.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    vector = 0
    if data.get("addition_embed_type") == "text_time" or data.get("class_embed_type") == "projection":
        vector = data["projection_class_embeddings_input_dim"]
    last = down[-1][-1] if isinstance(down[-1], list) else down[-1]
    return UNetConfig(
        in_channels=data.get("in_channels", 4),
        out_channels=data.get("out_channels", 4),
        model_channels=base,
        channel_mult=tuple(width // base for width in widths),
        num_res_blocks=blocks,
        down_depth=tuple(_spread(down[i], blocks, _DOWN[kind]) for i, kind in enumerate(down_types)),
        up_depth=tuple(_spread(up[i], blocks + 1, _UP[kind]) for i, kind in enumerate(up_types))[::-1],
        mid_depth=None if middle is None else 0 if middle == "UNetMidBlock2D" else last,
        heads=tuple(heads) if isinstance(heads, list) else (heads,) * levels,
        context_dim=context,
        linear_projection=bool(data.get("use_linear_projection", False)),
        vector_dim=vector,
        guidance_dim=data.get("time_cond_proj_dim") or 0,
    )


def _spread(depth: Any, blocks: int, attention: bool) -> tuple[int, ...]:
    if not attention:
        return (0,) * blocks
    return tuple(depth) if isinstance(depth, list) else (depth,) * blocks


def first_stage_from(data: dict[str, Any]) -> FirstStageConfig:
    """Translate diffusers' AutoencoderKL or AutoencoderTiny config.

    Raises:
        ModelError: another kind of autoencoder.
    """
    if data.get("_class_name") == "AutoencoderTiny":
        return TinyConfig(
            latent_channels=data.get("latent_channels", 4),
            width=data.get("encoder_block_out_channels", [64])[0],
        )
    if (
        data.get("act_fn", "silu") != "silu"
        or data.get("norm_num_groups", 32) != 32
        or data.get("shift_factor")
    ):
        _unfit("vae/config.json describes an autoencoder of another kind")
    widths = data["block_out_channels"]
    mean, std = data.get("latents_mean"), data.get("latents_std")
    patch = data.get("patch", 1)  # ddgen's own
    if type(patch) is not int or patch < 1 or data.get("in_channels", 3) % patch**2:
        _unfit(f"vae/config.json describes patches of {str(patch)[:20]!a} pixels, which its channels do not hold")
    return KLConfig(
        in_channels=data.get("in_channels", 3) // patch**2,
        latent_channels=data.get("latent_channels", 4),
        model_channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=data.get("layers_per_block", 2),
        scale_factor=float(data.get("scaling_factor", 0.18215)),
        latents_mean=tuple(map(float, mean)) if mean else None,
        latents_std=tuple(map(float, std)) if std else None,
        force_upcast=bool(data.get("force_upcast", False)),
        patch=patch,
    )


def tower_from(data: dict[str, Any], folder: str, path: Path, *, sized: bool, pooled: bool) -> TowerSpec:
    """Translate transformers' CLIPTextConfig, with the rule by which diffusers' pipelines use the tower.

    sized: the U-Net reads sizes, as SDXL's does. pooled: it reads pooled text.

    Raises:
        ModelError: another kind of text encoder.
    """
    kind = (data.get("architectures") or ["CLIPTextModel"])[0]
    if (
        kind not in ("CLIPTextModel", "CLIPTextModelWithProjection")
        or data.get("hidden_act", "quick_gelu") not in _ACTIVATIONS
    ):
        _unfit(f"{folder}/config.json describes a '{kind}'")
    projected = kind == "CLIPTextModelWithProjection"
    config = CLIPConfig(
        vocab_size=data.get("vocab_size", 49408),
        positions=data.get("max_position_embeddings", 77),
        width=data["hidden_size"],
        layers=data["num_hidden_layers"],
        heads=data["num_attention_heads"],
        mlp=data["intermediate_size"],
        activation=_ACTIVATIONS[data.get("hidden_act", "quick_gelu")],
        projection_dim=data.get("projection_dim", 512) if projected else None,
    )
    tokenizer = path / folder.replace("text_encoder", "tokenizer") / "special_tokens_map.json"
    pad = 0 if config.width in (SDXL_TOWERS[1].config.width, 1024) else 49407
    if tokenizer.is_file():
        said = read_json(tokenizer).get("pad_token")
        word = said.get("content") if isinstance(said, dict) else said
        pad = {"!": 0, "<|endoftext|>": 49407}.get(str(word), pad)
    return TowerSpec(
        config,
        layer=-2 if sized else -1,
        final_norm=not sized,
        pooled=projected and pooled,
        pad_id=pad,
    )


def weight_headers(folder: Path, stem: str) -> list[Header]:
    """Return the headers of a part's weight files: one, or its shards.

    Raises:
        ModelError: none is there, or the index names a file outside the folder.
    """
    for variant in VARIANTS:
        whole = folder / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return [read_header(whole)]
        for index in (
            folder / f"{stem}.safetensors.index{variant}.json",
            folder / f"{stem}{variant}.safetensors.index.json",
        ):
            if index.is_file():
                return [read_header(folder / name) for name in _shards(index)]
    for variant in VARIANTS:
        pickled = folder / f"{'pytorch_model' if stem == 'model' else stem}{variant}.bin"
        if pickled.is_file():
            return [read_pickled_header(pickled)]
    raise ModelError(
        f"'{folder.name}' holds no {stem}.safetensors", "download the model again", id="model.missing"
    )


def _shards(index: Path) -> list[str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise ModelError(f"'{index.name}' lists no shards", "download the model again", id="model.config")
    names = sorted(set(found.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"'{index.name}' names a file outside its folder: {name[:60]!a}",
                "do not use this model",
                id="model.config",
            )
    return names


def merged(headers: Iterable[Header]) -> dict[str, Header]:
    """Return {tensor name: the header that holds it}."""
    return {name: header for header in headers for name in header.tensors}


def _unfit(reason: str) -> None:
    raise ModelError(
        f"{reason}, which ddgen does not build",
        "choose a Stable Diffusion 1, 2 or XL model",
        id="model.config",
    )
