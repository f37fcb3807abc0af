"""The key table: how the published layouts name, cut and turn the same tensors. Nothing else renames a key.

    part        native names (what our modules use)          other layout
    unet        LDM: input_blocks.4.1.proj_in                diffusers: down_blocks.1.attentions.0.proj_in
    first_stage LDM: encoder.down.0.block.0.conv1            diffusers: encoder.down_blocks.0.resnets.0.conv1
    text        transformers: encoder.layers.0.mlp.fc1       openclip: transformer.resblocks.0.mlp.c_fc
    vision      transformers: vision_model.encoder.layers    openclip: visual.transformer.resblocks

A table is a dict of dotted module prefixes; what follows a prefix is the same on both sides. A tensor that is
not taken whole (open_clip's fused q, k, v; a projection used as x @ P; a Linear that was a 1 x 1 convolution)
is described by a Take, which works on any array. Torch-free.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ddgen.nets.config import KLConfig, UNetConfig

# Keys of training frameworks that hold nothing a network needs: schedules are recomputed, position ids are
# 0..76.
IGNORED = (
    "betas", "alphas_cumprod*", "sqrt_*", "log_one_minus_*", "posterior_*", "logvar", "lvlb_weights",
    "sigmas", "denoiser.*", "*position_ids", "*attn_mask", "*logit_scale", "model_ema.decay",
    "model_ema.num_updates", "optimizer_states*", "global_step", "first_stage_model.loss.*", "loss.*",
    "*.scale_input", "scaled_fp8", "v_pred", "ztsnr", "edm_vpred.*", "edm_mean", "edm_std",
)  # fmt: skip


def ignored(name: str) -> bool:
    """Whether a stored key is known junk, or a marker that was read already."""
    return any(fnmatchcase(name, pattern) for pattern in IGNORED)


@dataclass(frozen=True)
class Take:
    """One tensor made from stored ones: `names` stacked on axis 0, then the `rows` asked for, then
    transposed, then of another rank.

    rows: (k, n) is the k-th of n equal blocks. rank: 4 or 2 turns (a, b) into (a, b, 1, 1) and back.
    """

    names: tuple[str, ...]
    rows: tuple[int, int] | None = None
    transpose: bool = False
    rank: int | None = None

    def apply(self, stacked: Any) -> Any:
        """Return the tensor asked for, as a view of the stored one."""
        if self.rows is not None:
            k, n = self.rows
            size = stacked.shape[0] // n
            stacked = stacked[k * size : (k + 1) * size]
        if self.transpose:
            stacked = stacked.T
        if self.rank is not None:
            stacked = stacked.reshape(self._ranked(tuple(stacked.shape)))
        return stacked

    def shape(self, shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape `apply` will give, from the shapes of the stored tensors."""
        shapes = list(shapes)
        shape = (sum(s[0] for s in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
        if self.rows is not None:
            shape = (shape[0] // self.rows[1], *shape[1:])
        if self.transpose:
            shape = shape[::-1]
        return shape if self.rank is None else self._ranked(shape)

    def _ranked(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.rank == 4 and len(shape) == 2:
            return (*shape, 1, 1)
        if self.rank == 2 and shape[2:] == (1, 1):
            return shape[:2]
        return shape


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """Replace the longest dotted prefix of `name` that the table knows; None if it knows none."""
    end = len(name)
    while end > 0:
        if name[:end] in table:
            return table[name[:end]] + name[end:]
        end = name.rfind(".", 0, end)
    return None


def invert(table: Mapping[str, str]) -> dict[str, str]:
    return {there: here for here, there in table.items()}


@dataclass(frozen=True)
class Outline:
    """What the numbering of a U-Net depends on: levels, ResBlocks per level, which levels have a transformer
    on the way up (finest first)."""

    levels: int
    res_blocks: int
    up_attention: tuple[bool, ...]

    @staticmethod
    def of(config: UNetConfig) -> "Outline":
        return Outline(
            len(config.channel_mult), config.num_res_blocks, tuple(depth[-1] > 0 for depth in config.up_depth)
        )

    @staticmethod
    def of_diffusers(names: Iterable[str]) -> "Outline":
        """Read the outline from diffusers keys."""
        modules = {tuple(name.split(".")[:4]) for name in names}
        levels = 1 + max((int(m[1]) for m in modules if m[0] == "down_blocks"), default=-1)
        res_blocks = len({m for m in modules if m[:3] == ("down_blocks", "0", "resnets")})
        up = tuple(
            any(m[:3] == ("up_blocks", str(levels - 1 - i), "attentions") for m in modules)
            for i in range(levels)
        )
        return Outline(levels, res_blocks, up)


_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet_table(outline: Outline, vector: str = "add_embedding") -> dict[str, str]:
    """Return {LDM prefix: diffusers prefix} of a U-Net; `vector` is diffusers' word for label_emb (or
    "class_embedding")."""
    table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "guidance_proj": "time_embedding.cond_proj",
        "label_emb.0.0": f"{vector}.linear_1",
        "label_emb.0.2": f"{vector}.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }

    def res_block(here: str, there: str) -> None:
        table.update({f"{here}.{a}": f"{there}.{b}" for a, b in _RES_BLOCK.items()})

    res_block("middle_block.0", "mid_block.resnets.0")
    res_block("middle_block.2", "mid_block.resnets.1")
    last = outline.levels - 1
    stride = outline.res_blocks + 1
    for i in range(outline.levels):
        for j in range(outline.res_blocks):
            res_block(f"input_blocks.{1 + stride * i + j}.0", f"down_blocks.{i}.resnets.{j}")
            table[f"input_blocks.{1 + stride * i + j}.1"] = f"down_blocks.{i}.attentions.{j}"
        if i != last:
            table[f"input_blocks.{stride * (i + 1)}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
        for j in range(stride):
            res_block(f"output_blocks.{stride * i + j}.0", f"up_blocks.{i}.resnets.{j}")
            table[f"output_blocks.{stride * i + j}.1"] = f"up_blocks.{i}.attentions.{j}"
        if i != last:
            slot = 2 if outline.up_attention[last - i] else 1
            table[f"output_blocks.{stride * i + stride - 1}.{slot}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    return table


def control_table(names: Iterable[str]) -> dict[str, str]:
    """Return {LDM prefix: diffusers prefix} of what a ControlNet has beside a U-Net's way down."""
    table = {
        "input_hint_block.0": "controlnet_cond_embedding.conv_in",
        "input_hint_block.14": "controlnet_cond_embedding.conv_out",
        "middle_block_out.0": "controlnet_mid_block",
    }
    table |= {f"input_hint_block.{2 * i + 2}": f"controlnet_cond_embedding.blocks.{i}" for i in range(6)}
    numbers = {name.split(".")[1] for name in names if name.startswith("controlnet_down_blocks.")}
    return table | {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in numbers}


def contiguous(names: Iterable[str]) -> dict[str, str]:
    """Return {stored name: name} that closes the gaps of single-ResBlock files exported with a stride of 3
    (tiny-sd, small-sd).

    diffusers' export script writes input_blocks 1, 3 (down), 4, 6 (down), ... and output_blocks 0, 1, 3, 4,
    ... with the upsampler of a level alone in block 3 i + 2. Other files come back unchanged.
    """
    names = list(names)
    if any(name.startswith("input_blocks.2.") for name in names) or "input_blocks.3.0.op.weight" not in names:
        return {name: name for name in names}
    closed = {}
    attention = {
        name.split(".")[1]
        for name in names
        if name.startswith("output_blocks.") and ".1.transformer_blocks." in name
    }
    for stored in names:
        name = stored
        kind, _, rest = stored.partition(".")
        number, _, inner = rest.partition(".")
        if not number.isdecimal():
            pass
        elif kind == "input_blocks" and number != "0":
            level, j = divmod(int(number) - 1, 3)
            name = f"{kind}.{2 * level + (1 if j == 0 else 2)}.{inner}"
        elif kind == "output_blocks":
            level, j = divmod(int(number), 3)
            if j == 2:
                slot = 2 if str(3 * level + 1) in attention else 1
                inner = f"{slot}.{inner.partition('.')[2]}"
            name = f"{kind}.{2 * level + min(j, 1)}.{inner}"
        closed[stored] = name
    return closed


def kl_table(config: KLConfig) -> dict[str, str]:
    """Return {LDM prefix: diffusers prefix} of a KL autoencoder."""
    table = {}
    for side in ("encoder", "decoder"):
        table[f"{side}.conv_in"] = f"{side}.conv_in"
        table[f"{side}.conv_out"] = f"{side}.conv_out"
        table[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        table[f"{side}.mid.attn_1.norm"] = f"{side}.mid_block.attentions.0.group_norm"
        for here, there in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
            table[f"{side}.mid.attn_1.{here}"] = f"{side}.mid_block.attentions.0.{there}"
        for j in (0, 1):
            table[f"{side}.mid.block_{j + 1}.nin_shortcut"] = f"{side}.mid_block.resnets.{j}.conv_shortcut"
            table[f"{side}.mid.block_{j + 1}"] = f"{side}.mid_block.resnets.{j}"
    levels = len(config.channel_mult)
    for i in range(levels):
        for here, there, blocks in (
            (f"encoder.down.{i}", f"encoder.down_blocks.{i}", config.num_res_blocks),
            (f"decoder.up.{levels - 1 - i}", f"decoder.up_blocks.{i}", config.num_res_blocks + 1),
        ):
            for j in range(blocks):
                table[f"{here}.block.{j}.nin_shortcut"] = f"{there}.resnets.{j}.conv_shortcut"
                table[f"{here}.block.{j}"] = f"{there}.resnets.{j}"
        table[f"encoder.down.{i}.downsample.conv"] = f"encoder.down_blocks.{i}.downsamplers.0.conv"
        table[f"decoder.up.{levels - 1 - i}.upsample.conv"] = f"decoder.up_blocks.{i}.upsamplers.0.conv"
    return table | {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}


# Before diffusers 0.18 the middle attention of the autoencoder had other names.
KL_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}

_ATTENTION = (".mid.attn_1.q.", ".mid.attn_1.k.", ".mid.attn_1.v.", ".mid.attn_1.proj_out.")


def kl_rank(name: str, layout: str) -> int | None:
    """Return the rank of a middle attention's weight in a layout (LDM: 1 x 1 convolution), None for every
    other tensor."""
    if not name.endswith(".weight") or not any(word in name for word in _ATTENTION):
        return None
    return 4 if layout == "ldm" else 2


def tiny_name(name: str, *, layout: str) -> str:
    """Rename a tensor of TAESD, from diffusers' layers to plain indices or ("diffusers") back: its decoder
    counts without the squashing."""
    side, number, rest = (name.replace(".layers.", ".", 1) + ".").split(".", 2)
    shift = 0 if side == "encoder" else 1
    if layout == "diffusers":
        return f"{side}.layers.{int(number) - shift}.{rest}"[:-1]
    return f"{side}.{int(number) + shift}.{rest}"[:-1]


_OPENCLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def from_openclip(name: str) -> dict[str, Take]:
    """Return the transformers tensors that one open_clip tensor holds: one, three (q, k, v), or none."""
    if name == "token_embedding.weight":
        return {"embeddings.token_embedding.weight": Take((name,))}
    if name == "positional_embedding":
        return {"embeddings.position_embedding.weight": Take((name,))}
    if name in ("text_projection", "text_projection.weight", "text_projection.weight.weight"):
        return {"text_projection.weight": Take((name,), transpose=name == "text_projection")}
    if name.startswith("ln_final."):
        return {"final_layer_norm." + name.removeprefix("ln_final."): Take((name,))}
    return _openclip_block(name)


_OPENCLIP_VISION = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}


def from_openclip_vision(name: str) -> dict[str, Take]:
    """Return the tensors of transformers' vision tower that one of open_clip's holds; none for the text tower's."""
    inner = name.removeprefix("visual.")
    if inner == name:
        return {}
    if inner in _OPENCLIP_VISION:
        return {_OPENCLIP_VISION[inner]: Take((name,), transpose=inner == "proj")}
    return {
        f"vision_model.{ours}": Take((name,), rows=take.rows) for ours, take in _openclip_block(inner).items()
    }


def _openclip_block(name: str) -> dict[str, Take]:
    pieces = name.split(".", 3)
    if pieces[:2] != ["transformer", "resblocks"] or len(pieces) < 4:
        return {}
    block, inner = f"encoder.layers.{pieces[2]}.", pieces[3]
    for kind in ("weight", "bias"):
        if inner == f"attn.in_proj_{kind}":
            return {f"{block}{module}.{kind}": Take((name,), rows=(k, 3)) for k, module in enumerate(_FUSED)}
    found = rename(inner, invert(_OPENCLIP_BLOCK))
    return {} if found is None else {block + found: Take((name,))}


def to_openclip(names: Iterable[str]) -> dict[str, Take]:
    """Return {open_clip tensor: how it is made} for the transformers tensors of a tower."""
    top = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    made = {}
    for name in names:
        if name in top:
            made[top[name]] = Take((name,))
        elif name == "text_projection.weight":
            made["text_projection"] = Take((name,), transpose=True)
        elif name.startswith("final_layer_norm."):
            made["ln_final." + name.removeprefix("final_layer_norm.")] = Take((name,))
        else:
            _, _, number, inner = name.split(".", 3)
            module, _, kind = inner.rpartition(".")
            here, block = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
            if module in _FUSED:
                made[f"{block}attn.in_proj_{kind}"] = Take(tuple(f"{here}{part}.{kind}" for part in _FUSED))
            else:
                made[block + _OPENCLIP_BLOCK[module] + "." + kind] = Take((name,))
    return made
