"""`ddgen config`: what the settings are when no flag is given, and where each comes from."""

from typing import Annotated

import typer

from ddgen.cli import console, flags, settings
from ddgen.weights import registry, shelves

EXAMPLES = """Examples:
  ddgen config show --origin
  DDGEN_STEPS=40 ddgen config show --origin
  ddgen config path
"""

Origin = Annotated[bool, flags.switch(flags.TALK, "Say where each value comes from.", "--origin")]


def register(app: typer.Typer) -> None:
    """Declare the command and those below it."""
    below = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Show the settings and where they come from.",
        epilog=EXAMPLES,
    )
    below.command("show", epilog=EXAMPLES)(show)
    below.command("path")(path)
    app.add_typer(below, name="config")


def show(
    model: flags.Model = None, origin: Origin = False, json: flags.Json = False, debug: flags.Debug = False
) -> None:
    """Show what each setting of 'ddgen sample' is when no flag is given.

    A flag goes before DDGEN_*, that before [sample] in config.toml, that before the model's own default, that
    before the built-in.
    """
    found = settings.resolve({"model": model})
    spec = registry.find(found["model"].value, weights_file=found["weights_file"].value)
    for name, place in found.items():
        value, where = place.value, place.origin
        if value is None:
            value = spec.name if name == "model" else getattr(spec.defaults, name, None)
            where = (
                "default model"
                if name == "model"
                else f"model '{spec.name}'"
                if value is not None
                else "unset"
            )
        if json:
            console.out_json({"type": "setting", "name": name, "value": value, "origin": where})
        else:
            console.out(f"{name} = {shown(value)}" + (f"  ({where})" if origin else ""))
    for key in shelves.KEYS:
        paths = [str(path) for path in shelves.directories(key)]
        where = "config" if paths else "unset"
        if json:
            console.out_json({"type": "setting", "name": key, "value": paths, "origin": where})
        else:
            console.out(f"{key} = {', '.join(paths) or '-'}" + (f"  ({where})" if origin else ""))


def shown(value: settings.Value | None) -> str:
    """Return a value as it is written on the command line; "-" where there is none."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def path(debug: flags.Debug = False) -> None:
    """Print where the config file lies, whether it exists or not."""
    console.out(str(settings.config_file()))
