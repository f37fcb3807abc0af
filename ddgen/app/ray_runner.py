"""The batch's runner on a Ray cluster: a warm pipeline per GPU or per few cores, the driver alone keeps the
books.

    driver: groups -> worker with a free place -> outcomes -> files, ledger (app/batch.py, as for the local
    runner)

At most two groups a worker are under way, so ten thousand prompts wait in the file and not in the cluster. A
worker that dies costs the group in its hand, which another makes. Which of two that was cannot be known (a
result may die on its way), so both are suspect, and a suspect is made by a worker that has nothing else: a
second death is surely its own. A group that has cost two workers is made picture by picture, and a picture
that has cost three is given up. Nothing here writes the ledger; with `shared` the workers put the pictures in
place themselves, by the same safe write.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ddgen.app.batch import Group, Interrupted, Runner
from ddgen.app.outcome import Made, Missed, Outcome
from ddgen.app.ray_worker import Recipe, Worker, unpacked
from ddgen.errors import ResourceError, UsageError

IN_HAND = 2
"""Groups under way per worker: one made, one waiting, so that no worker waits for the driver."""

MAX_DEATHS = 3
CORES = 2
LOCAL = ("", "local", "auto", "localhost", "127.0.0.1")


@dataclass(frozen=True)
class Cluster:
    """Where to run.

    address: of a running cluster, None starts one here. workers: None counts GPUs or cores.
    cores:   of a worker; None parts those of the cluster among the workers.
    """

    address: str | None = None
    workers: int | None = None
    shared: bool = False
    gpu: bool | None = None
    cores: int | None = None


@dataclass
class _Sent:
    """A group under way. deaths: of workers that had it; above 0 it is a suspect."""

    group: Group
    worker: int
    deaths: int


@dataclass
class _Crew:
    """The workers, by number; a dead one is replaced under the same number."""

    ray: Any
    recipe: Recipe
    shared: bool
    cores: int
    gpus: float
    handles: list[Any] = field(default_factory=list)

    def start(self) -> int:
        actor = self.ray.remote(num_cpus=self.cores, num_gpus=self.gpus, max_restarts=0, max_task_retries=0)(
            Worker
        )
        self.handles.append(actor.remote(self.recipe, self.cores, self.shared))
        return len(self.handles) - 1

    def replace(self, number: int) -> None:
        self.start()
        self.handles[number] = self.handles.pop()

    def stop(self) -> None:
        for handle in self.handles:
            self.ray.kill(handle)


def runner(cluster: Cluster, recipe: Recipe, stop: Callable[[], bool]) -> Runner:
    """Return the runner of a cluster; it is joined when the first group comes.

    Raises:
        UsageError: Ray is not installed, or a cluster elsewhere without a token.
    """
    check_address(cluster.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster.address in (None, "", "local"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UsageError(
            "--engine ray needs Ray", "install it: pip install 'ddgen[ray]'", id="usage.ray"
        ) from None

    def run(groups: Iterator[Group]) -> Iterator[Outcome]:
        first = next(groups, None)
        if first is not None:
            yield from _run(cluster, recipe, stop, first, groups)

    return run


def check_address(address: str | None) -> None:
    """Refuse a cluster on other machines without authentication: whoever reaches its port could run code on
    it.

    Raises:
        UsageError: no token mode.
    """
    host = (address or "").removeprefix("ray://").rpartition(":")[0] or (address or "")
    if host in LOCAL or os.environ.get("RAY_AUTH_MODE") == "token":
        return
    raise UsageError(
        f"--address {address} needs a token",
        "set RAY_AUTH_MODE=token (see docs/ray.md)",
        id="usage.ray-token",
    )


def _run(
    cluster: Cluster, recipe: Recipe, stop: Callable[[], bool], first: Group, groups: Iterator[Group]
) -> Iterator[Outcome]:
    import ray

    mine = _join(ray, cluster)
    crew = _crew(ray, cluster, recipe)
    waiting: deque[tuple[Group, int]] = deque([(first, 0)])
    sent: dict[Any, _Sent] = {}
    more = True
    try:
        _await_ready(ray, crew.handles)
        while more or waiting or sent:
            for number, handle in enumerate(crew.handles):
                while waiting or more:
                    if not _room(sent, number, waiting[0][1] if waiting else 0):
                        break
                    if not waiting:
                        group = next(groups, None)
                        if group is None:
                            more = False
                            break
                        waiting.append((group, 0))
                    group, deaths = waiting.popleft()
                    sent[handle.make.remote(group)] = _Sent(group, number, deaths)
            done, _ = ray.wait(list(sent), timeout=0.2) if sent else ([], [])
            if stop():
                raise Interrupted
            for ref in done:
                if ref in sent:
                    yield from _receive(ray, crew, ref, sent, waiting)
    finally:
        crew.stop()
        if mine:
            ray.shutdown()


def _room(sent: dict[Any, _Sent], worker: int, deaths: int) -> bool:
    """Tell whether a worker may be given a group that so many have died of: a suspect is made alone."""
    own = [item for item in sent.values() if item.worker == worker]
    if deaths or any(item.deaths for item in own):
        return not own
    return len(own) < IN_HAND


def _receive(
    ray: Any, crew: _Crew, ref: Any, sent: dict[Any, _Sent], waiting: deque[tuple[Group, int]]
) -> Iterator[Outcome]:
    """Yield the outcomes of a finished group, or send the groups of a dead worker again."""
    worker = sent[ref].worker
    try:
        packed = ray.get(ref)
    except _losses(ray):
        for other in [other for other, item in sent.items() if item.worker == worker]:
            item = sent.pop(other)
            try:
                packed = ray.get(other)  # what it had finished before it died is there
            except _losses(ray):
                yield from _lose(item.group, item.deaths + 1, waiting)
            else:
                yield from _outcomes(item.group, packed)
        _start_again(ray, crew, worker)
        return
    yield from _outcomes(sent.pop(ref).group, packed)


def _losses(ray: Any) -> tuple[type[Exception], ...]:
    """Return what Ray raises for a worker that is no more: it died, or Ray's watch over the memory ended it."""
    kinds = ray.exceptions
    return kinds.RayActorError, kinds.ObjectLostError, kinds.OutOfMemoryError


def _start_again(ray: Any, crew: _Crew, worker: int) -> None:
    """Put a new worker in a dead one's place, and wait until it is ready.

    Raises:
        DdgenError: what keeps it from starting, at the third death ResourceError.
    """
    for left in reversed(range(MAX_DEATHS)):
        crew.replace(worker)
        try:
            _await_ready(ray, [crew.handles[worker]])
        except _Died:
            if not left:
                raise
        else:
            return


class _Died(ResourceError):
    """A worker died before it had its pipeline."""


def _await_ready(ray: Any, handles: list[Any]) -> None:
    """Wait until workers have their pipelines.

    Raises:
        DdgenError: what kept one from it.
    """
    try:
        failures = ray.get([handle.ready.remote() for handle in handles])
    except _losses(ray) as error:
        mend = "see if memory is enough; use fewer --workers"
        raise _Died("a Ray worker died while it loaded the model", mend, id="resource.worker") from error
    for failure in failures:
        if failure is not None:
            raise unpacked(failure)


def _lose(group: Group, deaths: int, waiting: deque[tuple[Group, int]]) -> Iterator[Outcome]:
    """Line up a group that was lost with its worker; give up the picture that has cost MAX_DEATHS."""
    if deaths >= MAX_DEATHS:
        error = ResourceError(
            f"{deaths} workers died making it", "see if memory is enough", id="resource.worker"
        )
        yield from (Missed(task, error) for task in group)
    elif deaths == MAX_DEATHS - 1:
        waiting.extend(([task], deaths) for task in group)
    else:
        waiting.append((group, deaths))


def _outcomes(group: Group, packed: list[dict[str, Any]]) -> Iterator[Outcome]:
    """Yield what a worker sent back as outcomes of its group."""
    for record in packed:
        if "fatal" in record:
            raise unpacked(record["fatal"])
        task = group[record["place"]]
        if "error" in record:
            yield Missed(task, unpacked(record["error"]))
        else:
            yield Made(task, record["data"], record["seconds"], record["score"])


def _join(ray: Any, cluster: Cluster) -> bool:
    """Connect to the cluster, or start one on this machine; return whether it is ours to end."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if cluster.address not in (None, "", "local"):
            ray.init(address=cluster.address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except Exception as error:  # Ray raises a bare one when a node does not come up
        words = str(error).strip().partition("\n")[0][:150]
        raise ResourceError(f"no Ray cluster: {words}", "see docs/ray.md", id="resource.ray") from error
    return True


def _crew(ray: Any, cluster: Cluster, recipe: Recipe) -> _Crew:
    """Start the workers.

    Raises:
        ResourceError: more are wanted than there are cores.
    """
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if cluster.gpu in (None, True) else 0
    cores = max(1, int(there.get("CPU", 1)))
    count = (
        cluster.workers if cluster.workers is not None else gpus or max(1, cores // (cluster.cores or CORES))
    )
    each = cluster.cores or (max(1, cores // count) if not gpus else 1)
    if count * each > cores and not gpus:
        what = f"{count} workers need {count * each} cores, the cluster has {cores}"
        raise ResourceError(what, f"use --workers {max(1, cores // each)}", id="resource.cores")
    crew = _Crew(ray, recipe, cluster.shared, each, min(1.0, gpus / count) if gpus else 0)
    for _ in range(count):
        crew.start()
    return crew
