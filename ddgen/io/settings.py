"""The settings that a line of a prompt file may carry: their names, other tools' names for them, and their
types.

    {"steps": "20,30", "cfg": 7}  ->  {"steps": (20, 30), "guidance": (7.0,)}

Every setting is a tuple of values: one is the rule, several are a sweep, and a line makes their product. Only
what shapes the picture may stand in a prompt file: where files are written, and which weights are trusted, is
said on the command line alone; pictures may be named that lie beside or below it (app/inputs.py). Ranges are the planner's matter.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ddgen.errors import nearest

Value = bool | str | int | float | tuple[float, ...] | tuple[str, ...]
Settings = Mapping[str, tuple[Value, ...]]

MAX_VALUES = 1000


class SettingError(ValueError):
    """A key or value that cannot stand in a prompt file; `hint` is the mend."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def read_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value


def read_bool(value: object) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def read_int(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError("is not a whole number")
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?\d{1,20}", value.strip(), re.ASCII) is None:
            raise ValueError("is not a whole number")
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError("is not a whole number")


def read_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    return number


def read_floats(value: object) -> tuple[float, ...]:
    """Read a list of numbers: `14.6,7,2,0` or [14.6, 7, 2, 0]."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError("is not a list of numbers")
    return tuple(read_float(part) for part in parts)


def read_interval(value: object) -> tuple[float, ...]:
    """Read `0.2:0.8` or [0.2, 0.8]."""
    parts = value.split(":") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ValueError("is not LOW:HIGH")
    return tuple(read_float(part) for part in parts)


def read_size(value: object) -> str:
    if not isinstance(value, str) or re.fullmatch(r"\d{1,6}x\d{1,6}", value.strip(), re.ASCII) is None:
        raise ValueError("is not WIDTHxHEIGHT")
    return value.strip()


def read_several(value: object) -> tuple[str, ...]:
    """Read one or several pictures that steer: `canny:a.png; scribble:b.png` or a list of texts."""
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError("names no picture")
    return tuple(part.strip() for part in parts)


@dataclass(frozen=True)
class Key:
    """How one setting is read.

    split: commas in text part several values; wide: the value itself is a list.
    """

    read: Callable[[object], Value]
    split: bool = True
    wide: bool = False


KEYS: dict[str, Key] = {
    "negative": Key(read_text, split=False),
    "num": Key(read_int),
    "best": Key(read_int),
    "seed": Key(read_int),
    "width": Key(read_int),
    "height": Key(read_int),
    "size": Key(read_size),
    "steps": Key(read_int),
    "guidance": Key(read_float),
    "guidance_rescale": Key(read_float),
    "guidance_interval": Key(read_interval, wide=True),
    "sampler": Key(read_text),
    "spacing": Key(read_text),
    "sigmas": Key(read_floats, split=False, wide=True),
    "eta": Key(read_float),
    "scale": Key(read_int),
    "prompt_syntax": Key(read_text),
    "rng": Key(read_text),
    "tile": Key(read_text),
    "transparent": Key(read_bool),
    "variation": Key(read_float),
    "variation_seed": Key(read_int),
    "init": Key(read_text, split=False),
    "mask": Key(read_text, split=False),
    "control": Key(read_several, split=False, wide=True),
    "image_prompt": Key(read_several, split=False, wide=True),
    "strength": Key(read_float),
    "image_guidance": Key(read_float),
    "fit": Key(read_text),
    "style": Key(read_text),
    "expand": Key(read_bool),
    "note": Key(read_text, split=False),
}

ALIASES = {
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "guidance_scale": "guidance",
    "cfg_rescale": "guidance_rescale",
    "cfg_interval": "guidance_interval",
    "schedule": "spacing",
    "scheduler": "spacing",
    "sampler_name": "sampler",
    "negative_prompt": "negative",
    "no": "negative",
    "n": "num",
    "n_iter": "num",
    "styles": "style",
    "s": "seed",
}

REFUSED = {
    "model": "--model",
    "sd_model": "--model",
    "vae": "--vae",
    "lora": "--lora",
    "embedding": "--embedding",
    "control_model": "--control-model",
    "image_prompt_model": "--image-prompt-model",
    "image_encoder": "--image-encoder",
    "device": "--device",
    "dtype": "--dtype",
    "output": "--output",
    "outpath_samples": "--output",
    "registry": "--weights-file",
    "offline": "--offline",
    "format": "--format",
}


def key_name(key: str) -> str:
    """Return our name of a setting: hyphens are underscores, other tools' names are translated.

    Raises:
        SettingError: unknown, or allowed on the command line alone.
    """
    name = key.strip().lower().replace("-", "_")
    name = ALIASES.get(name, name)
    if name in KEYS or name == "prompt":
        return name
    if name in REFUSED:
        raise SettingError(
            f"'{key}' is not allowed in a prompt file", f"give {REFUSED[name]} on the command line"
        )
    close = nearest(name, [*KEYS, *ALIASES, "prompt"])
    raise SettingError(
        f"unknown key '{key}'",
        f"did you mean '{close}'?" if close is not None else "a key is a flag of 'ddgen batch --help' without its dashes",
    )


def read_values(name: str, value: object) -> tuple[Value, ...]:
    """Return the values of setting `name`, given as text (`20,30`) or as parsed JSON / TOML (20, "20,30",
    [20, 30]).

    Raises:
        SettingError: a value of the wrong type, or more than MAX_VALUES of them.
    """
    key = KEYS[name]
    parts: list[object]
    if isinstance(value, str) and key.split and "," in value:
        parts = [part for part in value.split(",") if part.strip()]
    elif isinstance(value, list | tuple) and not (
        key.wide and value and not isinstance(value[0], (list, tuple) if key.read is read_several else (list, tuple, str))
    ):
        parts = list(value)
    else:
        parts = [value]
    if name == "seed":
        parts = [seed for part in parts for seed in _seed_range(part)]
    if not parts or len(parts) > MAX_VALUES:
        raise SettingError(f"'{name}' has {len(parts)} values", f"give 1 to {MAX_VALUES}")
    try:
        return tuple(
            key.read(part.strip() if isinstance(part, str) and name != "negative" else part) for part in parts
        )
    except ValueError as error:
        shown = value if isinstance(value, str) else repr(value)
        raise SettingError(f"{name} '{shown[:40]}' {error}", f"write it as {_EXAMPLES[name]}") from None


def _seed_range(value: object) -> list[object]:
    """Spread `10-20` over its seeds; anything else is left alone."""
    found = re.fullmatch(r"\s*(\d{1,19})-(\d{1,19})\s*", value, re.ASCII) if isinstance(value, str) else None
    if found is None:
        return [value]
    low, high = int(found[1]), int(found[2])
    if high < low or high - low >= MAX_VALUES:
        raise SettingError(
            f"seed range '{found[0].strip()}' has {high - low + 1} values", f"give 1 to {MAX_VALUES}"
        )
    return list(range(low, high + 1))


_EXAMPLES = {
    "negative": "text",
    "num": "4",
    "best": "2",
    "seed": "7 or 10-20",
    "width": "512",
    "height": "512",
    "size": "512x768",
    "steps": "20",
    "guidance": "7.5",
    "guidance_rescale": "0.7",
    "guidance_interval": "0.2:0.8",
    "sampler": "euler",
    "spacing": "karras",
    "sigmas": "14.6,7,2,0",
    "eta": "1",
    "scale": "2",
    "style": "a name",
    "prompt_syntax": "a1111",
    "rng": "ddgen",
    "tile": "xy",
    "transparent": "true",
    "variation": "0.2",
    "variation_seed": "7",
    "init": "in/apple.png",
    "mask": "in/mask.png",
    "control": "canny:in/apple.png:0.8",
    "image_prompt": "in/apple.png:0.6",
    "strength": "0.6",
    "image_guidance": "1.5",
    "fit": "crop",
    "expand": "false",
    "note": "text",
}
