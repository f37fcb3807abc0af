"""The program `ddgen`: which commands there are, and what surrounds every one of them.

A command's module is imported when it is called, never for another's sake: `register(app)` in
ddgen/cli/NAME.py declares it.
"""

from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ddgen.cli import console, help, process
from ddgen.errors import DdgenError, ResourceError, UsageError, nearest

# name: (module in ddgen/cli, line in `ddgen --help`)
COMMANDS = {
    "sample": ("sample", "Make pictures from prompts."),
    "edit": ("edit", "Change a picture by a prompt."),
    "inpaint": ("inpaint", "Make a part of a picture anew."),
    "outpaint": ("outpaint", "Go on beyond the edges of a picture."),
    "vary": ("vary", "Make pictures like a picture."),
    "upscale": ("upscale", "Make a picture larger and draw its detail anew."),
    "morph": ("morph", "Make a picture turn into another, as an animation."),
    "batch": ("batch", "Make the pictures of prompt files; run again to resume."),
    "replay": ("replay", "Make a picture again from what it says about itself."),
    "verify": ("replay", "Make a picture again and compare."),
    "meta": ("meta", "Show, convert or remove what pictures say about themselves."),
    "tokens": ("tokens", "Show a prompt's tokens, weights and chunks."),
    "noise": ("noise", "Show how noise swallows a picture, under any schedule."),
    "explain": ("explain", "Show what each word of a prompt does, and what guidance does."),
    "compare": ("compare", "Make one picture under many settings, as a labelled table."),
    "plot": ("plot", "Draw schedules and spacings as curves."),
    "gallery": ("gallery", "Write a page to look at a directory of pictures."),
    "models": ("models", "List, fetch, verify and convert models."),
    "train": ("train", "Train a model, or train one on."),
    "eval": ("eval", "Measure how models follow prompts, and how they vary."),
    "data": ("data", "Build the embedded model's training data."),
    "warm": ("warm", "Show or stop the worker that --keep-alive leaves."),
    "doctor": ("doctor", "Show versions, devices and paths."),
    "config": ("config", "Show the settings and where they come from."),
}

# Typer keeps its own copy of click since 0.2x; its classes are found where they are.
ClickException: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class Commands(TyperGroup):
    """The group of all commands, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return command_of(cmd_name)

    def short_help_of(self, ctx: Any, name: str) -> str:
        """Return a command's line for the list of all, without importing it."""
        return COMMANDS[name][1]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = nearest(name, COMMANDS)
            mend = (
                f"did you mean '{close}'?"
                if close is not None
                else f'to make a picture: ddgen sample "{name}"'
            )
            raise UsageError(f"no such command '{name}'", mend, id="usage.command")
        return super().resolve_command(ctx, args)


@cache
def command_of(name: str) -> Any:
    """Return a command of COMMANDS, made at its first use."""
    app = typer.Typer(rich_markup_mode=None)
    import_module(f"ddgen.cli.{COMMANDS[name][0]}").register(app)
    return help.adopt(divert(lighten(typer.main.get_group(app).commands[name])))


class AsTyped:
    """Stands in for Typer's conversion of a value that needs none."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        return value


def lighten(command: Any) -> Any:
    """Spare a command and those below it conversions of text to text, that cost 60 ms of pydantic."""
    all_params = command.get_params

    def get_params(context: Any) -> Any:
        found = all_params(context)
        for parameter in found:
            kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
            plain = kind in (str, list[str], bool) or getattr(parameter, "count", False)
            if plain and hasattr(parameter, "get_runtime_param"):
                parameter.get_runtime_param = AsTyped
        return found

    command.get_params = get_params
    for below in getattr(command, "commands", {}).values():
        lighten(below)
    return command


def divert(command: Any) -> Any:
    """Have what libraries print while a command works go to standard error; return the command."""
    for below in getattr(command, "commands", {}).values():
        divert(below)
    if not hasattr(command, "commands"):
        work = command.invoke

        def invoke(context: Any) -> Any:
            process.divert_prints()
            return work(context)

        command.invoke = invoke
    return command


def build() -> Any:
    """Return the whole program as a click command."""
    app = typer.Typer(
        cls=Commands,
        name="ddgen",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        epilog=EXAMPLES,
    )

    @app.callback()
    def ddgen(
        version: Annotated[
            bool,
            typer.Option("--version", callback=help.show_version, is_eager=True, help="Print the version."),
        ] = False,
    ) -> None:
        """Text to image by denoising diffusion, for people who live in a terminal."""

    command = lighten(typer.main.get_command(app))
    command.get_help = lambda context: help.render(command, context)  # type: ignore[method-assign]
    return command


EXAMPLES = """Examples:
  ddgen sample "a red apple"
  ddgen sample "a fox" "a penguin" -n 4 --seed 7 --grid
  ddgen sample --help
"""


def translate(error: Any, arguments: list[str]) -> UsageError:
    """Return click's complaint about the arguments as one of ours."""
    kind = type(error).__name__
    context = getattr(error, "ctx", None)
    called = " ".join(["ddgen", *(arguments[:1] if arguments[0] in COMMANDS else [])])
    place = f"see '{called if context is None else context.command_path} --help'"
    if kind == "NoSuchOption":
        parameters = [] if context is None else context.command.get_params(context)
        known = [name[2:] for parameter in parameters for name in parameter.opts if name.startswith("--")]
        close = nearest(error.option_name[2:], known) if error.option_name.startswith("--") else None
        mend = f"did you mean '--{close}'?" if close is not None else place
        return UsageError(f"no such option '{error.option_name}'", mend, id="usage.option")
    if kind == "BadOptionUsage" and "argument" in error.message:
        return UsageError(f"option '{error.option_name}' needs a value", place, id="usage.option-value")
    text = error.format_message().rstrip(".")
    return UsageError(text[:1].lower() + text[1:], place, id="usage")


def out_of_memory(error: BaseException) -> ResourceError:
    """Return the error for memory that is not there."""
    made = ResourceError(
        "out of memory", "close other programs, or ask for less with --batch-size 1", id="resource.memory"
    )
    made.__cause__ = error
    return made


def run(arguments: list[str]) -> int:
    """Run the program and return its exit code; every error is shown here, and only here."""
    console.configure_from(arguments)
    try:
        process.check_output()
        process.guard_stdout()
        found = build().main(args=arguments, prog_name="ddgen", standalone_mode=False)
        return found if isinstance(found, int) else 0
    except DdgenError as error:
        return console.fail(error)
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            console.page(str(error.args[0]))
            return 2
        return console.fail(translate(error, arguments))
    except MemoryError as error:
        return console.fail(out_of_memory(error))
    except Exception as error:
        return console.bug(error)
