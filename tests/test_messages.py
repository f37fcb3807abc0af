"""Every flag, command and variable that a message, a help page or an example names exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddgen
from ddgen.cli import program, settings

ROOT = Path(ddgen.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COMMAND = re.compile(r"\bddgen ([a-z]+)(?: ([a-z]+))?")
VARIABLE = re.compile(r"\bDDGEN_[A-Z_]+")

OTHER_PROGRAMS = re.compile(r"(?:pip|git|npm|uv|curl)[ \w-]* --[a-z-]+|--extra-index-url")
NOT_COMMANDS = {"pid", "models"} - set(program.COMMANDS)
OTHER_VARIABLES = {"DDGEN_WEIGHTS", "DDGEN_DEBUG", "DDGEN_A_B"}


def leaves() -> Iterator[tuple[str, object]]:
    """Yield every command with its words, `models list` too."""
    group = program.build()
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield name, command
        for below, inner in getattr(command, "commands", {}).items():
            yield f"{name} {below}", inner


@pytest.fixture(scope="module")
def commands() -> dict[str, object]:
    return dict(leaves())


@pytest.fixture(scope="module")
def flags(commands: dict[str, object]) -> set[str]:
    found = {"--help", "--version", "--install-completion", "--show-completion"}
    for command in commands.values():
        for parameter in command.params:
            found |= {name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")}
    return found


def texts() -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every string that is no docstring; parts of an f-string are joined."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        skipped = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node) is not None
            ):
                skipped.add(id(node.body[0].value))
            if isinstance(node, ast.JoinedStr):
                skipped |= {id(part) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield place, node.value
            elif isinstance(node, ast.JoinedStr):
                yield (
                    place,
                    "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values),
                )


def test_every_flag_that_is_named_exists(flags: set[str]) -> None:
    wrong = [
        (place, flag)
        for place, text in texts()
        for flag in FLAG.findall(OTHER_PROGRAMS.sub("", text))
        if flag not in flags and flag not in ("--a-b", "--silent") and not text.endswith("--")
    ]
    assert wrong == []


def test_every_command_that_is_named_exists(commands: dict[str, object]) -> None:
    wrong = []
    for place, text in texts():
        for name, below in COMMAND.findall(text):
            known = name in commands and (
                not hasattr(commands[name], "commands") or not below or f"{name} {below}" in commands
            )
            if not known and re.search(rf"(?:^|['`:;] ?|  )ddgen {name}\b", text):
                wrong.append((place, f"ddgen {name} {below}".strip()))
    assert wrong == []


def test_every_variable_that_is_named_exists() -> None:
    known = {settings.environment_name(name) for name in settings.SETTINGS} | OTHER_VARIABLES
    assert [
        (place, name) for place, text in texts() for name in VARIABLE.findall(text) if name not in known
    ] == []


def test_lines_of_the_list_are_those_of_the_commands(commands: dict[str, object]) -> None:
    for name, (_, line) in program.COMMANDS.items():
        assert line.endswith(".") and len(line) <= 80
        if name in commands:
            assert commands[name].help, name


def test_every_option_has_help_and_a_panel_or_none(commands: dict[str, object]) -> None:
    for name, command in commands.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_every_setting_has_a_flag(commands: dict[str, object]) -> None:
    known = {name for parameter in commands["sample"].params for name in parameter.opts}
    assert {settings.flag_name(name) for name in settings.SETTINGS} <= known
