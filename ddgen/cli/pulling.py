"""Fetching a model that is not on this machine, with its licence and a bar; for `models pull` and for any
command that needs one."""

from dataclasses import replace
from pathlib import Path

from ddgen.cli import console
from ddgen.cli.progress import Progress, make_progress
from ddgen.weights import registry
from ddgen.weights.header import prefetch
from ddgen.weights.spec import Source, Spec

MEGABYTE = 10**6


def here(spec: Spec, mode: str) -> Spec:
    """Return the Spec of a model whose weights are on this machine, fetching them first if they are not.

    Raises:
        NetworkError: it cannot be fetched. ModelError: what came is not what was recorded or announced.
    """
    if spec.refiner is not None:
        spec = replace(spec, refiner=here(spec.refiner, mode))
    path = spec.source.path
    if path is not None and path.is_file():
        prefetch(path)  # while torch is imported
    if path is not None or spec.source.repo is None:
        return spec
    entry = registry.entries().get(spec.name)
    path = pull(spec.source, spec.name, mode, spec.licence, commercial=entry is None or entry.commercial)
    return registry.held(replace(spec, source=replace(spec.source, path=path)))


def tell_licence(name: str, licence: str, *, commercial: bool) -> None:
    """Say under which terms a model comes, before it is fetched."""
    if licence:
        console.say(
            f"ddgen: {name}: licence {licence}" + ("" if commercial else ", for non-commercial use only")
        )


def pull(source: Source, name: str, mode: str, licence: str = "", *, commercial: bool = True) -> Path:
    """Fetch a model, saying its licence first and showing how many megabytes have come; return its file or folder.

    Raises:
        NetworkError: it cannot be fetched. ModelError: what came is not what was recorded or announced.
    """
    from ddgen.weights.fetch import pull as fetch

    bar: Progress | None = None
    came = shown = 0

    def on_bytes(file: str, count: int, total: int) -> None:
        nonlocal bar, came, shown
        if bar is None:
            bar = make_progress(mode, max(1, total // MEGABYTE), "MB").__enter__()
        came += count
        if came // MEGABYTE > shown:
            bar.advance(came // MEGABYTE - shown, file)
            shown = came // MEGABYTE

    try:
        return fetch(source, name, on_bytes, lambda: tell_licence(name, licence, commercial=commercial))
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)
