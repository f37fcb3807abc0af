"""Figures of a model: does it follow prompts, does it vary, does it only repeat what it was shown?

    suite -> pictures -> verdicts by kind, beside the evaluator's own share of right verdicts on real pictures
          -> features -> precision, recall, density, coverage, novelty; Vendi score of many seeds of one prompt

No accuracy is given for a kind on which the evaluator is right less often than TRUSTED on real pictures put together for the
same rows, nor for any if it does not know the things themselves. It was shown none of these pictures. What is held out from
the models is the same question to the evaluator as what is not, so both are checked as one.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddgen.app import keying, metrics, verdicts
from ddgen.app.concepts import STYLES
from ddgen.app.examples import BAD
from ddgen.app.judge import Judge, whole
from ddgen.app.keying import Pixels
from ddgen.app.pipeline import Pipeline
from ddgen.app.scoring import Scorer
from ddgen.app.sheet import draw
from ddgen.app.suite import HELD_OUT, KINDS, Row, spaced
from ddgen.errors import InputError

TRUSTED = 0.9
VARIED = 3  # prompts whose many seeds are compared
NEIGHBOURS = 5


@dataclass(frozen=True)
class Real:
    """The training pictures as they are, without recolouring and backgrounds: pictures and cut-outs by (icon, style)."""

    pictures: dict[tuple[str, str], Pixels]
    cuts: dict[tuple[str, str], Pixels]

    @property
    def icons(self) -> list[str]:
        """Return the things, each once."""
        return list(dict.fromkeys(icon for icon, _ in self.pictures))


def read_real(folder: Path) -> Real:
    """Read the data set that `ddgen data build stickers` wrote.

    Raises:
        InputError: it is not there or damaged.
    """
    try:
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        plain = [row for row in rows if not any(row.get(key) for key in ("colour", "background", "things"))]
        pictures = {
            (row["icon"], row["style"]): np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in plain
        }
    except (*BAD, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{folder}' is not the stickers' data set ({type(error).__name__})",
            f"build it: ddgen data build stickers {folder}",
            id="input.data",
        ) from None
    return Real(pictures, {place: whole(keying.key(picture)) for place, picture in pictures.items()})


def check(court: verdicts.Court, rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Return by question how often the evaluator is right about real pictures put together for the rows, and of how many."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        for style in [row.style] if row.style else STYLES:
            picture = verdicts.staged(row, court.real, style)
            if picture is not None:
                answers = verdicts.answers(row, court.seen(row, picture))
                count(found, {question(kind): good for kind, good in answers.items()})
    return found


def question(kind: str) -> str:
    """Return the kind as the evaluator is asked: what was held out is the same to it."""
    return kind.removeprefix(HELD_OUT)


def count(found: dict[str, tuple[int, int]], answers: dict[str, bool]) -> None:
    """Add the answers about one picture to (right, total) by kind."""
    for kind, good in answers.items():
        right, total = found.get(kind, (0, 0))
        found[kind] = right + good, total + 1


def trusted(checked: dict[str, tuple[int, int]], kind: str) -> bool:
    """Return whether an accuracy of a kind may be given."""
    needed = (kind,) if kind == verdicts.GROUND else ("concept", question(kind))  # the ground's colour names no thing
    return all(right >= TRUSTED * total > 0 for right, total in (checked.get(one, (0, 0)) for one in needed))


@dataclass
class Figures:
    """Of one model. right: (right, total) by kind; variety: (Vendi score, that of the training pictures of the same thing,
    seeds) by prompt; shown: pictures with their verdicts, and the nearest real picture, by row."""

    model: str
    right: dict[str, tuple[int, int]] = field(default_factory=dict)
    clip: float = 0.0
    intra: float | None = None  # of several seeds
    intra_real: float = 0.0
    prdc: metrics.Prdc | None = None
    copies: float = 0.0
    variety: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    shown: list[tuple[Row, list[Pixels], list[str], Pixels | None]] = field(default_factory=list)

    def plain(self, checked: dict[str, tuple[int, int]]) -> dict[str, Any]:
        """Return the figures as plain data; accuracies only where the evaluator is trusted."""
        accuracy = {
            kind: {"accuracy": round(right / total, 4), "of": total, "interval": [round(v, 4) for v in metrics.interval(right, total)]}
            if trusted(checked, kind)
            else {"accuracy": None, "of": total, "why": "the evaluator is right too seldom on real pictures"}
            for kind, (right, total) in self.right.items()
        }
        return {
            "model": self.model,
            "follows": accuracy,
            "clip_score": round(self.clip, 4),
            "intra_prompt_distance": None if self.intra is None else round(self.intra, 4),
            "intra_thing_distance_of_training_pictures": round(self.intra_real, 4),
            **({} if self.prdc is None else {name: round(value, 4) for name, value in asdict(self.prdc).items()}),
            "nearer_than_first_percentile": round(self.copies, 4),
            "vendi": {p: {"made": round(a, 3), "training": round(b, 3), "seeds": n} for p, (a, b, n) in self.variety.items()},
        }


def evaluate(
    pipeline: Pipeline,
    rows: Sequence[Row],
    seeds: Sequence[int],
    court: verdicts.Court,
    real: Real,
    scorer: Scorer,
    *,
    variety: int,
    told: Callable[[int], None] = lambda count: None,
) -> Figures:
    """Make the suite's pictures with one model and take its figures. variety: seeds of the prompts that are compared
    with themselves; told: pictures made.

    Raises:
        NumericsError: a picture came out non-finite.
    """
    found = Figures(pipeline.spec.name)
    pictures = draw(pipeline, [row.prompt for row in rows], seeds, told)
    places, kept = list(real.cuts), court.judge.embed(list(real.cuts.values())).numpy()
    scores, spreads, vectors = [], [], []
    for index, row in enumerate(rows):
        own = pictures[index * len(seeds) : (index + 1) * len(seeds)]
        seen = [court.seen(row, picture) for picture in own]
        for words in seen:
            count(found.right, verdicts.answers(row, words))
        scores += (scorer.pictures(own) @ scorer.texts([row.prompt])[0]).tolist()
        nearest = None
        if row.kind == "concept":
            embedded = court.judge.embed([whole(keying.key(picture)) for picture in own]).numpy()
            vectors.append(embedded)
            spreads.append(metrics.spread(embedded))
            nearest = real.pictures[places[int((kept @ embedded[0]).argmax())]]
        found.shown.append((row, own, seen, nearest))
    found.clip = float(np.mean(scores))
    groups = [kept[[i for i, (icon, _) in enumerate(places) if icon == wanted]] for wanted in real.icons]
    found.intra_real = float(np.mean([metrics.spread(group) for group in groups]))
    if vectors:
        made = np.concatenate(vectors)
        found.intra = float(np.mean(spreads)) if len(seeds) > 1 else None
        found.copies = metrics.novelty(kept, made).copies
        if min(len(made), len(kept)) > NEIGHBOURS:
            found.prdc = metrics.prdc(kept, made, NEIGHBOURS)
    for row in spaced([row for row in rows if row.kind == "concept"], VARIED) if variety else ():
        many = draw(pipeline, [row.prompt], range(variety), told)
        rows_made = court.judge.embed([whole(keying.key(picture)) for picture in many]).numpy()
        of_thing = kept[[i for i, (icon, _) in enumerate(places) if icon == row.concepts[0]]]
        base = metrics.vendi(of_thing) if len(of_thing) else 0.0
        found.variety[row.prompt] = metrics.vendi(rows_made), base, variety
    return found


def pictures_to_make(rows: Sequence[Row], seeds: Sequence[int], variety: int) -> int:
    """Return how many pictures `evaluate` makes."""
    return len(rows) * len(seeds) + variety * min(VARIED, sum(row.kind == "concept" for row in rows))


def court_of(judge: Judge, real: Real) -> verdicts.Court:
    """Return the evaluator choosing among the things of the data set."""
    return verdicts.Court(judge, real.icons, real.cuts)


def ordered(kinds: dict[str, Any]) -> list[str]:
    """Return the kinds that there are, in the suite's order."""
    return [kind for kind in (*KINDS, verdicts.GROUND) if kind in kinds]
