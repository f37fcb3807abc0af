"""What the shell offers behind a flag: read from the registries, without torch or a word of error."""

from collections.abc import Iterable

from ddgen.errors import DdgenError


def complete_sampler(incomplete: str) -> list[str]:
    """Return the samplers that begin so."""
    from ddgen.diffusion.samplers import SAMPLERS

    return _beginning(incomplete, SAMPLERS)


def complete_spacing(incomplete: str) -> list[str]:
    """Return the spacings that begin so."""
    from ddgen.diffusion.spacing import SPACINGS

    return _beginning(incomplete, SPACINGS)


def complete_model(incomplete: str) -> list[str]:
    """Return the models of the registry that begin so."""
    from ddgen.weights import registry

    try:
        return _beginning(incomplete, registry.entries())
    except DdgenError:
        return []  # a wrong weights.toml is told by the command itself


def _beginning(start: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(start)]
