"""A file's tensors sorted into parts, under the names our modules use, from its header alone. Torch-free.

Prefixes of whole checkpoints are stripped, bare files (only a U-Net, only an autoencoder) are recognised,
both layouts go through keymap.py. What belongs to no part is either known junk or unknown; nothing is dropped
in silence.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ddgen.errors import ModelError
from ddgen.nets.config import KLConfig
from ddgen.weights import keymap
from ddgen.weights.header import AGAIN, Header, refuse
from ddgen.weights.keymap import Outline, Take

UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.")
FIRST_STAGE_PREFIXES = ("first_stage_model.", "vae.")
TEXT_PREFIXES = (
    ("cond_stage_model.transformer.text_model.", "hf"),
    ("cond_stage_model.transformer.", "hf"),
    ("cond_stage_model.model.", "openclip"),
    ("conditioner.embedders.0.transformer.text_model.", "hf"),
    ("conditioner.embedders.0.model.", "openclip"),
    ("conditioner.embedders.1.model.", "openclip"),
    ("clip_l.transformer.text_model.", "hf"),
    ("clip_g.transformer.text_model.", "hf"),
    ("text_model.", "hf"),
)

_ADAPTERS = (
    (
        "is a LoRA adapter, not a model",
        "give it with --lora",
        ("lora_", ".lora_down.", ".lora_A.", "hada_", "lokr_", "oft_"),
    ),
    ("is a textual inversion, not a model", "give it with --embedding", ("string_to_param", "emb_params")),
    (
        "is a ControlNet, not a model",
        "choose a checkpoint",
        ("control_model.", "controlnet_", "controlnet_cond_embedding"),
    ),
    ("is an IP-Adapter, not a model", "choose a checkpoint", ("image_proj.", "ip_adapter.")),
    ("is a T2I-Adapter, not a model", "choose a checkpoint", ("adapter.body.", "body.0.resnets")),
)


@dataclass(frozen=True)
class Stored:
    """A tensor of a part, not yet read: the file, how it is made from the file's tensors, its shape, the name
    of its scale if it is fp8."""

    header: Header
    take: Take
    shape: tuple[int, ...]
    scale: str | None = None

    @property
    def dtype(self) -> str:
        return self.header.tensors[self.take.names[0]].dtype


def stored_as(header: Header, take: Take, scale: str | None = None) -> Stored:
    """Return what a take makes of a file's tensors.

    Raises:
        ModelError: rows that cannot be parted equally: cut somewhere, the pieces would be read askew.
    """
    shapes = [header.tensors[name].shape for name in take.names]
    if take.rows is not None and (not shapes[0] or shapes[0][0] % take.rows[1]):
        said = "x".join(map(str, shapes[0])) or "no sides"
        refuse(header.path, f"is damaged: '{take.names[0]}' ({said}) has no {take.rows[1]} equal parts", AGAIN, "shape")
    return Stored(header, take, take.shape(shapes), scale)


Part = dict[str, Stored]


@dataclass(frozen=True)
class Split:
    """One file, sorted. parts: "unet", "first_stage", "text.0", "text.1"; text: (prefix, layout) of each
    tower; ema: a second U-Net."""

    layout: str
    parts: dict[str, Part]
    text: tuple[tuple[str, str], ...] = ()
    ema: Part = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def split(header: Header) -> Split:
    """Sort a file's tensors into parts under native names.

    Raises:
        ModelError: an adapter, or nothing that ddgen knows.
    """
    left = set(header.tensors)
    scales = {
        name.removesuffix(".scale_weight") + ".weight": name
        for name in left
        if name.endswith(".scale_weight")
    }
    left -= set(scales.values())
    parts: dict[str, Part] = {}
    layouts = set()

    def claim(part: str, found: tuple[str, Part] | None) -> None:
        if found is not None and found[1]:
            layouts.add(found[0])
            parts[part] = found[1]
            for stored in found[1].values():
                left.difference_update(stored.take.names)

    def stored(take: Take) -> Stored:
        return stored_as(header, take, scales.get(take.names[0]))

    claim("unet", _prefixed(left, UNET_PREFIXES, _is_unet, unet_part, stored))
    towers = []
    for prefix, layout in TEXT_PREFIXES:
        if any(name.startswith(prefix) and name.endswith("token_embedding.weight") for name in left):
            part = text_part(left, prefix, layout, stored)
            if part:
                claim(f"text.{len(towers)}", ("ldm", part))
                towers.append((prefix, layout))
    claim("first_stage", _prefixed(left, FIRST_STAGE_PREFIXES, _is_first_stage, first_stage_part, stored))
    if not parts:
        _refuse_stranger(header.path, header.tensors)

    ema: Part = {}
    for name, item in parts.get("unet", {}).items():
        flat = "model_ema." + "".join(item.take.names[0].split(".")[1:])
        if flat in left:
            ema[name] = replace(item, take=replace(item.take, names=(flat,)))
    left.difference_update(item.take.names[0] for item in ema.values())
    junk = tuple(sorted(name for name in left if keymap.ignored(name)))
    layout = "diffusers" if layouts == {"diffusers"} else "ldm"
    return Split(layout, parts, tuple(towers), ema, junk, tuple(sorted(left.difference(junk))))


Store = Callable[[Take], Stored]


def unet_part(names: Iterable[str], prefix: str, stored: Store) -> tuple[str, Part]:
    """Return the layout and the tensors of a U-Net whose keys start with `prefix`, in either layout."""
    bare = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if any(name.startswith("input_blocks.") for name in bare):
        mapping = {name: native for name, native in keymap.contiguous(bare).items() if _known_ldm(native)}
        return "ldm", {native: stored(Take((prefix + name,))) for name, native in mapping.items()}
    outline = Outline.of_diffusers(bare)
    table = keymap.invert(keymap.unet_table(outline, "class_embedding")) | keymap.invert(
        keymap.unet_table(outline)
    )
    renamed = {name: keymap.rename(name, table) for name in bare}
    return "diffusers", {
        native: stored(Take((prefix + name,))) for name, native in renamed.items() if native is not None
    }


def first_stage_part(names: Iterable[str], prefix: str, stored: Store) -> tuple[str, Part]:
    """Return the layout and the tensors of an autoencoder, large or tiny, whose keys start with `prefix`."""
    bare = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    bare = [
        name for name in bare if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    ]
    part: Part = {}
    if any(".layers." in name for name in bare):
        return "diffusers", {
            keymap.tiny_name(name, layout="ldm"): stored(Take((prefix + name,))) for name in bare
        }
    if any(name.split(".")[1].isdigit() for name in bare):
        return "ldm", {name: stored(Take((prefix + name,))) for name in bare}
    if not any(".down_blocks." in name or ".up_blocks." in name for name in bare):
        for name in bare:
            part[name] = stored(Take((prefix + name,), rank=keymap.kl_rank(name, "ldm")))
        return "ldm", part
    levels = 1 + max(
        int(name.split(".")[2]) for name in bare if "_blocks." in name and name.split(".")[2].isdigit()
    )
    blocks = len({name.split(".")[4] for name in bare if name.startswith("encoder.down_blocks.0.resnets.")})
    if not blocks:
        blocks = (
            len({name.split(".")[4] for name in bare if name.startswith("decoder.up_blocks.0.resnets.")}) - 1
        )
    table = keymap.invert(keymap.kl_table(KLConfig(channel_mult=(1,) * levels, num_res_blocks=blocks)))
    for name in bare:
        modern = name
        for old, new in keymap.KL_OLD_NAMES.items():
            modern = modern.replace(old, new)
        native = keymap.rename(modern, table)
        if native is not None:
            part[native] = stored(Take((prefix + name,), rank=keymap.kl_rank(native, "ldm")))
    return "diffusers", part


def text_part(names: Iterable[str], prefix: str, layout: str, stored: Store) -> Part:
    """Return the tensors of a text tower whose keys start with `prefix`; the projection of layout "hf" lies
    beside `text_model.`."""
    part: Part = {}
    beside = prefix.removesuffix("text_model.") + "text_projection.weight"
    for name in names:
        if name == beside and layout == "hf":
            part["text_projection.weight"] = stored(Take((name,)))
        elif name.startswith(prefix) and not keymap.ignored(name):
            bare = name.removeprefix(prefix)
            if layout == "openclip":
                taken = keymap.from_openclip(bare)
                part |= {new: stored(replace(take, names=(name,))) for new, take in taken.items()}
            elif bare.startswith(("embeddings.", "encoder.layers.", "final_layer_norm.")):
                part[bare] = stored(Take((name,)))
    return part


def _prefixed(
    names: set[str],
    prefixes: tuple[str, ...],
    holds: Callable[[set[str]], bool],
    build: Callable[[Iterable[str], str, Store], tuple[str, Part]],
    stored: Store,
) -> tuple[str, Part] | None:
    for prefix in (*prefixes, ""):
        bare = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        if holds(bare):
            return build(names, prefix, stored)
    return None


def _is_unet(names: set[str]) -> bool:
    return "input_blocks.0.0.weight" in names or {"conv_in.weight", "time_embedding.linear_1.weight"} <= names


def _is_first_stage(names: set[str]) -> bool:
    heads = (
        "encoder.conv_in.weight",
        "decoder.conv_in.weight",
        "encoder.layers.0.weight",
        "decoder.layers.0.weight",
    )
    return any(name in names for name in (*heads, "encoder.0.weight", "decoder.1.weight"))


def _known_ldm(name: str) -> bool:
    return name.startswith(
        (
            "input_blocks.",
            "middle_block.",
            "output_blocks.",
            "out.",
            "time_embed.",
            "label_emb.",
            "guidance_proj.",
        )
    )


def _refuse_stranger(path: Path, names: Iterable[str]) -> None:
    for message, hint, marks in _ADAPTERS:
        if any(mark in name for name in names for mark in marks):
            raise ModelError(f"model '{path.name}' {message}", hint, id="model.adapter")
    first = min(names, default="none")
    raise ModelError(
        f"model '{path.name}' holds nothing that ddgen knows (first tensor: {first!a})",
        "give a Stable Diffusion checkpoint",
        id="model.unknown",
    )
