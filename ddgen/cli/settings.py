"""Where a setting comes from: flag > DDGEN_* > user config > the model's default > built-in.

    --steps 20            on the command line
    DDGEN_STEPS=20        in the environment
    [sample]              in $XDG_CONFIG_HOME/ddgen/config.toml
    steps = 20

Above [sample], model_dirs and lora_dirs list folders of weights (weights/shelves.py). Nothing is read from the
current directory. One parser a setting, whatever its source, so that a wrong value is named with its source.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddgen.errors import InputError, UsageError, choose, nearest
from ddgen.weights import shelves

Value = str | int | float | bool | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Setting:
    """One setting.

    read:     text -> value, raising ValueError with what is wrong.
    default:  the built-in one; None = the model's.
    variable: its name in the environment, where it is not the usual one.
    """

    read: Callable[[str], Value]
    default: Value | None = None
    variable: str = ""


@dataclass(frozen=True)
class Found:
    """A value and the place that it came from."""

    value: Value | None
    origin: str


def whole(text: str) -> int:
    """Read a whole number."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", text):
        raise ValueError("is not a whole number; use one as 20")
    return int(text)


def number(text: str) -> float:
    """Read a number; NaN passes, so that the planner can name its range."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("is not a number; use one as 7.5") from None


def truth(text: str) -> bool:
    """Read yes or no."""
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("is neither yes nor no; use 1 or 0")


def one_of(*names: str) -> Callable[[str], str]:
    """Return a reader of one of a few words."""

    def read(text: str) -> str:
        if text in names:
            return text
        close = nearest(text, names)
        raise ValueError(
            "is unknown; "
            + (f"did you mean '{close}'?" if close is not None else "one of: " + ", ".join(names))
        )

    return read


def picture_format(text: str) -> str:
    """Read the format of a picture; jpg is jpeg."""
    return one_of("png", "jpeg", "webp")({"jpg": "jpeg"}.get(text, text))


def device(text: str) -> str:
    """Read the name of a device; whether there is one is seen when the model is loaded."""
    return text if re.fullmatch(r"cuda:[0-9]{1,3}", text) else one_of("auto", "cpu", "cuda", "mps")(text)


def seeds(text: str) -> int | tuple[int, ...]:
    """Read `7`, `1,2` or `10-20`; parts mix."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,20})(?:-([0-9]{1,20}))?\s*", part)
        if match is None:
            raise ValueError("is no seed; use one as 7, a list as 1,2 or a range as 10-20")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high or high - low >= 1_000_000:
            raise ValueError("is no range of at most 1000000 seeds; use one as 10-20")
        found.extend(range(low, high + 1))
    return found[0] if re.fullmatch(r"\s*[0-9]+\s*", text) else tuple(found)


def numbers(text: str) -> tuple[float, ...]:
    """Read `14.6,7,2,0`; a last 0 is added where it is missing."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("is not a list of numbers; use some as 14.6,7,3,1,0") from None
    return found if found[-1] == 0 else (*found, 0.0)


def pair(text: str) -> tuple[float, ...]:
    """Read `0.1:0.8`."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError("is not LOW:HIGH; use two fractions, as 0.1:0.8") from None
    return low, high


def duration(text: str) -> int:
    """Read `5m`, `90s` or `1h` as seconds; 0 is no time at all."""
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*([smh]?)\s*", text.lower())
    if match is None:
        raise ValueError("is no length of time; use one as 90s, 5m or 1h, or 0")
    seconds = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
    if seconds > 86_400:
        raise ValueError("is longer than a day; use 24h or less")
    return seconds


SETTINGS: dict[str, Setting] = {
    "model": Setting(str),
    "negative": Setting(str),
    "prompt_syntax": Setting(one_of("a1111", "plain"), "a1111"),
    "num": Setting(whole, 1),
    "seed": Setting(seeds),
    "width": Setting(whole),
    "height": Setting(whole),
    "steps": Setting(whole),
    "guidance": Setting(number),
    "guidance_rescale": Setting(number),
    "guidance_interval": Setting(pair),
    "sampler": Setting(str),
    "spacing": Setting(str),
    "sigmas": Setting(numbers),
    "eta": Setting(number),
    "rng": Setting(one_of("ddgen", "diffusers", "a1111", "comfy"), "ddgen"),
    "tile": Setting(one_of("x", "y", "xy"), ""),
    "transparent": Setting(truth, False),
    "variation": Setting(number, 0.0),
    "variation_seed": Setting(whole),
    "scale": Setting(whole, 1),
    "output": Setting(str),
    "format": Setting(picture_format),
    "quality": Setting(whole, 92),
    "metadata": Setting(one_of("none", "min", "full"), "full"),
    "batch_size": Setting(whole),
    "vae": Setting(str),
    "prediction": Setting(str),
    "clip_skip": Setting(whole),
    "ema": Setting(truth, False),
    "refiner": Setting(str),
    "refiner_start": Setting(number),
    "device": Setting(device, "auto"),
    "dtype": Setting(one_of("auto", "float32", "bfloat16", "float16"), "auto"),
    "offload": Setting(one_of("auto", "none", "parts", "blocks"), "auto"),
    "text_backend": Setting(one_of("native", "transformers", "open_clip"), "native"),
    "progress": Setting(one_of("auto", "bar", "log", "json", "none"), "auto"),
    "color": Setting(one_of("auto", "always", "never"), "auto"),
    "offline": Setting(truth, False),
    "keep_alive": Setting(duration, 0),
    "weights_file": Setting(str, variable="DDGEN_WEIGHTS"),
}


def config_directory() -> Path:
    """Return the user's directory for ddgen's settings."""
    from platformdirs import user_config_path

    return user_config_path("ddgen", appauthor=False)


def config_file() -> Path:
    """Return where the user's config lies, whether it exists or not."""
    return config_directory() / "config.toml"


def resolve(flags: Mapping[str, str | None], names: tuple[str, ...] | None = None) -> dict[str, Found]:
    """Return every setting (or those named) with its origin; what nobody sets has the value None and the
    origin "model".

    Raises:
        UsageError: a flag or an environment variable that cannot be read.
        InputError: a config file that cannot be read.
    """
    config = read_config(config_file())
    return {name: _find(name, SETTINGS[name], flags.get(name), config) for name in names or SETTINGS}


def read_config(path: Path) -> dict[str, object]:
    """Return the `[sample]` table of a config file, {} where there is none.

    Raises:
        InputError: unreadable, not TOML, or an unknown table or key.
    """
    if not path.is_absolute():
        return {}
    name = f"config '{path}'"
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        words = (error.strerror or "").lower() if isinstance(error, OSError) else "not valid UTF-8"
        raise InputError(f"{name}: {words}", "mend it or move it away", id="input.config") from error
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{name}: {str(error).lower()}", "mend that line", id="input.config") from error
    shelves.declared(data, name)
    for table in data:
        if table in shelves.KEYS:
            continue
        if table != "sample" or not isinstance(data[table], dict):
            raise InputError(
                f"{name}{_line(text, table)}: unknown entry '{table}'",
                "settings stand under [sample]",
                id="input.config",
            )
    found = {}
    for key, value in data.get("sample", {}).items():
        plain = key.replace("-", "_")
        if plain in shelves.KEYS:
            raise InputError(
                f"{name}{_line(text, key)}: '{key}' is no setting of [sample]",
                "write it above the line [sample]",
                id="input.config",
            )
        try:
            choose("key", plain, SETTINGS, error=InputError)
        except InputError as error:
            raise InputError(
                f"{name}{_line(text, key)}: {error.message}", error.hint, id="input.config"
            ) from None
        if not isinstance(value, str | int | float | bool):
            raise InputError(
                f"{name}{_line(text, key)}: '{key}' is no plain value",
                "write it as on the command line",
                id="input.config",
            )
        found[plain] = value
    return found


def read_flag(name: str, text: str, read: Callable[[str], Value]) -> Value:
    """Return the value of a flag that is no setting.

    Raises:
        UsageError: it cannot be read.
    """
    return _read(name, text, Setting(read), UsageError)


def environment_name(name: str) -> str:
    """Return the environment variable of a setting."""
    return SETTINGS[name].variable or "DDGEN_" + name.upper()


def flag_name(name: str) -> str:
    """Return the long flag of a setting."""
    return "--" + name.replace("_", "-")


def _find(name: str, setting: Setting, flag: str | None, config: Mapping[str, object]) -> Found:
    if flag is not None:
        return Found(_read(flag_name(name), flag, setting, UsageError), "flag")
    variable = environment_name(name)
    if os.environ.get(variable):
        return Found(_read(variable, os.environ[variable], setting, UsageError), variable)
    if name in config:
        text = config[name]
        plain = ("1" if text else "0") if isinstance(text, bool) else str(text)
        return Found(_read(f"config: {name}", plain, setting, InputError), "config")
    return Found(setting.default, "built-in" if setting.default is not None else "model")


def _read(source: str, text: str, setting: Setting, error: type[UsageError] | type[InputError]) -> Value:
    try:
        return setting.read(text)
    except ValueError as wrong:
        problem, _, mend = str(wrong).partition("; ")
        raise error(f"{source} '{text}' {problem}", mend, id=f"{error.default_id}.value") from None


def _line(text: str, key: str) -> str:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*\[?\s*[\"']?{re.escape(key)}[\"']?\s*[\]=.]", line):
            return f" line {number}"
    return ""
