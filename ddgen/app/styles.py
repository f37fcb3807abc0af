"""Styles: named templates that lay words and settings around a prompt. Torch-free.

    [noto]                                  # --style noto
    prompt = "{prompt}, noto style"         # without {prompt}: put behind it
    negative = "photo"                      # put behind the one that is typed
    steps = 30                              # used where nothing else is said

The packaged styles.toml is read first, then the user's own (`styles.toml` in the config directory), then
--styles-file: a later file replaces a style of the same name.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddgen.errors import InputError, choose
from ddgen.io.settings import SettingError, Value, key_name, read_values
from ddgen.weights.registry import PACKAGE, user_config_dir

FILE = "styles.toml"


@dataclass(frozen=True)
class Style:
    """One template: words around the prompt, behind the negative prompt, and settings."""

    name: str
    prompt: str = "{prompt}"
    negative: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)


def load_styles(file: str | None = None) -> dict[str, Style]:
    """Return all styles by name.

    Raises:
        InputError: a file that is missing or holds something else.
    """
    styles = _read(PACKAGE / FILE)
    own = user_config_dir() / FILE
    if own.is_file():
        styles |= _read(own)
    if file is not None:
        styles |= _read(Path(file))
    return styles


def apply_style(
    name: str, styles: Mapping[str, Style], prompt: str, settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the prompt inside a style, and the settings over the style's.

    Raises:
        UsageError: an unknown name.
    """
    style = styles[choose("style", name, styles)]
    merged = dict(settings)
    negative = ", ".join(filter(None, (merged.pop("negative", ""), style.negative)))
    if negative:
        merged["negative"] = negative
    return style.prompt.replace("{prompt}", prompt), {**style.settings, **merged}


def _read(path: Path) -> dict[str, Style]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"styles file '{path}': not TOML ({error})", "mend the file", id="input.styles"
        ) from None
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise InputError(f"styles file '{path}': {words}", "check the path", id="input.styles") from None
    return {name: _style(path, name, table) for name, table in tables.items()}


def _style(path: Path, name: str, table: Any) -> Style:
    def wrong(reason: str, mend: str) -> InputError:
        return InputError(f"styles file '{path}': style '{name}' {reason}", mend, id="input.styles")

    if not isinstance(table, dict):
        raise wrong("is not a table", f'write [{name}] and prompt = "{{prompt}}, ..."')
    prompt = table.get("prompt", "{prompt}")
    negative = table.get("negative", "")
    if not isinstance(prompt, str) or not isinstance(negative, str):
        raise wrong("has a prompt that is not text", 'write prompt = "{prompt}, ..."')
    settings: dict[str, Value] = {}
    for key, value in table.items():
        try:
            setting = key_name(key)
            if setting in ("prompt", "negative"):
                continue
            if setting in ("style", "seed", "num"):
                raise SettingError(f"cannot set '{key}'", "say it in the prompt file or on the command line")
            values = read_values(setting, value)
        except SettingError as error:
            raise wrong(str(error), error.hint) from None
        if len(values) != 1:
            raise wrong(
                f"has {len(values)} values of '{key}'", "give one; sweeps belong into the prompt file"
            )
        settings[setting] = values[0]
    return Style(name, prompt if "{prompt}" in prompt else f"{{prompt}}, {prompt}", negative, settings)
