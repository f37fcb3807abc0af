"""What a run changes about a model: adapters, embeddings, another autoencoder, another rule. Spec -> Spec;
torch-free.

    ddgen sample "..." --model sd15 --lora ink.safetensors:0.8 --embedding cat.pt --vae taesd --prediction v
    --clip-skip 2

The files are put on the model when it is assembled (additions.py); here they are only found, and the defaults
that go with a LoRA of few
steps are taken over.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ddgen.errors import ModelError, UsageError, choose, nearest
from ddgen.nets.config import PatchConfig
from ddgen.weights import registry, shelves
from ddgen.weights.arch import Arch
from ddgen.weights.lora_names import FOLDER_FILES
from ddgen.weights.spec import PREDICTIONS, SCALED_LINEAR, Addition, Defaults, Spec

MAX_WEIGHT = 10.0
MAX_CLIP_SKIP = 12
TINY = {"taesd": "taesdxl"}

# LoRAs that make a model sample in few steps, by what their makers call the files: steps (None: in the name),
# guidance, sampler, spacing.
FEW_STEPS: tuple[tuple[str, int | None, float, str, str], ...] = (
    (r"lcm[-_]?lora|vega[-_]?rt|(?<![a-z])lcm(?![a-z])", 4, 1.0, "lcm", "lcm"),
    (r"lightning\D*(\d)[-_ ]?step", None, 1.0, "euler", "trailing"),
    (r"hyper[-_]?sd\w*-(\d+)[-_ ]?steps?-cfg", None, 6.0, "ddim", "trailing"),
    (r"hyper[-_]?sd\w*-(\d+)[-_ ]?step", None, 1.0, "ddim", "trailing"),
)


def adjust(
    spec: Spec,
    *,
    loras: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    vae: str | None = None,
    prediction: str | None = None,
    clip_skip: int | None = None,
    ema: bool = False,
    refiner: str | None = None,
    refiner_start: float | None = None,
    weights_file: str | Path | None = None,
) -> Spec:
    """Return the Spec of a model with a run's changes.

    loras: FILE or FILE:WEIGHT; one that is not there is a name in the user's lora_dirs, as an embedding is.
    refiner: a model that takes over after the fraction refiner_start of the times. clip_skip: which layer from
    the end gives the context, 1 = the last; never less than the model itself skips. ema: take the averaged U-Net.

    Raises:
        UsageError: a weight, prediction or layer out of range. ModelError: a file that is not there, or that
        the model has no use for.
    """
    additions = [_addition("lora", *parse_lora(text)) for text in loras]
    additions += [_addition("embedding", text) for text in embeddings]
    if vae is not None:
        if isinstance(spec.arch.first_stage, PatchConfig):
            raise ModelError(
                f"model '{spec.name}' draws pixels and has no autoencoder to replace",
                "drop --vae",
                id="model.vae",
            )
        name = TINY[vae] if vae in TINY and spec.arch.vector_ids else vae
        additions.append(Addition("vae", registry.find_vae(name, weights_file=weights_file)))
    if (
        additions and any(item.kind == "embedding" for item in additions) or clip_skip is not None
    ) and not spec.arch.text:
        raise ModelError(
            f"model '{spec.name}' has no text tower", "drop --embedding and --clip-skip", id="model.text"
        )
    if clip_skip is not None:
        check_clip_skip(clip_skip, spec.arch)
    if ema and spec.source.path is not None:
        from ddgen.weights.layout import open_checkpoint

        open_checkpoint(spec.source.path).averaged()  # told now, not after the wait
    changed = replace(
        spec,
        ema=ema or spec.ema,
        changes=spec.changes
        | ({} if clip_skip is None else {"clip_skip": clip_skip})
        | ({"ema": True} if ema else {}),
        additions=(*spec.additions, *additions),
        clip_skip=spec.clip_skip if clip_skip is None else clip_skip,
        defaults=few_step_defaults(spec.defaults, additions),
    )
    if refiner is not None:
        changed = hand_over_to(changed, registry.find(refiner, weights_file=weights_file), refiner_start)
    if prediction is None or prediction == spec.prediction:
        return changed
    choose("prediction", prediction, PREDICTIONS)
    schedule = (
        spec.schedule
        if prediction != "eps"
        else {key: value for key, value in spec.schedule.items() if key != "zero_terminal_snr"}
    )
    changes = changed.changes | {"prediction": prediction}
    return replace(
        changed, prediction=prediction, schedule=schedule or dict(SCALED_LINEAR), changes=changes
    )


def hand_over_to(spec: Spec, refiner: Spec, start: float | None) -> Spec:
    """Return the Spec with a refiner.

    Raises:
        UsageError: a fraction outside 0 to 1. ModelError: a model that knows other latents.
    """
    start = spec.refiner_start if start is None else start
    if not 0.0 <= start <= 1.0:
        raise UsageError(f"--refiner-start {start:g} is out of range", "use 0 to 1", id="usage.range")
    if (
        _latents(refiner.arch) != _latents(spec.arch)
        or refiner.arch.unet.in_channels != spec.arch.unet.in_channels
    ):
        raise ModelError(
            f"model '{refiner.name}' cannot go on with the latents of '{spec.name}'",
            "choose a refiner of its family",
            id="model.refiner",
        )
    return replace(spec, refiner=refiner, refiner_start=start)


def _latents(arch: Arch) -> tuple[object, ...]:
    stage = arch.first_stage
    return (
        type(stage),
        stage.channels,
        stage.factor,
        getattr(stage, "scale_factor", None),
        getattr(stage, "latents_mean", None),
    )


def parse_lora(text: str, flag: str = "--lora") -> tuple[str, float]:
    """Return the file and weight of FILE[:W]; what stands behind the last colon is a weight if it is a
    number.

    Raises:
        UsageError: a weight out of range.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or not head or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", tail):
        return text, 1.0
    weight = float(tail)
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise UsageError(
            f"{flag} weight {tail} is out of range",
            f"use {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}",
            id="usage.range",
        )
    return head, weight


def _addition(kind: str, text: str, weight: float = 1.0) -> Addition:
    path = Path(text).expanduser()
    if not path.exists():
        shelved = shelves.search("lora_dirs", text)
        if shelved is None:
            close = nearest(text, shelves.names("lora_dirs"))
            hint = f"did you mean '{close}'?" if close else "check the path"
            raise ModelError(f"--{kind} '{text}': no such file", hint, id=f"model.{kind}-missing")
        path = shelved
    if path.is_dir():
        path = next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)
    return Addition(kind, path, weight)


def check_clip_skip(clip_skip: int, arch: Arch) -> None:
    """Refuse a layer that the text towers do not have.

    Raises:
        UsageError: out of range.
    """
    most = min(MAX_CLIP_SKIP, *(tower.config.layers for tower in arch.text))
    if not 1 <= clip_skip <= most:
        raise UsageError(f"--clip-skip {clip_skip} is out of range", f"use 1 to {most}", id="usage.range")


def few_step_defaults(defaults: Defaults, additions: Sequence[Addition]) -> Defaults:
    """Return the defaults that a LoRA of few steps was made for; those of the first one that is known by its
    name.
    """
    for item in additions:
        if item.kind != "lora":
            continue
        for part in (
            item.path.name,
            item.path.parent.name,
            *(parent.name for parent in item.path.resolve().parents[:4]),
        ):
            for pattern, steps, guidance, sampler, spacing in FEW_STEPS:
                found = re.search(pattern, part, re.IGNORECASE)
                if found is not None:
                    count = steps if steps is not None else int(found[1])
                    return replace(
                        defaults, steps=count, guidance=guidance, sampler=sampler, spacing=spacing, eta=None
                    )
    return defaults
