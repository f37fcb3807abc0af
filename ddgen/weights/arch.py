"""The shapes of whole checkpoints: a network, a first stage and text towers, as one value. Torch-free.

An Arch says what can be built; what the weights were trained for (prediction, schedule, defaults) is a Spec,
in registry.py. A family that ddgen knows is a constant here; any other arrives as JSON in a file's header and
is held to limits before anything is built from it.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any

from ddgen.errors import ModelError
from ddgen.nets.config import FirstStageConfig, KLConfig, PatchConfig, TinyConfig, UNetConfig
from ddgen.text.config import CLIPConfig, TowerSpec


@dataclass(frozen=True)
class Arch:
    """A checkpoint's parts.

    text:        the towers in order; their states are concatenated on the last axis.
    vector_ids:  what follows the pooled text in the vector, each number as a sinusoid 256 wide (SDXL's
        sizes).
    """

    name: str
    unet: UNetConfig
    first_stage: FirstStageConfig = field(default_factory=KLConfig)
    text: tuple[TowerSpec, ...] = ()
    vector_ids: tuple[str, ...] = ()

    @property
    def vector_dim(self) -> int:
        return self.unet.vector_dim


SIZE_IDS = ("original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width")
REFINER_IDS = ("original_height", "original_width", "crop_top", "crop_left", "aesthetic_score")

CLIP_L = CLIPConfig()
CLIP_H = CLIPConfig(width=1024, layers=24, heads=16, mlp=4096, activation="gelu", projection_dim=1024)
CLIP_BIGG = CLIPConfig(width=1280, layers=32, heads=20, mlp=5120, activation="gelu", projection_dim=1280)

SD1_TOWER = TowerSpec(CLIP_L)
SD2_TOWER = TowerSpec(CLIP_H, layer=-2, pad_id=0, prefix="cond_stage_model.model.", layout="openclip")
SDXL_TOWERS = (
    TowerSpec(CLIP_L, layer=-2, final_norm=False, prefix="conditioner.embedders.0.transformer.text_model."),
    TowerSpec(
        CLIP_BIGG,
        layer=-2,
        final_norm=False,
        pooled=True,
        pad_id=0,
        prefix="conditioner.embedders.1.model.",
        layout="openclip",
    ),
)
REFINER_TOWER = replace(SDXL_TOWERS[1], prefix="conditioner.embedders.0.model.")

SDXL_VAE = KLConfig(scale_factor=0.13025, force_upcast=True)

_SD1 = UNetConfig()
_SD2 = UNetConfig(heads=(5, 10, 20, 20), context_dim=1024, linear_projection=True)
_SDXL = UNetConfig(
    channel_mult=(1, 2, 4),
    down_depth=((0, 0), (2, 2), (10, 10)),
    up_depth=((0, 0, 0), (2, 2, 2), (10, 10, 10)),
    mid_depth=10,
    heads=(5, 10, 20),
    context_dim=2048,
    linear_projection=True,
    vector_dim=2816,
)
_REFINER = UNetConfig(
    model_channels=384,
    down_depth=((0, 0), (4, 4), (4, 4), (0, 0)),
    up_depth=((0, 0, 0), (4, 4, 4), (4, 4, 4), (0, 0, 0)),
    mid_depth=4,
    heads=(6, 12, 24, 24),
    context_dim=1280,
    linear_projection=True,
    vector_dim=2560,
)
_SSD1B = replace(
    _SDXL, down_depth=((0, 0), (2, 2), (4, 4)), up_depth=((0, 0, 0), (2, 1, 1), (4, 4, 10)), mid_depth=0
)
_VEGA = replace(
    _SDXL, down_depth=((0, 0), (1, 1), (2, 2)), up_depth=((0, 0, 0), (1, 1, 1), (2, 2, 2)), mid_depth=0
)
_SMALL = replace(
    _SD1, num_res_blocks=1, down_depth=((1,), (1,), (1,), (0,)), up_depth=((1, 1), (1, 1), (1, 1), (0, 0))
)
_TINY = replace(
    _SD1,
    channel_mult=(1, 2, 4),
    num_res_blocks=1,
    down_depth=((1,), (1,), (1,)),
    up_depth=((1, 1), (1, 1), (1, 1)),
    mid_depth=None,
    heads=(8, 8, 8),
)

SD15 = Arch("SD15", _SD1, text=(SD1_TOWER,))
SD15_INPAINT = Arch("SD15_INPAINT", replace(_SD1, in_channels=9), text=(SD1_TOWER,))
IP2P = Arch("IP2P", replace(_SD1, in_channels=8), text=(SD1_TOWER,))
SD15_LCM = Arch("SD15_LCM", replace(_SD1, guidance_dim=256), text=(SD1_TOWER,))
SD21 = Arch("SD21", _SD2, text=(SD2_TOWER,))
SD2_INPAINT = Arch("SD2_INPAINT", replace(_SD2, in_channels=9), text=(SD2_TOWER,))
SDXL = Arch("SDXL", _SDXL, SDXL_VAE, SDXL_TOWERS, SIZE_IDS)
SDXL_INPAINT = Arch("SDXL_INPAINT", replace(_SDXL, in_channels=9), SDXL_VAE, SDXL_TOWERS, SIZE_IDS)
SDXL_LCM = Arch("SDXL_LCM", replace(_SDXL, guidance_dim=256), SDXL_VAE, SDXL_TOWERS, SIZE_IDS)
REFINER = Arch("REFINER", _REFINER, SDXL_VAE, (REFINER_TOWER,), REFINER_IDS)
SSD1B = Arch("SSD1B", _SSD1B, SDXL_VAE, SDXL_TOWERS, SIZE_IDS)
VEGA = Arch("VEGA", _VEGA, SDXL_VAE, SDXL_TOWERS, SIZE_IDS)
SMALL_SD = Arch("SMALL_SD", _SMALL, text=(SD1_TOWER,))
TINY_SD = Arch("TINY_SD", _TINY, text=(SD1_TOWER,))
PLAYGROUND = Arch(
    "PLAYGROUND",
    _SDXL,
    KLConfig(
        scale_factor=0.5,
        latents_mean=(-1.6574, 1.886, -1.383, 2.5155),
        latents_std=(8.4927, 5.9022, 6.5498, 5.2299),
        force_upcast=True,
    ),
    SDXL_TOWERS,
    SIZE_IDS,
)

FAMILIES: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        SD15, SD15_INPAINT, IP2P, SD15_LCM, SD21, SD2_INPAINT, SDXL, SDXL_INPAINT, SDXL_LCM, REFINER, SSD1B,
        VEGA, SMALL_SD, TINY_SD, PLAYGROUND,
    )
}  # fmt: skip

_FIRST_STAGES: dict[str, type] = {"kl": KLConfig, "patch": PatchConfig, "tiny": TinyConfig}

# What a stranger's header may ask for: far above any published model, far below what would take long to
# build.
MAX_INT = 65_536
MAX_VOCABULARY = 1_000_000
MAX_LENGTH = 16
MAX_DEPTH = 64
MAX_LAYERS = 128


def arch_to_json(arch: Arch) -> dict[str, Any]:
    """Return the Arch as JSON values; fields at their default are left out, so that the text stays
    readable."""
    kind = next(kind for kind, cls in _FIRST_STAGES.items() if type(arch.first_stage) is cls)
    found = _dump(arch)
    found["first_stage"] = {"kind": kind} | _dump(arch.first_stage)
    return found


def arch_from_json(data: Any) -> Arch:
    """Build an Arch from JSON values.

    Raises:
        ModelError: an unknown field, a wrong type, a number over the limits, or parts that do not fit each
            other.
    """
    if not isinstance(data, dict):
        raise _bad("it is not a JSON object")
    data = dict(data)
    stage = data.pop("first_stage", {"kind": "kl"})
    if not isinstance(stage, dict) or stage.get("kind") not in _FIRST_STAGES:
        raise _bad("its 'first_stage' has no known kind (kl, patch, tiny)")
    stage = dict(stage)
    first_stage = _load(_FIRST_STAGES[stage.pop("kind")], stage, "first_stage")
    arch = replace(_load(Arch, data, "arch"), first_stage=first_stage)
    _check(arch)
    return arch


def _dump(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        plain = {}
        for item in dataclasses.fields(value):
            if item.default is dataclasses.MISSING or getattr(value, item.name) != item.default:
                plain[item.name] = _dump(getattr(value, item.name))
        return plain
    return [_dump(item) for item in value] if isinstance(value, tuple) else value


def _load(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise _bad(f"its '{where}' is not a JSON object")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise _bad(f"its '{where}' has an unknown field {str(key)[:40]!a}")
    for item in dataclasses.fields(cls):
        if (
            item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
            and item.name not in data
        ):
            raise _bad(f"its '{where}' lacks '{item.name}'")
    return cls(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _value(next(kind for kind in inner if kind is not type(None)), value, where)
    if origin is tuple:
        if isinstance(value, list) and len(value) <= MAX_LENGTH:
            return tuple(_value(inner[0], item, where) for item in value)
    elif dataclasses.is_dataclass(hint):
        return _load(typing.cast(type, hint), value, where)
    elif hint is float:
        if type(value) in (int, float) and abs(value) < 1e9:
            return float(value)
    elif hint is int:
        low = -MAX_LAYERS if where.endswith(".layer") else 0
        if type(value) is int and low <= value <= (
            MAX_VOCABULARY if where.endswith(".vocab_size") else MAX_INT
        ):
            return value
    elif type(value) is hint and (hint is not str or len(value) <= 200):
        return value
    raise _bad(f"its '{where}' is {str(value)[:40]!a}")


def check_arch(arch: Arch, model: str) -> None:
    """Refuse an Arch, as shapes or configs gave it, that the networks cannot be built from. model: for messages.

    Raises:
        ModelError: numbers over the limits, or parts that do not fit each other.
    """
    try:
        _check(arch)
    except ModelError as error:
        raise ModelError(f"model '{model}': {error.message}", error.hint, id=error.id) from None


def _check(arch: Arch) -> None:
    unet = arch.unet
    levels = len(unet.channel_mult)
    depths = [depth for level in (*unet.down_depth, *unet.up_depth) for depth in level]
    if not 1 <= levels <= 8 or not levels == len(unet.down_depth) == len(unet.up_depth) == len(unet.heads):
        raise _bad("its U-Net's channel_mult, down_depth, up_depth and heads differ in length")
    if any(len(level) != unet.num_res_blocks for level in unet.down_depth):
        raise _bad("its U-Net's down_depth does not have num_res_blocks entries a level")
    if any(len(level) != unet.num_res_blocks + 1 for level in unet.up_depth):
        raise _bad("its U-Net's up_depth does not have num_res_blocks + 1 entries a level")
    if not all(0 <= depth <= MAX_DEPTH for depth in (*depths, unet.mid_depth or 0)):
        raise _bad(f"its U-Net has a transformer depth outside 0..{MAX_DEPTH}")
    widths = [unet.model_channels * factor for factor in unet.channel_mult]
    if any(width <= 0 or width > MAX_INT or width % 32 for width in (*widths, unet.model_channels)):
        raise _bad("its U-Net has a width that is not a positive multiple of 32")
    if any(heads <= 0 or width % heads for width, heads in zip(widths, unet.heads, strict=True)):
        raise _bad("its U-Net has heads that do not divide the width")
    if (
        unet.position_channels not in (0, 16)
        or min(unet.in_channels, unet.out_channels, unet.context_dim) < 1
    ):
        raise _bad("its U-Net has impossible channels")
    for tower in arch.text:
        clip = tower.config
        if not 1 <= clip.layers <= MAX_LAYERS or clip.heads < 1 or clip.width < 1 or clip.width % clip.heads:
            raise _bad("its text tower has impossible layers, width or heads")
        if min(clip.mlp, clip.positions) < 1 or clip.projection_dim == 0:
            raise _bad("its text tower has an impossible size")
        if not -clip.layers - 1 <= tower.layer <= -1 or tower.layout not in ("hf", "openclip"):
            raise _bad("its text tower has an impossible layer or layout")
        if clip.activation not in ("quick_gelu", "gelu") or not 0 <= tower.pad_id < clip.vocab_size:
            raise _bad("its text tower has an unknown activation or padding id")
    _check_first_stage(arch.first_stage)


def _check_first_stage(stage: FirstStageConfig) -> None:
    if isinstance(stage, KLConfig):
        widths = [stage.model_channels * factor for factor in stage.channel_mult]
        if not 1 <= len(widths) <= 8 or any(not 0 < width <= MAX_INT or width % 32 for width in widths):
            raise _bad("its autoencoder has a width that is not a positive multiple of 32")
        if not 1 <= stage.num_res_blocks <= 16 or stage.latent_channels < 1 or stage.scale_factor == 0:
            raise _bad("its autoencoder has impossible blocks, channels or scale")
        if not 1 <= stage.patch <= 64:
            raise _bad("its autoencoder has an impossible patch")
        for values in (stage.latents_mean, stage.latents_std):
            if values is not None and len(values) != stage.latent_channels:
                raise _bad("its autoencoder has latent statistics of another length than its channels")
    elif isinstance(stage, PatchConfig) and not (1 <= stage.factor <= 64 and 1 <= stage.in_channels <= 16):
        raise _bad("its patch first stage has an impossible size")
    elif isinstance(stage, TinyConfig) and not (
        1 <= stage.latent_channels <= 64 and 1 <= stage.width <= 1024
    ):
        raise _bad("its tiny autoencoder has an impossible size")


def _bad(reason: str) -> ModelError:
    return ModelError(
        f"the architecture is not usable: {reason}", "get the file from its source again", id="model.arch"
    )
