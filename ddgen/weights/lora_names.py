"""What LoRA files call things: their many spellings of a module's name, and of the role that a tensor has for
it. Torch-free.

    lora_unet_down_blocks_0_attentions_0_proj_in . lora_down.weight        kohya       (also with LDM paths)
    unet.down_blocks.0.attentions.0.proj_in      . lora_A.weight           PEFT
    lycoris_down_blocks_0_attentions_0_proj_in   . lokr_w1_a               LyCORIS
    diffusion_model.input_blocks.1.1.proj_in     . diff_b                  ComfyUI

Underscores cannot be split back into dots, so nothing is parsed: every module of the *model* is written in
every spelling, and a file's
names are looked up among those.
"""

import re
from collections.abc import Iterable, Iterator

from ddgen.nets.config import UNetConfig
from ddgen.weights import keymap

Place = tuple[str, str]
"""A part of the model ("unet", "text.0", "text.1") and a module of it, by its native name."""

FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the file in a folder that they save."""

# The role of a tensor, by the end of its key.
ROLES = {
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".alpha": "alpha", ".lora.alpha": "alpha", ".lora_linear_layer.alpha": "alpha",
    ".scalar": "scalar", ".dora_scale": "dora",
    ".hada_w1_a": "w1_a", ".hada_w1_b": "w1_b", ".hada_w2_a": "w2_a", ".hada_w2_b": "w2_b",
    ".hada_t1": "t1", ".hada_t2": "t2",
    ".lokr_w1": "k1", ".lokr_w1_a": "k1_a", ".lokr_w1_b": "k1_b",
    ".lokr_w2": "k2", ".lokr_w2_a": "k2_a", ".lokr_w2_b": "k2_b", ".lokr_t2": "kt2",
    ".a1.weight": "a1", ".a2.weight": "a2", ".b1.weight": "b1", ".b2.weight": "b2",
    ".oft_blocks": "oft_blocks", ".oft_diag": "oft_diag", ".rescale": "rescale",
    ".diff": "diff", ".diff_b": "diff_b", ".w_norm": "diff", ".b_norm": "diff_b", ".set_weight": "set",
    ".on_input": "on_input", ".weight": "ia3",
}  # fmt: skip
_PEFT = re.compile(r"\.lora_(A|B|magnitude_vector)(?:\.(?!weight$)[\w-]{1,64})?(?:\.weight)?$")
_PEFT_ROLES = {"A": "down", "B": "up", "magnitude_vector": "magnitude"}
_OLD_PROCESSOR = re.compile(r"(.*?\.)(?:processor\.)?to_(q|k|v|out)_lora")


def parse(key: str) -> tuple[str, str] | None:
    """Return the module's name as the file spells it and the tensor's role, or None when the key is of no
    dialect.
    """
    found = _PEFT.search(key)
    if found is not None:
        module, role = key[: found.start()], _PEFT_ROLES[found[1]]
    else:
        end = max((end for end in ROLES if key.endswith(end)), key=len, default=None)
        if end is None:
            return None
        module, role = key.removesuffix(end), ROLES[end]
        if end.startswith("_lora"):
            module += "_lora"
    return _old_processor(module.removeprefix("base_model.model.")), role


def _old_processor(module: str) -> str:
    """Return the module that an attention processor of early diffusers stands for."""
    found = _OLD_PROCESSOR.fullmatch(module)
    if found is None:
        return module
    if found[1].endswith("self_attn."):
        return f"{found[1]}{found[2]}_proj"
    return f"{found[1]}to_{found[2]}" + (".0" if found[2] == "out" else "")


def unet_spellings(modules: Iterable[str], config: UNetConfig) -> Iterator[tuple[str, Place]]:
    """Yield every spelling of every module of a U-Net with the place that it means."""
    outline = keymap.Outline.of(config)
    tables = [keymap.unet_table(outline, word) for word in ("add_embedding", "class_embedding")]
    for module in modules:
        place = ("unet", module)
        renamed = {keymap.rename(module, table) for table in tables} - {None}
        for path in sorted({module, *renamed}):  # type: ignore[type-var]
            flat = path.replace(".", "_")
            for prefix in ("unet.", "diffusion_model.", "model.diffusion_model.", ""):
                yield prefix + path, place
            for prefix in ("lora_unet_", "lycoris_", "lycoris_unet_"):
                yield prefix + flat, place


def text_spellings(modules: Iterable[str], index: int, count: int) -> Iterator[tuple[str, Place]]:
    """Yield every spelling of every module of text tower `index` of `count`."""
    short = ("lora_te",) if count == 1 else (f"lora_te{index + 1}",)
    long = [
        "text_encoder" if index == 0 else "text_encoder_2",
        ("clip_l" if index == 0 else "clip_g") + ".transformer",
    ]
    long += [f"text_encoders.{long[1]}"]
    for module in modules:
        place = (f"text.{index}", module)
        paths = (module,) if module == "text_projection" else (f"text_model.{module}", module)
        for path in paths:
            for prefix in long:
                yield f"{prefix}.{path}", place
            for prefix in short:
                yield f"{prefix}_{path.replace('.', '_')}", place
        if count == 1 and module != "text_projection":
            yield f"text_model.{module}", place


def component(module: str) -> str:
    """Return which component's PEFT settings apply to a module, as a file spells it."""
    head = module.split(".", 1)[0]
    return head if head in ("text_encoder", "text_encoder_2") else "unet"


def looks_like(widths: Iterable[int], modules: Iterable[str]) -> str | None:
    """Guess the family of an adapter from the input widths of its cross-attention keys, or from its text
    towers' names.
    """
    families = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}
    for width in widths:
        if width in families:
            return families[width]
    if any(name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for name in modules):
        return "SDXL"
    return None
