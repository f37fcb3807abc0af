"""From keys and shapes to an Arch: what a single file is, when nothing but its tensors tells. Torch-free.

The whole configuration is read from the shapes, then compared with the families we know. Head counts are not
in the shapes: networks with linear projections have heads 64 wide (SD2, SDXL), those with convolutions have 8
heads (SD1). Neither are prediction types, but for the marker keys some tools write and one statistic that
tells SD 2's v networks from its eps ones.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ddgen.errors import ModelError
from ddgen.nets.config import FirstStageConfig, KLConfig, TinyConfig, UNetConfig
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights.arch import FAMILIES, PLAYGROUND, SD21, SDXL, Arch
from ddgen.weights.header import Header, open_regular
from ddgen.weights.split import Part, Split

Shapes = Mapping[str, tuple[int, ...]]


def infer_arch(split: Split, names: Iterable[str] = ()) -> Arch:
    """Return the Arch of a file: a known family's where its U-Net is known, its own otherwise. `names`: the
    file's keys, for markers.

    Raises:
        ModelError: the file has no U-Net, or one that cannot be described.
    """
    if "unet" not in split.parts:
        raise ModelError(
            f"the file holds no U-Net, only {', '.join(sorted(split.parts))}",
            "give a whole checkpoint",
            id="model.parts",
        )
    unet = unet_config(shapes_of(split.parts["unet"]))
    family = family_of(unet)
    if family is SDXL and "edm_mean" in names:
        family = PLAYGROUND
    known = Arch("custom", unet) if family is None else family
    stage: FirstStageConfig = known.first_stage
    if "first_stage" in split.parts:
        found = first_stage_config(shapes_of(split.parts["first_stage"]))
        if isinstance(found, KLConfig) and isinstance(stage, KLConfig):
            found = replace(
                found,
                scale_factor=stage.scale_factor,
                latents_mean=stage.latents_mean,
                latents_std=stage.latents_std,
                force_upcast=stage.force_upcast,
            )
        stage = found
    towers = tuple(
        tower_spec(shapes_of(split.parts[f"text.{i}"]), prefix, layout, known.text)
        for i, (prefix, layout) in enumerate(split.text)
    )
    return replace(known, first_stage=stage, text=towers if towers else known.text)


def shapes_of(part: Part) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in part.items()}


def family_of(unet: UNetConfig) -> Arch | None:
    """Return the known family with this U-Net."""
    return next((arch for arch in FAMILIES.values() if arch.unet == unet), None)


def unet_config(shapes: Shapes) -> UNetConfig:
    """Describe a U-Net by its shapes, under LDM names.

    Raises:
        ModelError: a tensor is missing without which it cannot be described.
    """
    try:
        return _unet_config(shapes)
    except (KeyError, IndexError, ValueError) as error:
        what = f"'{error.args[0]}'" if isinstance(error, KeyError) else "a tensor"
        raise ModelError(
            f"the U-Net cannot be recognised: {what} is missing or misshaped",
            "the file may be damaged; download it again",
            id="model.unet",
        ) from None


def _unet_config(shapes: Shapes) -> UNetConfig:
    base, in_channels = shapes["input_blocks.0.0.weight"][:2]
    depth_of = _depths(shapes)
    mult: list[int] = []
    down: list[tuple[int, ...]] = [()]
    for n in range(1, 1 + _count(shapes, "input_blocks")):
        if f"input_blocks.{n}.0.op.weight" in shapes:
            down.append(())
            continue
        width = shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0]
        if not down[-1]:
            mult.append(width // base)
        down[-1] = (*down[-1], depth_of.get(f"input_blocks.{n}", 0))
    stride = len(down[0]) + 1
    up = [
        tuple(depth_of.get(f"output_blocks.{stride * i + j}", 0) for j in range(stride))
        for i in range(len(down))
    ][::-1]
    middle: int | None = None
    if "middle_block.0.in_layers.2.weight" in shapes:
        middle = depth_of.get("middle_block", 0)
    cross = [shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")]
    linear = any(len(shape) == 2 for name, shape in shapes.items() if name.endswith(".proj_in.weight"))
    return UNetConfig(
        in_channels=in_channels,
        out_channels=shapes["out.2.weight"][0],
        model_channels=base,
        channel_mult=tuple(mult),
        num_res_blocks=len(down[0]),
        down_depth=tuple(down),
        up_depth=tuple(up),
        mid_depth=middle,
        heads=tuple(base * m // 64 if linear else 8 for m in mult),
        context_dim=cross[0] if cross else 768,
        linear_projection=linear,
        vector_dim=shapes["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in shapes else 0,
        guidance_dim=shapes["guidance_proj.weight"][1] if "guidance_proj.weight" in shapes else 0,
    )


def _depths(shapes: Shapes) -> dict[str, int]:
    """Return {block: number of transformer blocks}."""
    found: dict[str, int] = {}
    for name in shapes:
        match = re.match(
            r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.1\.transformer_blocks\.(\d{1,3})\.", name
        )
        if match:
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


def _count(shapes: Shapes, kind: str) -> int:
    numbers = [int(match[1]) for name in shapes if (match := re.match(kind + r"\.(\d{1,4})\.", name))]
    return max(numbers, default=0)


def first_stage_config(shapes: Shapes) -> FirstStageConfig:
    """Describe an autoencoder by its shapes; its scale factor is not among them.

    Raises:
        ModelError: a tensor is missing without which it cannot be described.
    """
    tiny = shapes.get("decoder.1.weight")
    if tiny is not None:
        return TinyConfig(latent_channels=tiny[1], width=tiny[0])
    try:
        side = "encoder" if "encoder.conv_in.weight" in shapes else "decoder"
        levels = 1 + max(
            int(name.split(".")[2]) for name in shapes if name.startswith((f"{side}.down.", f"{side}.up."))
        )
        group = f"{side}.down" if side == "encoder" else f"{side}.up"
        base = shapes[f"{group}.0.block.0.conv1.weight"][0]
        widths = [shapes[f"{group}.{i}.block.0.conv1.weight"][0] for i in range(levels)]
        blocks = sum(
            1 for name in shapes if re.fullmatch(re.escape(group) + r"\.0\.block\.\d+\.conv1\.weight", name)
        )
        latent = shapes["post_quant_conv.weight"][0] if "post_quant_conv.weight" in shapes else 4
        return KLConfig(
            in_channels=shapes[f"{side}.conv_in.weight"][1]
            if side == "encoder"
            else shapes["decoder.conv_out.weight"][0],
            latent_channels=latent,
            model_channels=base,
            channel_mult=tuple(width // base for width in widths),
            num_res_blocks=blocks if side == "encoder" else blocks - 1,
        )
    except (KeyError, ValueError, IndexError):
        raise ModelError(
            "the autoencoder cannot be recognised",
            "the file may be damaged; download it again",
            id="model.vae",
        ) from None


def tower_spec(shapes: Shapes, prefix: str, layout: str, known: tuple[TowerSpec, ...]) -> TowerSpec:
    """Describe a text tower by its shapes, with the rules of the family's tower of that width if there is
    one.

    Raises:
        ModelError: a tensor is missing without which it cannot be described.
    """
    try:
        vocab, width = shapes["embeddings.token_embedding.weight"]
        layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers."))
        config = CLIPConfig(
            vocab_size=vocab,
            positions=shapes["embeddings.position_embedding.weight"][0],
            width=width,
            layers=layers,
            heads=max(1, width // 64),
            mlp=shapes["encoder.layers.0.mlp.fc1.weight"][0],
            activation="quick_gelu" if layout == "hf" and width == 768 else "gelu",
            projection_dim=shapes["text_projection.weight"][0]
            if "text_projection.weight" in shapes
            else None,
        )
    except (KeyError, ValueError, IndexError):
        raise ModelError(
            "a text tower cannot be recognised", "the file may be damaged; download it again", id="model.text"
        ) from None
    rule = next((tower for tower in known if tower.config.width == width), TowerSpec(config))
    layer = rule.layer
    if rule.layer == -2 and layers == rule.config.layers - 1:
        layer = -1  # the unused last block was dropped, as transformers' SD2 encoder does
    return replace(rule, config=config, layer=layer, prefix=prefix, layout=layout)


# The norm whose bias spreads wider in SD 2's v networks than in its eps ones; the limit between them.
V_NORM = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_LIMIT = 0.09


def infer_prediction(arch: Arch, split: Split, header: Header) -> str | None:
    """Return "v", "eps" or "edm" where the file itself tells, else None."""
    names = header.tensors
    if "v_pred" in names or "edm_vpred.sigma_max" in names:
        return "v"
    if "edm_mean" in names:
        return "edm"
    said = header.metadata.get("modelspec.prediction_type", "")
    if said in ("v", "epsilon"):
        return "v" if said == "v" else "eps"
    if arch.unet == SD21.unet and V_NORM in split.parts["unet"]:
        spread = _deviation(split.parts["unet"][V_NORM].header, split.parts["unet"][V_NORM].take.names[0])
        return None if spread is None else "v" if spread > V_LIMIT else "eps"
    return None


def edm_range(header: Header) -> dict[str, float]:
    """Return the range of sigma that a v network on EDM's schedule carries in its file."""
    found = {}
    for name in ("sigma_min", "sigma_max"):
        if f"edm_vpred.{name}" in header.tensors:
            values = _values(header, f"edm_vpred.{name}")
            found[name] = float(values.flat[0]) if values is not None else math.nan
    if not all(0 < value < 1e6 for value in found.values()):
        raise ModelError(
            "the file carries an impossible range of sigma", "download it again", id="model.header"
        )
    return found


def _deviation(header: Header, name: str) -> float | None:
    values = _values(header, name)
    return None if values is None else float(values.std())


def _values(header: Header, name: str) -> Any:
    """Read one small tensor of floats without torch; None for another element type."""
    import numpy as np

    info = header.tensors[name]
    with open_regular(header.path) as (handle, _):
        data = os.pread(handle, info.stop - info.start, info.start)
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    if len(data) != info.stop - info.start or info.dtype not in (*kinds, "BF16"):
        return None
    if info.dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(data, kinds[info.dtype]).astype(np.float64)
