"""What it costs to look on: a filmstrip, an explanation, a table, each against the same network calls without it.

Both sides of a row run in one warm process each: ours makes the figure too, the peer only calls the networks as
often as ours must, the autoencoder for the pictures that are shown included.
"""

import functools
from collections.abc import Callable

from bench.measure import Pair, Worker

Call = Callable[[], object]
PROMPT = "a red apple"


@functools.cache
def _loaded():  # type: ignore[no-untyped-def]
    from ddgen.app.pipeline import Pipeline
    from ddgen.app.plan import plan
    from ddgen.request import Request

    pipeline = Pipeline.load()
    (job,) = plan(Request(prompts=(PROMPT,), seed=7), pipeline.spec)
    return pipeline, job


def filmstrip() -> Call:
    """A run that keeps its filmstrip, and the strip."""
    from ddgen.app import filmstrip as films
    from ddgen.app.pipeline import run

    pipeline, job = _loaded()
    chosen = films.chosen(job.steps, None, films.COLUMNS)

    def call() -> object:
        film = films.Filmstrip(pipeline, job, chosen)
        (picture,) = run(pipeline, [job], film.step, on_start=film.start)
        film.finish(picture)
        return film.strip()

    return call


def filmstrip_calls() -> Call:
    """The same run, and the decoding of what the strip shows."""
    from ddgen.app import filmstrip as films
    from ddgen.app.pipeline import run

    pipeline, job = _loaded()
    shown = 2 * len(films.chosen(job.steps, None, films.COLUMNS))
    (latents,) = _latents(pipeline, job)
    return lambda: [run(pipeline, [job]), *(pipeline.first_stage.decode(latents) for _ in range(shown))]


def explain() -> Call:
    """A run whose attention is watched, its estimates, and the figure."""
    from ddgen.app import explain as looking
    from ddgen.text import words as texts

    pipeline, job = _loaded()
    shown, tokens, states = texts.read(job.prompt, job.steps, job.prompt_syntax)

    def call() -> object:
        seen = looking.watch(pipeline, job, shown, states, 3, lambda step, steps: None)
        return looking.figure(job, shown, tokens, seen, 3)

    return call


def explain_calls() -> Call:
    """The same run, and the estimates of one step."""
    from ddgen.app import explain as looking
    from ddgen.app.pipeline import run
    from ddgen.diffusion.spacing import make_spacing

    pipeline, job = _loaded()
    grid = make_spacing(job.spacing, pipeline.denoiser.schedule, job.steps)
    (latents,) = _latents(pipeline, job)
    return lambda: [
        run(pipeline, [job]),
        looking.estimates(pipeline, job, latents, grid.sigmas[2], grid),
    ]


def compare() -> Call:
    """A table of three guidance scales and four seeds, and the figure."""
    from ddgen.app import compare as tables

    axes = [tables.Axis("guidance", ("2", "3", "4")), tables.Axis("seed", ("7", "8", "9", "10"))]
    jobs, make = _table()
    return lambda: tables.figure(axes, make(), tables.title(axes, jobs[0]))


def compare_calls() -> Call:
    """The pictures of the same table."""
    return _table()[1]


def _table():  # type: ignore[no-untyped-def]
    from dataclasses import replace

    from ddgen.app import compare as tables
    from ddgen.app.pipeline import run

    pipeline, job = _loaded()
    jobs = [replace(job, guidance=scale, seed=seed) for scale in (2.0, 3.0, 4.0) for seed in (7, 8, 9, 10)]

    def make() -> list[object]:
        made: dict[int, object] = {}
        for members in tables.groups(jobs, None):
            made |= dict(zip(members, run(pipeline, [jobs[i] for i in members]), strict=True))
        return [made[i] for i in range(len(jobs))]

    return jobs, make


def _latents(pipeline, job):  # type: ignore[no-untyped-def]
    from ddgen.app.pipeline import sample

    return sample(pipeline, [job]).unsqueeze(0)


def row(what: str, name: str, peer_name: str, target: float) -> Pair:
    ours, peer = Worker(f"bench.seeing:{name}"), Worker(f"bench.seeing:{name}_calls")

    def close() -> None:
        ours.close()
        peer.close()

    return Pair(what, ours, peer_name, peer, target=target, close=close)


ROWS: dict[str, Callable[[], Pair]] = {
    "filmstrip": lambda: row(
        "a sample with its `--filmstrip`, warm", "filmstrip", "the sample, and as many decodings", 1.1
    ),
    "explain": lambda: row("`ddgen explain`, warm", "explain", "the sample, and the estimates of a step", 1.5),
    "compare": lambda: row("`ddgen compare`, 3 x 4 cells, warm", "compare", "the 12 pictures", 1.1),
}
