"""The Ray runner on a real cluster of several node processes: same pictures as the local runner, and nothing
lost by kill -9.
"""

import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from batch_fakes import FakeRender, ListSource, lines, make_batch, pictures, planner, runner

from ddgen.app import ray_runner
from ddgen.app.batch import Interrupted, Render
from ddgen.errors import ModelError, ResourceError, UsageError

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
GIVEN = lines(*(f"prompt {index}" for index in range(24)))


@dataclass(frozen=True)
class FakeRecipe:
    """Builds the fake renderer; each worker leaves its pid in `pids`, and a file per group that it begins."""

    pids: Path
    delay: float = 0.0
    error: str = ""
    poison: str = ""
    stillborn: bool = False

    def build(self, threads: int) -> Render:
        if self.stillborn:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.error:
            raise ModelError(self.error, "mend it")
        render, pids, poison = FakeRender(delay=self.delay), self.pids, self.poison

        def watched(group, on_step):  # type: ignore[no-untyped-def]
            (pids / f"{os.getpid()}-{time.monotonic_ns()}").touch()
            if poison and any(poison in task.job.prompt for task in group):
                (pids / f"{os.getpid()}-{time.monotonic_ns()}.killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return render(group, on_step)

        return watched


@pytest.fixture(scope="module")
def cluster() -> Iterator["Cluster"]:
    if find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'ddgen[ray]'")
    settings = {
        "PYTHONPATH": str(Path(__file__).parent),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings  # Ray reads them when it is imported
    import ray
    from ray.cluster_utils import Cluster

    made = start(Cluster)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def start(kind: type) -> "Cluster":
    """Start a cluster of two nodes; a busy machine may need another try, since Ray waits 30 s only."""
    for attempt in range(3):
        made = None
        try:
            made = kind(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            made.add_node(num_cpus=1)
            return made
        except Exception:  # Ray raises a bare one here
            if made is not None:
                made.shutdown()
            if attempt == 2:
                raise
    raise AssertionError


def run_on(
    cluster: "Cluster", root: Path, recipe: FakeRecipe, *, shared: bool = False, **options: object
) -> object:
    recipe.pids.mkdir(exist_ok=True)
    made = ray_runner.runner(ray_runner.Cluster(cluster.address, 2, shared), recipe, lambda: False)
    return make_batch(root, batch_size=2, **options).run(ListSource(planner(root), GIVEN), made)


def local_pictures(root: Path) -> dict[str, str]:
    make_batch(root).run(ListSource(planner(root), GIVEN), runner(FakeRender()))
    return pictures(root)


@pytest.mark.parametrize("shared", [False, True])
def test_same_pictures_as_the_local_runner(cluster: "Cluster", tmp_path: Path, shared: bool) -> None:
    tally = run_on(cluster, tmp_path / "ray", FakeRecipe(tmp_path / "pids", delay=0.02), shared=shared)
    assert (tally.saved, tally.failed) == (24, 0)  # type: ignore[attr-defined]
    assert pictures(tmp_path / "ray") == local_pictures(tmp_path / "local")
    assert len(make_batch(tmp_path / "ray").ledger.ids) == 24
    workers = {path.name.split("-")[0] for path in (tmp_path / "pids").iterdir()}
    assert len(workers) == 2 and str(os.getpid()) not in workers


def test_nodes_are_processes_of_their_own(cluster: "Cluster") -> None:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    assert len(nodes) == 2 and len({node["NodeID"] for node in nodes}) == 2


def test_a_worker_killed_in_the_middle_of_a_picture_loses_nothing(cluster: "Cluster", tmp_path: Path) -> None:
    killed: list[int] = []

    def emit(event) -> None:  # type: ignore[no-untyped-def]
        if (
            event.kind == "image"
            and len(killed) < 3
            and len(pictures(tmp_path / "ray")) >= 4 * (len(killed) + 1)
        ):
            newest = max((tmp_path / "pids").iterdir(), key=lambda path: int(path.name.split("-")[1]))
            victim = int(newest.name.split("-")[0])  # it is inside the group that it began last
            try:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
            except ProcessLookupError:
                pass

    tally = run_on(cluster, tmp_path / "ray", FakeRecipe(tmp_path / "pids", delay=0.15), emit=emit)
    assert len(killed) == 3
    assert (tally.saved, tally.failed, tally.exit_code) == (24, 0, 0)  # type: ignore[attr-defined]
    assert pictures(tmp_path / "ray") == local_pictures(tmp_path / "local")
    lines_of_ledger = (tmp_path / "ray" / "ledger.jsonl").read_text().splitlines()
    assert len(lines_of_ledger) == 24, "each picture is booked once"
    begun = len(list((tmp_path / "pids").iterdir()))
    assert begun <= 12 + 3 * 2, "a death costs at most the group in hand"


def test_a_picture_that_kills_its_workers_is_given_up_alone(cluster: "Cluster", tmp_path: Path) -> None:
    tally = run_on(cluster, tmp_path / "ray", FakeRecipe(tmp_path / "pids", poison="prompt 7"))
    assert (tally.saved, tally.failed, tally.exit_code) == (23, 1, 3)  # type: ignore[attr-defined]
    failed = (tmp_path / "ray" / "failed.jsonl").read_text()
    assert "prompt 7" in failed and "3 workers died making it" in failed
    killed = [path for path in (tmp_path / "pids").iterdir() if path.suffix == ".killed"]
    assert len(killed) == 3


def test_an_error_of_the_start_is_told_as_it_is(cluster: "Cluster", tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights; mend it"):
        run_on(cluster, tmp_path / "ray", FakeRecipe(tmp_path / "pids", error="no weights"))
    with pytest.raises(ResourceError, match="9 workers need 9 cores, the cluster has 2"):
        made = ray_runner.runner(
            ray_runner.Cluster(cluster.address, 9), FakeRecipe(tmp_path / "pids"), lambda: False
        )
        make_batch(tmp_path / "x").run(ListSource(planner(tmp_path / "x"), GIVEN), made)


def test_a_worker_that_dies_while_it_loads_is_no_mystery(cluster: "Cluster", tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="a Ray worker died while it loaded the model; see if memory is enough"):
        run_on(cluster, tmp_path / "ray", FakeRecipe(tmp_path / "pids", stillborn=True))


def test_a_worker_that_the_memory_watch_ends_is_a_dead_one() -> None:
    exceptions = pytest.importorskip("ray.exceptions")

    def get(ref: object) -> object:
        raise exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")

    started: list[int] = []
    worker = SimpleNamespace(ready=SimpleNamespace(remote=lambda: None))
    crew = SimpleNamespace(handles=[worker], replace=started.append)
    ray, group = SimpleNamespace(exceptions=exceptions, get=get), ["a task"]
    waiting: deque[tuple[list[str], int]] = deque()
    sent = {"ref": ray_runner._Sent(group, 0, 0)}  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match="died while it loaded"):
        list(ray_runner._receive(ray, crew, "ref", sent, waiting))  # type: ignore[arg-type]
    assert list(waiting) == [(group, 1)] and sent == {}
    assert started == [0, 0, 0], "it is tried three times"


def test_stopping(cluster: "Cluster", tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    recipe, seen = FakeRecipe(tmp_path / "pids", delay=0.05), []
    made = ray_runner.runner(ray_runner.Cluster(cluster.address, 2), recipe, lambda: len(seen) > 3)
    batch = make_batch(
        tmp_path / "ray", batch_size=2, emit=lambda event: seen.append(1) if event.kind == "image" else None
    )
    with pytest.raises(Interrupted):
        batch.run(ListSource(planner(tmp_path / "ray"), GIVEN), made)
    assert len(pictures(tmp_path / "ray")) == batch.tally.saved < 24


def test_a_cluster_elsewhere_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for address in ("ray://10.0.0.5:10001", "10.0.0.5:6379"):
        with pytest.raises(UsageError, match="needs a token; set RAY_AUTH_MODE=token"):
            ray_runner.check_address(address)
    ray_runner.check_address(None)
    ray_runner.check_address("127.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray_runner.check_address("ray://10.0.0.5:10001")
