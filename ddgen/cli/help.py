"""Help pages: examples first, options in panels. Drawn with the part of rich that loads in 20 ms, not 100."""

import io
import shutil
from typing import Any

from ddgen import __version__
from ddgen.cli import console

HIDDEN_ALIASES = {"--cfg", "--schedule", "--scheduler"}
MAX_WIDTH = 100


def render(command: Any, context: Any) -> str:
    """Return the help page of a command or a group (of Typer's click) as text, in colours if wanted."""
    from rich.console import Console
    from rich.text import Text

    buffer = io.StringIO()
    width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)
    color = console.color_on(1)
    screen = Console(
        file=buffer, width=width, markup=False, highlight=False, emoji=False, force_terminal=color,
        no_color=not color, color_system="standard" if color else None, legacy_windows=False,
    )  # fmt: skip
    screen.print(
        Text(f"Usage: {context.command_path} {' '.join(command.collect_usage_pieces(context))}", style="bold")
    )
    screen.print()
    screen.print(Text(_unwrapped(command.help or "")))
    screen.print()
    if command.epilog:
        screen.print(Text(command.epilog.strip("\n")))
        screen.print()
    for title, rows in _panels(command, context).items():
        _panel(screen, title, rows)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def show_version(wanted: bool) -> None:
    """Print the version and stop, for `--version`."""
    if wanted:
        import typer

        console.out(f"ddgen {__version__}")
        raise typer.Exit()


def adopt(command: Any) -> Any:
    """Have a command, and those below it, show their help through `render`; return it."""
    command.get_help = lambda context: render(command, context)
    for below in getattr(command, "commands", {}).values():
        adopt(below)
    return command


def _panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "argument":
            if parameter.help:
                found.setdefault("Arguments", []).append(
                    (parameter.metavar or (parameter.name or "").upper(), parameter.help)
                )
            continue
        names = [name for name in (*parameter.opts, *parameter.secondary_opts) if name not in HIDDEN_ALIASES]
        names.sort(
            key=lambda name: (
                name.startswith("--"),
                parameter.opts.index(name) if name in parameter.opts else 99,
            )
        )
        value = "" if parameter.is_flag or parameter.count else " " + (parameter.metavar or "TEXT")
        title = getattr(parameter, "rich_help_panel", None) or "Options"
        found.setdefault(title, []).append((", ".join(names) + value, parameter.help or ""))
    if hasattr(command, "list_commands"):
        rows = (
            [(name, command.short_help_of(context, name)) for name in command.list_commands(context)]
            if hasattr(command, "short_help_of")
            else [
                (name, (below.help or "").split("\n")[0])
                for name, below in command.commands.items()
                if not below.hidden
            ]
        )
        found["Commands"] = rows
    if "Options" in found:
        found["Options"] = found.pop("Options")  # what every command has comes last
    return found


def _panel(screen: Any, title: str, rows: list[tuple[str, str]]) -> None:
    from rich import box
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, min_width=min(30, max(len(left) for left, _ in rows)), style="cyan")
    table.add_column(ratio=1)
    for left, right in rows:
        table.add_row(Text(left), Text(right))
    screen.print(Panel(table, title=Text(title), title_align="left", box=box.ROUNDED, border_style="dim"))


def _unwrapped(text: str) -> str:
    """Join the lines of each paragraph, so that the terminal's width rules."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))
