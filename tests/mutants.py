"""Weight files that are sound safetensors and hold nonsense: models, LoRAs and embeddings whose tensors were renamed,
reshaped, retyped, lost. Whatever reads them gives a clean error or reads them.

    python tests/mutants.py [COUNT] [SEED]     so many of each kind (10,000); prints what was accepted and refused
"""

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from lora_cases import CONV, ENTRY, Model, Q
from small import small_file

from ddgen.app.assemble import part_modules
from ddgen.errors import DdgenError
from ddgen.weights.adapter_header import inspect_adapter
from ddgen.weights.arch import check_arch
from ddgen.weights.checkpoint import check_fit, open_checkpoint, unfilled
from ddgen.weights.embedding import open_embedding, words_of
from ddgen.weights.header import BYTES, product, read_header
from ddgen.weights.inspect import inspect

Entries = dict[str, tuple[str, list[int]]]
"""{name: (dtype, shape)}"""
FAMILIES = ("SD15", "SD21", "SDXL", "TINY_SD", "REFINER", "SD15_LCM")
SIDES = (1, 2, 3, 5, 7, 24, 32, 33, 64, 77, 320, 768, 1024)
LARGEST = 2**24  # elements: files are written
MARKS = (
    "v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min", "scaled_fp8",
    "model_ema.decay", "lora_unet_x.lora_down.weight", "text_projection.weight", "clip_g", "emb_params",
)  # fmt: skip
METADATA = (
    None, None, None, {"ddgen": "{}"}, {"modelspec.prediction_type": "v"}, {"format": "pt"}, {"ss_tag_frequency": "[1]"},
    {"lora_adapter_metadata": '{"unet.r": "x", "unet.lora_alpha": null}'}, {"lora_adapter_metadata": "[]"},
    {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
)  # fmt: skip


def entries_of(path: Path) -> Entries:
    return {name: (info.dtype, list(info.shape)) for name, info in read_header(path).tensors.items()}


def model_seeds(folder: Path) -> list[Entries]:
    """Whole small checkpoints."""
    found = []
    for name in FAMILIES:
        small_file(folder / "seed.safetensors", name)
        found.append(entries_of(folder / "seed.safetensors"))
    return found


def adapter_seeds(model: Model) -> list[Entries]:
    """A LoRA of each dialect and form on three layers of a small model, and embeddings."""
    kohya = {name: "lora_unet_" + name.replace(".", "_") for name in (Q, CONV, ENTRY)}
    shapes = {name: tuple(model.before["unet"][f"{name}.weight"].shape) for name in kohya}
    found: list[dict[str, tuple[int, ...]]] = [{} for _ in range(9)]
    for name, called in kohya.items():
        out, into, *kernel = shapes[name]
        low = {"down": (4, into, *kernel), "up": (out, 4, *(1 for _ in kernel))}
        plain = {f"{called}.lora_{role}.weight": shape for role, shape in low.items()} | {f"{called}.alpha": ()}
        found[0] |= plain
        found[1] |= plain | {f"{called}.dora_scale": (1, into)}
        found[2] |= {f"{called}.hada_{w}_a": (out, 2) for w in ("w1", "w2")}
        found[2] |= {f"{called}.hada_{w}_b": (2, into * product(tuple(kernel))) for w in ("w1", "w2")}
        found[3] |= {f"{called}.lokr_w1": (4, 4), f"{called}.lokr_w2": (out // 4, max(1, into // 4), *kernel)}
        found[4] |= {f"{called}.diff": shapes[name], f"{called}.diff_b": (out,)}
        found[5] |= {f"unet.{name}.lora_A.weight": low["down"], f"unet.{name}.lora_B.weight": low["up"]}
        found[5] |= {f"unet.{name}.lora_magnitude_vector": (out,)}
        found[6] |= {f"{called}.oft_blocks": (4, out // 4, out // 4), f"{called}.alpha": ()}
        found[6] |= {f"{called}.weight": (out,), f"{called}.on_input": ()}
    found[7] = {"clip_l": (3, 24), "clip_g": (3, 32)}
    found[8] = {"emb_params": (2, 24)}
    return [{name: ("F16", list(shape)) for name, shape in seed.items()} for seed in found]


def mutated(seed: Entries, rng: random.Random) -> Entries:
    """Up to four changes of a file's tensors."""
    entries = dict(seed)
    words = [*sorted({word for name in seed for word in name.split(".")}), "0", "2", "9", "99", "-1", "x", "\u0663"]
    for _ in range(rng.randint(1, 4)):
        if not entries:
            break
        name = rng.choice(list(entries))
        kind, (dtype, shape) = rng.randrange(8), entries[name]
        parts = name.split(".")
        at = rng.randrange(len(parts))
        if kind == 0:
            entries[name] = dtype, [rng.choice(SIDES) for _ in range(rng.randint(0, 5))]
        elif kind == 1 and shape:
            side = rng.randrange(len(shape))
            entries[name] = dtype, [*shape[:side], rng.choice(SIDES), *shape[side + 1 :]]
        elif kind == 2:
            entries[name] = rng.choice(list(BYTES)), shape
        elif kind == 3:
            del entries[name]
        elif kind == 4:  # one tensor under another name
            del entries[name]
            entries[".".join([*parts[:at], rng.choice(words), *parts[at + 1 :]])] = dtype, shape
        elif kind == 5:  # a whole block is missing
            block = ".".join(parts[: at + 1])
            entries = {other: value for other, value in entries.items() if not other.startswith(block)}
        elif kind == 6:  # a whole block under another name
            old, new = ".".join(parts[: at + 1]), ".".join([*parts[:at], rng.choice(words)])
            entries = {
                new + other[len(old) :] if other.startswith(old + ".") else other: value
                for other, value in entries.items()
            }
        else:
            beside = rng.choice((*MARKS, name + ".scale_weight", name.removesuffix(".weight") + ".scale_weight"))
            entries[beside] = rng.choice(("F32", "F16", "BF16", "I64")), [rng.choice((1, 4))] * rng.randint(0, 2)
    return {
        name: (dtype, shape if product(tuple(shape)) <= LARGEST else shape[:1])
        for name, (dtype, shape) in entries.items()
        if name
    }


def write(path: Path, entries: Entries, metadata: dict[str, str] | None, data: bytes = b"") -> None:
    """Write a file of holes, or of `data` over and over."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, (dtype, shape) in entries.items():
        size = product(tuple(shape)) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if data:
            file.write((data * (offset // len(data) + 1))[:offset])
        file.truncate(8 + len(text) + offset)


def build(path: Path) -> None:
    """All that is done with a model before its weights are read."""
    inspect(path)
    found = open_checkpoint(path)
    if found.arch is not None:
        unet, text = found.arch.unet, found.arch.text  # of small networks: shapes do not tell heads, words are few
        unet = replace(unet, heads=tuple(max(1, count) for count in unet.heads))
        arch = replace(found.arch, unet=unet, text=tuple(replace(tower, pad_id=0) for tower in text))
        check_arch(arch, path.name)
        with unfilled():
            modules = part_modules(arch)
        for name, module in modules.items():
            check_fit(module, found.part(name), name)


def adapt(path: Path, model: Model) -> None:
    """All that is done with an adapter."""
    inspect_adapter(path)
    try:
        model.put((path, 0.5))
    except DdgenError:
        words_of([open_embedding(path)], model.arch.text, "small")


def campaign(
    seeds: list[Entries], read: Callable[[Path], None], count: int, rng: random.Random, data: bytes = b""
) -> Counter[str]:
    """Read mutants; return how many were accepted and how many refused. Anything but a clean error is raised, with
    the mutant's number."""
    told: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.safetensors"
        for number in range(count):
            path.unlink(missing_ok=True)
            write(path, mutated(rng.choice(seeds), rng), rng.choice(METADATA), data)
            try:
                read(path)
                told["accepted"] += 1
            except DdgenError as error:
                assert "mutant" in str(error) and error.hint and "\n" not in str(error), (number, str(error))
                told["refused"] += 1
            except Exception as error:
                raise AssertionError(f"mutant {number}: {type(error).__name__}: {error}") from error
    return told


def models(count: int, seed: int) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        seeds = model_seeds(Path(folder))
    return campaign(seeds, build, count, random.Random(seed))


def adapters(count: int, seed: int) -> Counter[str]:
    model = Model(dtype=torch.float32)
    halves = torch.linspace(-0.5, 0.5, 251).half().numpy().tobytes()
    return campaign(
        adapter_seeds(model), lambda path: adapt(path, model), count, random.Random(seed), halves
    )


def main(count: int = 10_000, seed: int = 0) -> None:
    for kind in (models, adapters):
        print(kind.__name__, dict(kind(count, seed)), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
