"""The benchmark's own arithmetic, and README's table as its last results make it. Nothing is timed here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench import table  # noqa: E402
from bench.measure import Absent, Pair, Result, Worker, from_json, measure, merged, run, to_json  # noqa: E402
from bench.rows import LONG, ROWS  # noqa: E402

def test_the_sheet_asks_for_its_data_before_it_draws(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from bench import sheet

    monkeypatch.setattr(sheet.Pipeline, "load", lambda *_, **__: pytest.fail("drawn"))
    for more in ((), ("--data", str(tmp_path))):
        monkeypatch.setattr(sys, "argv", ["sheet", "m", "--into", str(tmp_path / "s.webp"), "--nearest", "n.webp", *more])
        with pytest.raises(SystemExit) as ended:
            sheet.main()
        assert ended.value.code == 2 and "--nearest needs --data" in capsys.readouterr().err


MACHINE: dict[str, object] = {
    "date": "2026-01-02",
    "processor": "a processor",
    "cores": 2,
    "load": 0.1,
    "python": "3.11.2",
    "versions": {"ddgen": "0", "torch": "2.11"},
}


def result(**changes: object) -> Result:
    values: dict[str, object] = {
        "name": "cold", "what": "`a`", "peer_name": "`b`", "unit": "s", "compare": "ratio", "target": 1.5,
        "ours": [3.0, 2.0, 10.0], "peer": [2.0, 2.0, 4.0], "machine": MACHINE,
    }  # fmt: skip
    return Result(**(values | changes))  # type: ignore[arg-type]


def test_the_two_sides_alternate() -> None:
    order: list[str] = []
    closed: list[bool] = []

    def side(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    pair = Pair("w", lambda: side("a", 1.0), "p", lambda: side("b", 2.0), close=lambda: closed.append(True))
    found = measure("row", pair, 3, MACHINE)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert found.ours == [1.0] * 3 and found.peer == [2.0] * 3 and found.comparison == 0.5
    assert closed == [True] and found.limit == [] and found.of_limit is None


def test_a_row_may_ask_for_less_and_be_held_against_a_limit() -> None:
    taken: list[str] = []

    def side(name: str, seconds: float) -> float:
        taken.append(name)
        return seconds

    pair = Pair("w", lambda: side("a", 2.0), "p", lambda: side("b", 2.0), repeats=2, warmups=0,
                limit=lambda: side("l", 1.5))  # fmt: skip
    found = measure("row", pair, 7, MACHINE)
    assert "".join(taken) == "abl" + "bal"
    assert found.limit == [1.5, 1.5] and found.of_limit == 0.75


def test_a_failing_side_still_closes() -> None:
    closed: list[bool] = []
    pair = Pair("w", lambda: 1 / 0, "p", lambda: 1.0, close=lambda: closed.append(True))
    with pytest.raises(ZeroDivisionError):
        measure("row", pair, 1, MACHINE)
    assert closed == [True]


def test_comparison_is_the_median_of_neighbours() -> None:
    """Not the ratio of medians (1.5 here as well as there): neighbours share what the machine was doing."""
    assert result().comparison == 1.5 and result().holds
    assert result(ours=[1.0, 9.0, 4.0], peer=[1.0, 3.0, 2.0]).comparison == 2.0
    assert not result(target=1.4).holds and result(target=None).holds is None
    memory = result(unit="MB", compare="difference", ours=[300.0], peer=[100.0], target=150.0)
    assert memory.comparison == 200.0 and not memory.holds


MEMORY = """
import sys
from bench.measure import run
small, large = (run([sys.executable, "-c", f"x = b'x' * {size}_000_000"]) for size in (100, 300))
print(large.megabytes - small.megabytes, small.seconds)
"""


def test_a_process_is_measured() -> None:
    """Whatever the process that asks has held itself."""
    ran = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True)
    megabytes, seconds = (float(word) for word in ran.stdout.split())
    assert megabytes == pytest.approx(200, abs=20) and seconds > 0
    held = bytearray(b"x") * 100_000_000
    assert 0 < run([sys.executable, "-c", "pass"]).megabytes < 50
    del held
    with pytest.raises(RuntimeError, match="exit 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="exit -9"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], patience=0.2)
    with pytest.raises(RuntimeError, match="exit -9"):
        Worker("sticker_calls", patience=0.05)


def test_results_survive_the_file() -> None:
    other = MACHINE | {"date": "2026-01-03"}
    rows = [result(), result(name="memory", target=None, limit=[1.0, 1.0, 1.0]), result(name="warm", machine=other)]
    text = to_json(rows)
    assert from_json(text) == rows and text.count('"2026-01-02"') == 1


def test_rows_that_were_not_taken_keep_their_results_and_dates() -> None:
    kept = [result(name="help"), result(name="cold"), result(name="gone")]
    again = result(name="cold", ours=[1.0], peer=[1.0], machine=MACHINE | {"date": "2026-02-03"})
    rows = merged(kept, [again], ["cold", "warm", "help"])
    assert rows == [again, kept[0]]
    lines = table.markdown(rows).splitlines()
    assert lines[2].endswith("| 2026-02-03 |") and lines[3].endswith("| 2026-01-02 |")
    assert "2026-01-02, 2026-02-03, load up to 0.1: a processor, 2 cores" in lines[5]


def test_the_table_goes_between_the_markers() -> None:
    made = table.markdown([result(limit=[1.5, 1.5, 5.0])])
    assert "| `a` | 3.00 s | `b` | 2.00 s | 1.50 x (1.00 to 2.50) | <= 1.5 x, met | 50 % | 2026-01-02 |" in made
    assert "torch 2.11" in made
    readme = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    written = table.with_table(readme, made)
    assert table.section(written) == made
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "old" not in written
    with pytest.raises(ValueError, match="README has no"):
        table.with_table("no markers", made)


def test_readme_shows_the_last_results() -> None:
    path = table.latest()
    if path is None:
        pytest.skip("bench/results holds no results yet")
    assert table.section((ROOT / "README.md").read_text()) == table.readme_table(path)
    assert {row.name for row in from_json(path.read_text())} <= set(ROWS)


def test_the_random_checkpoint_is_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from small import sparse

    from bench import warmth
    from ddgen.weights import checkpoint

    def write(path: Path, plan: dict[str, tuple[object, tuple[int, ...]]], *_: object) -> None:
        sparse(path, {name: shape for name, (_, shape) in plan.items()})

    monkeypatch.setattr(checkpoint, "write_file", write)
    warmth.write_checkpoint(tmp_path / "sd15.safetensors")
    found = checkpoint.open_checkpoint(tmp_path / "sd15.safetensors")
    assert found.arch is not None and found.arch.name == "SD15"
    assert set(found.parts) == {"unet", "first_stage", "text.0"} and found.unknown == ()


def test_long_rows_are_rows() -> None:
    assert set(LONG) < set(ROWS)


def test_a_row_without_its_peer_is_absent_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("bench.rows.find_spec", lambda name: None)
    for name, words in (("gpu-sd15-1-eager", "no GPU"), ("step-compiled", "compiler"), ("step-openvino", "pip install openvino")):
        with pytest.raises(Absent, match=words):
            ROWS[name]()


def test_a_worker_counts_its_work_and_says_why_it_ended() -> None:
    worker = Worker("bench.networks:gemm")
    assert worker.work == 2.0 * 2048**3 and worker() > 0
    worker.close()
    with pytest.raises(RuntimeError, match="KeyError: 'no_such_call'"):
        Worker("no_such_call")


def test_the_counted_work_is_the_published_one() -> None:
    """803 GFLOP a branch at 512 x 512, as profilers of the published network say."""
    import torch

    from bench import networks

    with torch.inference_mode():
        assert networks.guided_work("SD15", 64, 1) == pytest.approx(1607e9, rel=0.02)


def test_a_batch_whose_pictures_cost_nothing_is_made() -> None:
    from bench.batches import Drawn

    batch = Drawn(3)
    try:
        assert batch.run().seconds > 0
    finally:
        batch.close()


def test_a_profile_tells_kinds_and_shares() -> None:
    import torch

    from bench.profile import by_kind, rows, spent

    ours = by_kind([("aten::mkldnn_convolution", 3.0), ("mkldnn::_linear_pointwise", 0.5), ("aten::addmm", 0.5), ("aten::odd", 1.0)])
    assert ours == {"convolution": 3.0, "linear": 1.0, "other": 1.0}
    lines = rows(ours, {"linear": 2.0})
    assert lines[0] == ("convolution", "60.0 %", "3.000 s", "0.0 %", "0.000 s")
    assert lines[1] == ("linear", "20.0 %", "1.000 s", "100.0 %", "2.000 s")
    assert lines[-1] == ("all", "100.0 %", "5.000 s", "100.0 %", "2.000 s")
    matrix = torch.ones(64, 64)
    with torch.inference_mode():
        found = spent(lambda: torch.nn.functional.silu(matrix @ matrix))
    assert found["linear"] > 0 and found["activation"] > 0
