"""Jobs in, files out: make each batch, encode, publish, and tell of each picture once it is safe on disk.

Knows no network: what makes the pixels is given as a function, app/pipeline.run with its pipeline or a fake.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddgen.app.naming import Names, taken
from ddgen.io import files, images, metadata
from ddgen.request import Job

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

Make = Callable[[Sequence[Job]], "list[Pixels]"]


@dataclass(frozen=True)
class Saving:
    """How pictures become bytes. metadata: a level of io/metadata.py; quality: 1 to 100, for JPEG, WebP."""

    format: str = "png"
    quality: int = images.QUALITY
    metadata: str = "full"


@dataclass(frozen=True)
class Pick:
    """Keep the best of each prompt's pictures. keep, of: how many of how many; score: jobs and their pictures
    -> a number each, higher is better."""

    keep: int
    of: int
    score: "Callable[[Sequence[Job], Sequence[Pixels]], list[float]]"


@dataclass(frozen=True)
class Result:
    """One picture made. path: None when it was not written; seconds: its share of the batch's time; score: where
    the best are kept."""

    job: Job
    index: int
    path: Path | None
    data: bytes
    pixels: "Pixels"
    seconds: float
    score: float | None = None

    @property
    def sha256(self) -> str:
        """The digest of the file's bytes."""
        return hashlib.sha256(self.data).hexdigest()


def produce(
    batches: Iterable[Sequence[Job]],
    make: Make,
    names: Names | None,
    saving: Saving,
    origin: metadata.Origin,
    pick: Pick | None = None,
) -> Iterator[Result]:
    """Make the pictures of each batch and yield each after its file is safe; without `names` none is written.

    pick: only the best of each prompt are written and yielded, the best first, once all of its pictures are made.

    Raises:
        OutputError: a file cannot be written.
        NumericsError: a picture came out non-finite.
    """
    index = 0
    waiting: list[Result] = []  # not yet encoded
    for batch in batches:
        begun = time.monotonic()
        pictures = make(batch)
        each = (time.monotonic() - begun) / len(batch)
        scores = [None] * len(batch) if pick is None else pick.score(batch, pictures)
        for job, pixels, score in zip(batch, pictures, scores, strict=True):
            index += 1
            waiting.append(Result(job, index, None, b"", pixels, each, score))
            if pick is not None and len(waiting) < pick.of:
                continue
            for result in waiting if pick is None else best(waiting, pick.keep):
                yield _written(result, names, saving, origin)
            waiting.clear()


def best(results: Sequence[Result], keep: int) -> list[Result]:
    """Return the `keep` results with the highest scores, the best first; of equal ones the earlier."""
    assert all(result.score is not None for result in results)
    return sorted(results, key=lambda result: (-result.score, result.index))[:keep]  # type: ignore[operator]


def _written(result: Result, names: Names | None, saving: Saving, origin: metadata.Origin) -> Result:
    """Return a result with its bytes, and its path if it has a name to go by."""
    texts = metadata.describe(result.job, origin, saving.metadata, score=result.score)
    data = images.encode(result.pixels, saving.format, saving.quality, texts)
    path = None if names is None else publish(names, lambda: names.path(result.job, result.index), data)
    return replace(result, path=path, data=data)


def publish(names: Names, choose: Callable[[], Path], data: bytes) -> Path:
    """Write a picture under the name that `choose` gives; if somebody took it meanwhile, under the next.

    Raises:
        OutputError: the one explicit name is taken, or the system refuses.
    """
    while True:
        path = choose()
        try:
            return files.publish(path, data, force=names.force)
        except FileExistsError as error:
            if names.target.kind == "file":
                raise taken(path) from error


def sheet(results: Sequence[Result], saving: Saving) -> bytes:
    """Return the contact sheet of a run as a file's bytes: a row a prompt, or a square of one's seeds."""
    prompts = list(dict.fromkeys(result.job.prompt for result in results))
    per_prompt = len(results) // len(prompts)
    if len(prompts) > 1 and all(
        result.job.prompt == prompts[at // per_prompt] for at, result in enumerate(results)
    ):
        rows = prompts
    else:
        across = max(1, round(len(results) ** 0.5 + 0.49))
        rows = [prompts[0] if len(prompts) == 1 else "", *[""] * (-(-len(results) // across) - 1)]
    labels = [_label(result.job) for result in results]
    drawn = images.contact_sheet([result.pixels for result in results], rows, labels)
    mark = (
        metadata.Metadata() if saving.metadata == "none" else metadata.Metadata(xmp=metadata.xmp_packet(""))
    )
    return images.encode(drawn, saving.format, saving.quality, mark)


def _label(job: Job) -> str:
    """Return what tells a picture from the others of its row: its seed, and the one that it was varied toward."""
    return f"seed {job.seed}" + (f" toward {job.variation_seed}" if job.variation else "")
