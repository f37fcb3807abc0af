"""The batch engine with a fake pipeline: resume, grouping, seeds, sweeps, failures, interruption, memory."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from batch_fakes import SPEC, FakeRender, ListSource, lines, make_batch, pictures, planner, runner

from ddgen.app import sources
from ddgen.app.batch import Event, Interrupted, look, shape
from ddgen.app.identity import derived_seed, job_id, model_key
from ddgen.app.ledger import Shard
from ddgen.app.styles import Style
from ddgen.app.tasks import replayable
from ddgen.errors import InputError, OutputError, UsageError
from ddgen.io.lines import BadLine, PromptLine
from ddgen.io.prompts import PromptFile, stream
from ddgen.io.settings import Settings
from ddgen.io.whole import embedded_id

TEN = lines(*(f"prompt {index}" for index in range(10)))


def test_running_again_makes_only_what_is_missing(tmp_path: Path) -> None:
    first = make_batch(tmp_path).run(ListSource(planner(tmp_path), TEN), runner(FakeRender()))
    assert (first.saved, first.skipped, first.exit_code) == (10, 0, 0)
    before = pictures(tmp_path)
    for name in list(before)[:3]:
        (tmp_path / name).unlink()
    render = FakeRender()
    second = make_batch(tmp_path).run(ListSource(planner(tmp_path), TEN), runner(render))
    assert (second.saved, second.skipped) == (3, 7)
    assert sum(map(len, render.calls)) == 3
    assert pictures(tmp_path) == before
    again = FakeRender()
    make_batch(tmp_path).run(ListSource(planner(tmp_path), TEN), runner(again))
    assert again.calls == [], "a finished batch never asks for the pipeline"


def test_ledger_is_rebuilt_from_the_pictures(tmp_path: Path) -> None:
    make_batch(tmp_path).run(ListSource(planner(tmp_path), TEN), runner(FakeRender()))
    ledger = tmp_path / "ledger.jsonl"
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len(records) == 10 and all((tmp_path / record["file"]).exists() for record in records)
    ledger.write_bytes(ledger.read_bytes()[:-20])  # torn in its last line
    batch = make_batch(tmp_path)
    assert batch.ledger.bad_lines == 1
    batch.run(ListSource(planner(tmp_path), TEN), runner(FakeRender()))
    again = make_batch(tmp_path)
    assert len(again.ledger.ids) == 10 and again.ledger.bad_lines == 1
    ledger.unlink()
    make_batch(tmp_path).run(ListSource(planner(tmp_path), TEN), runner(FakeRender()))
    assert len(make_batch(tmp_path).ledger.ids) == 10


def test_jobs_of_one_shape_share_calls_whatever_else_they_say(tmp_path: Path) -> None:
    given = [
        *lines("a", guidance=(5.0,)),
        *lines("b", steps=(9,)),
        *lines("c", guidance=(7.0,), seed=(3,)),
        *lines("d", size=("128x64",)),
        *lines("e", steps=(9,)),
        *lines("f", negative=("g",)),
    ]
    render = FakeRender()
    make_batch(tmp_path, batch_size=8).run(ListSource(planner(tmp_path), given), runner(render))
    assert render.calls == [["a", "c", "f"], ["b", "e"], ["d"]]
    small = FakeRender()
    make_batch(tmp_path / "small", batch_size=2).run(
        ListSource(planner(tmp_path / "small"), given), runner(small)
    )
    assert max(map(len, small.calls)) == 2 and sorted(sum(small.calls, [])) == list("abcdef")


def test_long_prompts_do_not_share_calls_with_short_ones(tmp_path: Path) -> None:
    given = lines("a cat", "word " * 80, "a dog", "b BREAK c")
    tasks = [task for line in given for task in planner(tmp_path).tasks(line)]
    shapes = [shape(task) for task in tasks]
    assert shapes[0] == shapes[2] != shapes[1] and shapes[3] == shapes[1]


def test_grouping_never_waits_for_more(tmp_path: Path) -> None:
    render = FakeRender()
    holes = [*lines("a"), None, *lines("b", "c"), None, None, *lines("d")]
    make_batch(tmp_path).run(ListSource(planner(tmp_path), holes), runner(render))
    assert render.calls == [["a"], ["b", "c"], ["d"]]


def test_stream_gives_results_while_input_is_open(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    seen = threading.Event()
    batch = make_batch(tmp_path, emit=lambda event: seen.set() if event.kind == "image" else None)
    source = sources.StreamSource(os.fdopen(read_end, "rb"), planner(tmp_path), "standard input")
    worker = threading.Thread(target=lambda: batch.run(source, runner(FakeRender())))
    worker.start()
    os.write(write_end, b"a cat\n")
    assert seen.wait(10), "the first picture is made while the stream is still open"
    os.write(write_end, b"a dog --stpes 3\na bird")
    os.close(write_end)
    worker.join(10)
    assert (batch.tally.saved, batch.tally.failed) == (2, 1)
    assert batch.tally.exit_code == 3
    source.file.close()


def test_failed_items_make_a_prompt_file_that_makes_the_same_jobs(tmp_path: Path) -> None:
    given = [
        *lines("a bad {cat}", steps=(5, 6), negative=('x "y"',), guidance_interval=((0.1, 0.5),)),
        *lines("a cat"),
        BadLine("standard input", 7, "unknown key 'x'", "did you mean", '{"prompt":\n"é"}'),
        *lines("bad sigmas", sigmas=((9.0, 1.0, 0.0),), seed=(0,), scale=(2,)),
    ]
    tally = make_batch(tmp_path).run(ListSource(planner(tmp_path), given), runner(FakeRender()))
    assert (tally.saved, tally.failed, tally.exit_code) == (1, 4, 3)
    text = (tmp_path / "failed.jsonl").read_text()
    assert text.count("\n") == 4 and text.isascii()
    wanted = {
        task.id for line in given if not isinstance(line, BadLine) for task in planner(tmp_path).tasks(line)
    }
    boom = planner(tmp_path, expand=lambda text: 1 / 0)
    file = PromptFile(str(tmp_path / "failed.jsonl"))
    found = [task for line in file.lines() for task in boom.tasks(line)]  # type: ignore[arg-type]
    file.close()
    assert {task.id for task in found} < wanted and len(found) == 3
    make_batch(tmp_path).run(ListSource(planner(tmp_path), lines("a cat")), runner(FakeRender()))
    assert not (tmp_path / "failed.jsonl").exists(), "nothing failed this time"


def test_exit_code_is_the_first_failure_when_nothing_was_made(tmp_path: Path) -> None:
    assert (
        make_batch(tmp_path).run(ListSource(planner(tmp_path), lines("bad")), runner(FakeRender())).exit_code
        == 9
    )


def test_somebody_elses_file_is_never_replaced(tmp_path: Path) -> None:
    given = planner(tmp_path)
    task = next(given.tasks(TEN[0]))
    task.path.write_bytes(b"not a picture")
    with pytest.raises(OutputError, match="is another picture"):
        make_batch(tmp_path).run(ListSource(planner(tmp_path), TEN), runner(FakeRender()))
    assert task.path.read_bytes() == b"not a picture"


def test_check_looks_at_every_checksum(tmp_path: Path) -> None:
    make_batch(tmp_path).run(ListSource(planner(tmp_path), TEN), runner(FakeRender()))
    task = next(planner(tmp_path).tasks(TEN[0]))
    data = bytearray(task.path.read_bytes())
    data[-3000] ^= 1
    task.path.write_bytes(data)
    assert look(task) == "done" and look(task, thorough=True) == "other"


def test_interruption_keeps_what_is_finished(tmp_path: Path) -> None:
    stopped: list[int] = []

    def emit(event: Event) -> None:
        if event.kind == "image":
            stopped.append(1)

    batch = make_batch(tmp_path, emit=emit, stop=lambda: len(stopped) >= 4, batch_size=2)
    with pytest.raises(Interrupted):
        batch.run(ListSource(planner(tmp_path), TEN), runner(FakeRender()))
    assert batch.tally.saved == 4 == len(pictures(tmp_path))


def test_seeds_come_from_prompts_not_from_places(tmp_path: Path) -> None:
    def seeds(*prompts: str, **more: object) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        given = planner(tmp_path, **more)
        for line in lines(*prompts):
            for task in given.tasks(line):
                found.setdefault(task.job.prompt, []).append(task.job.seed)
        return found

    forwards, backwards = seeds("a", "b", "a", run_seed=5), seeds("new", "b", "a", "a", run_seed=5)
    assert (
        forwards["a"] == backwards["a"] and forwards["b"] == backwards["b"] and len(set(forwards["a"])) == 2
    )
    assert seeds("a", run_seed=6) != seeds("a", run_seed=5)
    assert seeds("a", "b", base={"seed": (7,)}) == {"a": [7], "b": [7]}
    assert seeds("a", base={"num": (3,), "seed": (7,)}) == {"a": [7, 8, 9]}
    assert seeds("a", base={"seed": (3, 9)}) == {"a": [3, 9]}
    assert seeds("a", base={"seed": (-1,)}, run_seed=5) == seeds("a", run_seed=5)
    assert all(seed < 2**32 for seed in forwards["a"])
    assert derived_seed(1, "a", 0) == derived_seed(1, "a", 0) != derived_seed(1, "a", 1)


def test_sweeps_make_the_product_with_one_seed(tmp_path: Path) -> None:
    base: Settings = {"steps": (20, 30), "guidance": (5.0, 7.0)}
    tasks = list(planner(tmp_path, base=base).tasks(lines("a")[0]))
    assert [(task.job.steps, task.job.guidance) for task in tasks] == [(20, 5), (20, 7), (30, 5), (30, 7)]
    assert len({task.job.seed for task in tasks}) == 1 and len({task.path for task in tasks}) == 4
    own = list(planner(tmp_path, base=base).tasks(lines("a", steps=(3,))[0]))
    assert [(task.job.steps, task.job.guidance) for task in own] == [(3, 5), (3, 7)], "the line goes first"
    explicit = list(planner(tmp_path, base=base).tasks(lines("a", sigmas=((9.0, 1.0, 0.0),))[0]))
    assert [task.job.steps for task in explicit] == [2, 2], "sigmas of the line silence --steps"
    assert (
        next(planner(tmp_path, base={"size": ("64x64",)}).tasks(lines("a", width=(128,))[0])).job.width == 128
    )


def test_a_line_never_takes_the_settings_of_the_one_before(tmp_path: Path) -> None:
    each = [{}, {"steps": (9,)}, {}, {"steps": (9,), "seed": (4,)}, {"num": (2,)}, {"seed": (5,), "guidance": (2.0,)}]
    given = [
        PromptLine("prompt file 'p'", number, f"a {number}", settings)  # type: ignore[arg-type]
        for number, settings in enumerate(each, 1)
    ]
    together = planner(tmp_path)
    found = [task for line in given for task in together.tasks(line)]
    alone = [task for line in given for task in planner(tmp_path).tasks(line)]
    assert found == alone and [task.job.steps for task in found] == [3, 9, 3, 9, 3, 3, 3]
    assert found[3].job.seed == 4 and found[-1].job.guidance == 2.0


def test_expansion_and_styles(tmp_path: Path) -> None:
    styles = {"s": Style("s", "{prompt}, neat", "blurry", {"steps": 9})}
    given = planner(
        tmp_path, expand=lambda text: (text.replace("X", "1"), text.replace("X", "2")), styles=styles
    )
    tasks = list(given.tasks(lines("aX", style=("s",), negative=("red",))[0]))
    assert [task.job.prompt for task in tasks] == ["a1, neat", "a2, neat"]
    assert tasks[0].job.negative == "red, blurry" and tasks[0].job.steps == 9
    assert next(given.tasks(lines("b", style=("s",), steps=(4,))[0])).job.steps == 4
    with pytest.raises(InputError, match="line 1: unknown style 't'; did you mean|one of: s"):
        list(given.tasks(lines("a", style=("t",))[0]))


def test_equal_jobs_are_made_once(tmp_path: Path) -> None:
    given = planner(tmp_path, base={"seed": (7,)})
    assert sum(1 for line in lines("a", "a", "b") for _ in given.tasks(line)) == 2 and given.duplicates == 1


def test_shards_part_the_work(tmp_path: Path) -> None:
    parts = [{task.id for task in tasks_of(planner(tmp_path, shard=Shard(index, 3)))} for index in (1, 2, 3)]
    whole = {task.id for task in tasks_of(planner(tmp_path))}
    assert set.union(*parts) == whole and sum(map(len, parts)) == len(whole)


def tasks_of(given: object) -> list:
    return [task for line in TEN for task in given.tasks(line)]  # type: ignore[attr-defined]


def test_a_wrong_line_is_named_and_a_wrong_flag_is_not_blamed_on_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"prompt file 'p' line 1: --steps 0 is out of range; use 1 to 1000"):
        list(planner(tmp_path).tasks(lines("a", steps=(0,))[0]))
    with pytest.raises(UsageError, match=r"^--steps 0 is out of range"):
        planner(tmp_path, base={"steps": (0,)}).check_base()
    monkeypatch.setattr("ddgen.app.tasks.MAX_TASKS_PER_LINE", 10)
    with pytest.raises(InputError, match="line 1: makes more than 10 pictures; split the line"):
        list(planner(tmp_path).tasks(lines("a", num=(11,))[0]))


def test_names_stay_in_the_directory(tmp_path: Path) -> None:
    for prompt in ("../../etc/passwd", "/", "..", "a\0b", "\x1b[2J", "x" * 5000, "🙂" * 400, "con", "-rf"):
        task = next(planner(tmp_path).tasks(lines(prompt)[0]))
        assert task.path.parent == tmp_path and len(task.path.name.encode()) < 255
        assert task.path.name.isprintable() and not task.path.name.startswith(("-", "."))


def test_id_knows_every_setting_and_the_weights_but_not_the_name(tmp_path: Path) -> None:
    job = next(planner(tmp_path).tasks(lines("a")[0])).job
    base = job_id(job, "k")
    for name, value in vars(job).items():
        changed = {"a": "b", True: False}.get(value, f"{value}x" if isinstance(value, str) else 123)  # type: ignore[call-overload]
        other = type(job)(**{**vars(job), name: changed})
        assert (job_id(other, "k") == base) is (name == "model"), name
    assert job_id(job, "l") != base
    assert model_key(SPEC, {"model": "1"}) != model_key(SPEC, {"model": "2"})


def test_checked_whole_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat\na dog --steps 0\nb --x\nc\n")
    file = PromptFile(str(path))
    with pytest.raises(InputError, match=r"line 2: --steps 0 is out of range") as caught:
        sources.check([file], planner(tmp_path), lambda task: None)
    assert len(caught.value.others) == 1  # type: ignore[attr-defined]
    file.close()
    path.write_text("# nothing\n")
    file = PromptFile(str(path))
    with pytest.raises(InputError, match="has no prompts; write one per line"):
        sources.check([file], planner(tmp_path), lambda task: None)
    file.close()


def test_embedded_id(tmp_path: Path) -> None:
    make_batch(tmp_path).run(
        ListSource(planner(tmp_path), lines('say "id":"' + "0" * 32 + '"')), runner(FakeRender())
    )
    path = next(tmp_path.glob("*.png"))
    assert embedded_id(path) == embedded_id(path, thorough=True) != "0" * 32
    data = path.read_bytes()
    for cut in (0, 5, 8, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="cut short|not a PNG"):
            embedded_id(path)
    path.write_bytes(data + b"x")
    with pytest.raises(ValueError, match="behind its end"):
        embedded_id(path)


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from batch_fakes import planner
from ddgen.app import sources
from ddgen.io.lines import BadLine, PromptLine
from ddgen.io.prompts import PromptFile
file = PromptFile(sys.argv[1])
count = 0
def visit(task):
    global count
    count += 1
sources.check([file], planner(Path("/nowhere")), visit)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "torch" in sys.modules)
"""


@pytest.mark.slow
def test_planning_a_hundred_thousand_lines_takes_little_memory_and_no_torch(tmp_path: Path) -> None:
    peaks = {}
    for size in (100, 100_000):
        path = tmp_path / f"{size}.txt"
        path.write_text("".join(f"a red apple number {index}\n" for index in range(size)))
        command = [sys.executable, "-c", MEMORY, str(path), str(Path(__file__).parent)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert out[0] == str(size) and out[2] == "False"
        peaks[size] = int(out[1])
    assert peaks[100_000] - peaks[100] < 100e6


def test_replayable_keeps_the_job(tmp_path: Path) -> None:
    settings = {"steps": (7,), "eta": (0.5,), "sampler": ("ddim",), "guidance_rescale": (0.3,), "scale": (2,)}
    task = next(planner(tmp_path).tasks(lines("a {b|c}", **settings)[0]))
    record = json.dumps(replayable(task, "why")).encode()
    line = next(stream(io.BytesIO(record), "x", "jsonl"))
    assert next(planner(tmp_path, expand=lambda text: 1 / 0).tasks(line)).id == task.id  # type: ignore[arg-type]
