"""`best`: of several pictures of a prompt the highest scores are kept, alone and in batches that are stopped and run again."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from batch_fakes import ORIGIN, FakeRender, ListSource, lines, make_batch, pictures, pixels_of, planner, runner

from ddgen.app import produce
from ddgen.app.batch import Group, OnStep
from ddgen.app.ledger import Shard
from ddgen.app.naming import Names, Target
from ddgen.app.outcome import Made, Outcome
from ddgen.cli import picking
from ddgen.errors import InputError, UsageError
from ddgen.io import containers, images, metadata
from ddgen.request import Job

FOX = lines("a fox", "an owl", num=(6,), best=(2,), seed=(10,))


def score_of_seed(seed: int) -> float:
    return round((seed * 37 % 11) / 11, 4)


class Scored(FakeRender):
    """Scores by seed alone, as the renderer scores by picture; may stop after some pictures."""

    def __init__(self, last: int = 1000) -> None:
        super().__init__()
        self.left = last

    def __call__(self, group: Group, on_step: OnStep) -> Iterator[Outcome]:
        for outcome in super().__call__(group, on_step):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            if not isinstance(outcome, Made):
                yield outcome
                continue
            job, score = outcome.task.job, score_of_seed(outcome.task.job.seed)
            texts = metadata.describe(job, ORIGIN, "full", outcome.task.id, score)
            yield Made(outcome.task, images.encode(pixels_of(job), "png", 92, texts), 0.001, score)


def run(root: Path, given: list = FOX, render: FakeRender | None = None, **options: object) -> object:
    batch = make_batch(root, **options)
    return batch.run(ListSource(planner(root), given), runner(render or Scored()))


def wanted(*, keep: int = 2, num: int = 6) -> set[int]:
    return set(sorted(range(10, 10 + num), key=lambda seed: -(seed * 37 % 11))[:keep])


def seeds(root: Path) -> set[int]:
    return {int(name.split("-")[-2]) for name in pictures(root) if name.startswith("a-fox")}


def test_a_batch_keeps_the_best_and_the_ledger_knows_the_rest(tmp_path: Path) -> None:
    tally = run(tmp_path)
    assert (tally.saved, tally.skipped, tally.failed) == (4, 0, 0)
    assert len(pictures(tmp_path)) == 4 and seeds(tmp_path) == wanted()
    records = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    kinds = [record["type"] for record in records]
    assert (kinds.count("image"), kinds.count("dropped")) == (4, 8)
    kept = min(record["score"] for record in records if record["type"] == "image" and "a-fox" in record["file"])
    assert kept == sorted((score_of_seed(seed) for seed in range(10, 16)), reverse=True)[1]
    for name in pictures(tmp_path):
        said = json.loads(containers.read_texts((tmp_path / name).read_bytes())["ddgen"])
        assert said["score"] == score_of_seed(said["job"]["seed"])


def test_run_again_a_finished_batch_makes_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    before, render = pictures(tmp_path), Scored()
    tally = run(tmp_path, render=render)
    assert render.calls == [] and (tally.saved, tally.skipped) == (0, 4)
    (tmp_path / "ledger.jsonl").unlink()
    run(tmp_path, render=render)
    assert render.calls == [] and pictures(tmp_path) == before, "the pictures are the truth, not the ledger"


@pytest.mark.parametrize("stopped", [1, 5, 6, 7, 11])
def test_a_batch_that_was_stopped_ends_the_same(tmp_path: Path, stopped: int) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", render=Scored(stopped), batch_size=2)
    run(tmp_path / "cut")
    assert pictures(tmp_path / "cut") == pictures(tmp_path / "whole")


def test_a_winner_that_was_lost_is_made_again(tmp_path: Path) -> None:
    run(tmp_path)
    before = pictures(tmp_path)
    (tmp_path / next(iter(before))).unlink()
    run(tmp_path)
    assert pictures(tmp_path) == before


def test_what_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    tally = run(tmp_path, lines("a bad fox", num=(3,), best=(1,)))
    assert (tally.saved, tally.failed) == (0, 3)


def test_shards_part_contests_whole(tmp_path: Path) -> None:
    given = lines(*(f"fox {index}" for index in range(6)), num=(4,), best=(1,), seed=(10,))
    run(tmp_path / "one", given)
    for index in (1, 2):
        shard = Shard(index, 2)
        batch = make_batch(tmp_path / "two", shard)
        batch.run(ListSource(planner(tmp_path / "two", shard=shard), given), runner(Scored()))
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one") and len(pictures(tmp_path / "one")) == 6


def test_more_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--best 3 of 2 pictures"):
        list(planner(tmp_path).tasks(lines("a fox", num=(2,), best=(3,))[0]))
    with pytest.raises(UsageError, match="--best 0"):
        picking.read("0", None, 4)
    with pytest.raises(UsageError, match="--scorer needs --best"):
        picking.read(None, "x", 4)
    with pytest.raises(InputError, match="no folder"):
        picking.read("1", "/no/such", 4)
    assert picking.read("2", None, 2) == picking.Choice(2, 2)


def jobs_of(*prompts: str, num: int) -> list[Job]:
    shared = dict(negative="", width=64, height=64, steps=3, guidance=1.0, guidance_rescale=0.0)
    shared |= dict(guidance_interval=None, sampler="euler", spacing="karras", sigmas=None, eta=None, scale=1, model="m")
    return [Job(prompt=prompt, seed=seed, **shared) for prompt in prompts for seed in range(num)]


def test_sample_writes_the_best_of_each_prompt_best_first(tmp_path: Path) -> None:
    jobs = jobs_of("a fox", "an owl", num=5)
    asked: list[int] = []

    def score(batch: list[Job], made: list[np.ndarray]) -> list[float]:
        asked.append(len(made))
        return [[0.3, 0.9, 0.1, 0.9, 0.2][job.seed] for job in batch]

    batches = [jobs[i : i + 4] for i in range(0, 10, 4)]  # not along the prompts
    names = Names(Target("directory", tmp_path, "", "png"))
    made = list(
        produce.produce(
            batches, lambda batch: [pixels_of(job) for job in batch], names, produce.Saving(), ORIGIN,
            produce.Pick(2, 5, score),
        )  # fmt: skip
    )
    assert [(result.job.prompt, result.job.seed, result.score) for result in made] == [
        ("a fox", 1, 0.9), ("a fox", 3, 0.9), ("an owl", 1, 0.9), ("an owl", 3, 0.9),
    ]  # fmt: skip
    assert len(list(tmp_path.glob("*.png"))) == 4 and sum(asked) == 10
    said = json.loads(containers.read_texts(made[0].data)["ddgen"])
    assert said["score"] == 0.9


def test_without_best_nothing_is_said_of_scores(tmp_path: Path) -> None:
    jobs = jobs_of("a fox", num=2)
    made = list(produce.produce([jobs], lambda batch: [pixels_of(job) for job in batch], None, produce.Saving(), ORIGIN))
    assert [result.score for result in made] == [None, None]
    assert "score" not in json.loads(containers.read_texts(made[0].data)["ddgen"])
