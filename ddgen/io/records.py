"""Prompt files whose lines are records: JSON objects, the rows of a CSV table, the entries of a TOML list.

A record is flat, its keys are those of io/settings.py, none is given twice, numbers are finite. TOML has to
be held whole and is limited in size; the other two are read line by line.
"""

import csv
import json
import re
import tomllib
from collections.abc import Iterator

from ddgen.errors import InputError
from ddgen.io.lines import MAX_LINE_BYTES, BadLine, PromptLine, decode
from ddgen.io.settings import SettingError, Settings, Value, key_name, read_values

MAX_TOML_BYTES = 8 * 2**20


def jsonl_line(text: str) -> tuple[str, Settings] | None:
    if not text.strip() or text.lstrip().startswith("#"):
        return None
    try:
        record = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise SettingError(
            f"not JSON at column {error.colno} ({error.msg.lower()})", "write one object a line"
        ) from None
    except RecursionError:
        raise SettingError("nested too deeply", "write one flat object a line") from None
    except SettingError:
        raise
    except ValueError:  # int() refuses numbers of more than 4300 digits
        raise SettingError("a number is too long", "write numbers of at most 20 digits") from None
    if not isinstance(record, dict):
        raise SettingError("not a JSON object", 'write {"prompt": "..."}')
    return read_record(record)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingError(
            f"key '{twice[:40]}' is given twice", "keep one; several values are a list: [20, 30]"
        )
    return record


def _no_constant(word: str) -> object:
    raise SettingError(f"'{word}' is not JSON", "write a finite number")


def read_record(record: dict[str, object]) -> tuple[str, Settings]:
    """Return the prompt and settings of one parsed object.

    Raises:
        SettingError: unknown, refused, repeated or misshaped keys; no prompt.
    """
    settings: dict[str, tuple[Value, ...]] = {}
    prompt: str | None = None
    for key, value in record.items():
        name = key_name(key)
        if name == "prompt":
            if not isinstance(value, str):
                raise SettingError("'prompt' is not text", 'write "prompt": "..."')
            prompt = value
        elif value is None:
            continue
        elif name in settings:
            raise SettingError(f"'{name}' is given twice (again as '{key}')", "keep one of them")
        else:
            settings[name] = read_values(name, value)
    if prompt is None:
        raise SettingError("the line has no prompt", 'add "prompt": "..."')
    return prompt, settings


def csv_lines(
    raw: Iterator[tuple[int, bytes]], source: str, encoding: str, delimiter: str
) -> Iterator[PromptLine | BadLine]:
    """Read a table. A record goes on over line ends until its quotes are closed."""
    columns: list[str] | None = None
    for number, record in _csv_records(raw):
        text = ""
        try:
            text = decode(record, encoding)
            cells = next(csv.reader([text], delimiter=delimiter, strict=True), [])
            if columns is None:
                columns = _columns(cells, source)
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(columns):
                raise SettingError(
                    f"{len(cells)} cells under {len(columns)} columns", 'put "..." around text with commas'
                )
            yield PromptLine(source, number, *_csv_record(dict(zip(columns, cells, strict=False))))
        except SettingError as error:
            yield BadLine(source, number, str(error), error.hint, text[:2000])
        except csv.Error as error:
            yield BadLine(
                source,
                number,
                f"not CSV ({error})",
                'put "..." around text and double the quotes inside',
                text[:2000],
            )


def _csv_record(cells: dict[str, str]) -> tuple[str, Settings]:
    """An empty cell is a setting that was not said; the prompt may be empty, but its cell must be there."""
    if "prompt" not in cells:
        raise SettingError("the line has no prompt", "fill the column 'prompt'")
    return read_record({name: cell for name, cell in cells.items() if cell.strip() or name == "prompt"})


def _csv_records(raw: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    start, held, quotes = 0, b"", 0
    for number, line in raw:
        start = start if held else number
        held = held + b"\n" + line if held else line
        quotes += line.count(b'"')
        if quotes % 2 == 0 or len(held) > MAX_LINE_BYTES:
            yield start, held
            held, quotes = b"", 0
    if held:
        yield start, held


def _columns(cells: list[str], source: str) -> list[str]:
    try:
        columns = [key_name(cell) for cell in cells]
    except SettingError as error:
        raise InputError(f"{source} line 1: {error}", error.hint, id="prompts.columns") from None
    if "prompt" not in columns or len(set(columns)) != len(columns):
        what = "has no column 'prompt'" if "prompt" not in columns else "names a column twice"
        raise InputError(
            f"{source} line 1: {what}",
            "the first line names the columns: prompt,steps,seed",
            id="prompts.columns",
        )
    return columns


def toml_lines(data: bytes, source: str, encoding: str) -> Iterator[PromptLine | BadLine]:
    """Read a TOML file, which has to be held whole: at most MAX_TOML_BYTES."""
    if len(data) > MAX_TOML_BYTES:
        raise InputError(
            f"{source} is over {MAX_TOML_BYTES // 2**20} MiB",
            "write it as JSONL, which is read line by line",
            id="prompts.toml",
        )
    try:
        text = data.decode(encoding)
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadLine(source, line, "invalid UTF-8", "fix the line or use --encoding").error() from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: not TOML: {error}", "mend that line", id="prompts.toml") from None
    except (RecursionError, ValueError):
        raise InputError(
            f"{source}: nested too deeply, or a number is too long", "write flat tables", id="prompts.toml"
        ) from None
    unknown = set(document) - {"prompts", "defaults"}
    items = document.get("prompts")
    defaults = document.get("defaults", {})
    if unknown or not isinstance(items, list) or not isinstance(defaults, dict):
        what = (
            f"unknown key '{sorted(unknown)[0]}'"
            if unknown
            else "'prompts' is not a list or 'defaults' not a table"
        )
        raise InputError(
            f"{source}: {what}", 'write prompts = ["...", {prompt = "..."}] and [defaults]', id="prompts.toml"
        )
    spots = [
        text.count("\n", 0, spot.start()) + 1
        for spot in re.finditer(r"^[ \t]*\[\[\s*prompts\s*\]\]", text, re.MULTILINE)
    ]
    for index, item in enumerate(items):
        number = spots[index] if len(spots) == len(items) else index + 1
        try:
            record = item if isinstance(item, dict) else {"prompt": item}
            merged = {key_name(key): value for key, value in defaults.items()} | _unique(
                [(key_name(k), v) for k, v in record.items()]
            )
            yield PromptLine(source, number, *read_record(merged))
        except SettingError as error:
            yield BadLine(source, number, str(error), error.hint, repr(item)[:2000])
