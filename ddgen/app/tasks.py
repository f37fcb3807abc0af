"""From lines of a prompt file to tasks: expansion, style, sweep, seed, id and file name. Torch-free.

    line -> {a|b} expanded -> style around it -> product of all swept settings -> Job -> Task(job, id, path)

What a line says goes before what the command line says. A line's pictures share their seeds over a sweep, so
that they can be compared. Memory grows by a few dozen bytes a task: what is remembered is which prompts and
which ids have been.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ddgen.app import named, naming, plan
from ddgen.app.identity import derived_seed, job_id
from ddgen.app.ledger import Shard
from ddgen.app.named import Inputs, Networks
from ddgen.app.styles import Style, apply_style
from ddgen.errors import DdgenError, InputError, UsageError
from ddgen.io.lines import PromptLine
from ddgen.io.settings import KEYS, Settings, Value
from ddgen.request import Job, Request
from ddgen.weights.spec import Spec

MAX_TASKS_PER_LINE = 100_000
_RIVALS = {
    "size": ("width", "height"),
    "width": ("size",),
    "height": ("size",),
    "sigmas": ("steps", "spacing"),
    "steps": ("sigmas",),
    "spacing": ("sigmas",),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the picture of a job id lies, or would."""

    id: str
    path: Path


@dataclass(frozen=True)
class Contest:
    """Pictures of which only the best are kept: how many, and where each would lie."""

    keep: int
    places: tuple[Place, ...]

    @property
    def key(self) -> str:
        """Return what tells it from the others of a run."""
        return self.places[0].id


@dataclass(frozen=True, slots=True)
class Task:
    """One picture to make: its job, the job's id, its path, the line it came from, the pictures it reads, the
    contest that it is in."""

    job: Job
    id: str
    path: Path
    source: str = ""
    line: int = 0
    inputs: Inputs | None = None
    contest: Contest | None = None


@dataclass
class Planner:
    """Turns lines into tasks; the same lines give the same tasks.

    model:    identity.model_key of the spec.
    base:     settings of the command line.
    run_seed: what seeds are derived from where none is said.
    expand:   a template -> its prompts.
    folder:   a line's source, as messages call it -> where its paths start.
    networks: what reads the controls and image prompts that lines name.
    """

    spec: Spec
    model: str
    target: naming.Target
    base: Settings = field(default_factory=dict)
    run_seed: int = 0
    expand: Callable[[str], Iterable[str]] = lambda text: (text,)
    styles: Mapping[str, Style] = field(default_factory=dict)
    shard: Shard = field(default_factory=Shard)
    folder: Callable[[str], Path] = lambda source: Path()
    networks: Networks = Networks()
    duplicates: int = 0
    _count: int = 0
    _repeats: dict[int, int] = field(default_factory=dict)
    _ids: set[bytes] = field(default_factory=set)
    _names: set[int] = field(default_factory=set)
    _resolved: tuple[dict[str, Any], dict[str, Any]] | None = None

    def check_base(self) -> None:
        """Find what is wrong with the command line's settings, before any line is blamed for it.

        Raises:
            UsageError: a setting that is unknown, out of range or against another.
        """
        for settings in _product(self.base):
            prompt, settings = self._styled("a prompt", settings)
            keep = settings.pop("best", 1)
            plan.check_keep(keep, max(1, keep))
            plan.check_alpha([next(plan.plan(self._request(prompt, settings, 0), self.spec))], self.target.format)

    def tasks(self, line: PromptLine) -> Iterator[Task]:
        """Yield the line's tasks that belong to this shard and are not the same job as one before.

        Raises:
            InputError: naming the line and what is wrong with it.
        """
        try:
            yield from self._tasks(line)
        except DdgenError as error:
            if isinstance(error, InputError | UsageError):
                error = InputError(
                    f"{line.source} line {line.number}: {error.message}", error.hint, id="prompts.line"
                )
            raise error from None

    def _tasks(self, line: PromptLine) -> Iterator[Task]:
        settings = _merged(self.base, line.settings)
        literal = settings.pop("expand", (True,))[-1] is False
        settings.pop("note", None)
        made = 0
        for prompt in (line.prompt,) if literal else self.expand(line.prompt):
            repeat = self._repeat(prompt)
            for combination in _product(settings):
                styled, combination = self._styled(prompt, combination)
                read, combination = named.take(combination, self.folder(line.source), self.networks)
                keep = combination.pop("best", None)
                seed = derived_seed(self.run_seed, prompt, repeat)
                found = self._jobs(styled, combination, seed, read)
                if keep is not None:
                    contenders = self._contest(list(found), line, read, keep)
                    made += len(contenders)
                    yield from contenders
                    continue
                for job in found:
                    made += 1
                    if made > MAX_TASKS_PER_LINE:
                        raise InputError(f"makes more than {MAX_TASKS_PER_LINE} pictures", "split the line")
                    task = self._task(job, line, read)
                    if task is not None:
                        yield task

    def _jobs(self, prompt: str, settings: dict[str, Any], seed: int, read: Inputs | None) -> Iterator[Job]:
        """Return the jobs of one prompt under one value of each setting."""
        request = self._request(prompt, settings, seed)
        if read is not None:
            from ddgen.app import inputs  # numpy, that a batch without pictures need not wait for

            return inputs.jobs(read, request, self.spec)
        shared = {name: value for name, value in settings.items() if name not in ("seed", "num")}
        if self._resolved is None or self._resolved[0] != shared:  # most lines are as the one before
            self._resolved = shared, plan.resolve(request, self.spec)
        return plan.plan(request, self.spec, self._resolved[1])

    def _contest(self, jobs: list[Job], line: PromptLine, read: Inputs | None, keep: int) -> list[Task]:
        """Return the tasks of one contest; all belong to one shard.

        Raises:
            UsageError: more to be kept than are made.
        """
        plan.check_keep(keep, len(jobs))
        mine = self.shard.holds(self._count)
        tasks = [task for job in jobs if (task := self._task(job, line, read, mine)) is not None]
        contest = Contest(keep, tuple(Place(task.id, task.path) for task in tasks))
        return [replace(task, contest=contest) for task in tasks]

    def _repeat(self, prompt: str) -> int:
        key = hash(prompt)
        count = self._repeats.get(key, 0)
        self._repeats[key] = count + 1
        return count

    def _styled(self, prompt: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        name = settings.pop("style", None)
        return (prompt, settings) if name is None else apply_style(name, self.styles, prompt, settings)

    def _request(self, prompt: str, settings: dict[str, Any], seed: int) -> Request:
        values = dict(settings)
        if "size" in values:
            width, _, height = values.pop("size").partition("x")
            values |= {"width": int(width), "height": int(height)}
        if values.get("seed", -1) == -1:
            values["seed"] = seed
        return Request(prompts=(prompt,), **values)

    def _task(
        self, job: Job, line: PromptLine, read: Inputs | None, mine: bool | None = None
    ) -> Task | None:
        """Return a job's task, None where it was before or is another shard's; mine: which shard's it is, said."""
        self._count += 1
        id = job_id(job, self.model)
        plan.check_alpha([job], self.target.format)
        key = bytes.fromhex(id)
        if key in self._ids:
            self.duplicates += 1
            return None
        self._ids.add(key)
        if not (self.shard.holds(self._count - 1) if mine is None else mine):
            return None
        path = self.target.root / self._name(job, id)
        return Task(job, id, path, line.source, line.number, read)

    def _name(self, job: Job, id: str) -> str:
        if self.target.kind != "template":
            return f"{naming.slug(job.prompt)}-{job.seed}-{id[:12]}{naming.SUFFIXES[self.target.format]}"
        name = naming.fill(self.target.name, job, self._count)
        key = hash(name)
        if key in self._names:
            raise InputError(
                f"a second picture would be called '{name}'",
                "add {hash} to the template of --output",
                id="input.names",
            )
        self._names.add(key)
        return name


def replayable(task: Task, note: str) -> dict[str, object]:
    """Return a task as a line of a prompt file that makes the same job again."""
    job = task.job
    record: dict[str, object] = {
        "prompt": job.prompt,
        "seed": job.seed,
        "width": job.width,
        "height": job.height,
    }
    record["guidance"] = job.guidance
    if job.negative:
        record["negative"] = job.negative
    if job.sigmas is not None:
        record["sigmas"] = list(job.sigmas)
    else:
        record |= {"steps": job.steps, "spacing": job.spacing}
    record["sampler"] = job.sampler
    if job.guidance_rescale:
        record["guidance_rescale"] = job.guidance_rescale
    if job.guidance_interval is not None:
        record["guidance_interval"] = list(job.guidance_interval)
    if job.eta is not None:
        record["eta"] = job.eta
    if job.scale != 1:
        record["scale"] = job.scale
    for later in fields(Job):
        if later.name in KEYS and later.default is not MISSING and getattr(job, later.name) != later.default:
            record[later.name] = getattr(job, later.name)
    if task.inputs is not None:
        record |= named.settings_of(task.inputs)
        if "mask" in record:  # its size is that of the picture
            record = {name: value for name, value in record.items() if name not in ("width", "height")}
    return {**record, "expand": False, "note": note}


def _merged(base: Settings, own: Settings) -> dict[str, tuple[Value, ...]]:
    """Lay a line's settings over the command line's; what contradicts the line's goes."""
    merged = dict(base)
    for name in own:
        for rival in _RIVALS.get(name, ()):
            merged.pop(rival, None)
    return merged | dict(own)


def _product(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield every combination of the values; several seeds stay together where --num is not said."""
    if "seed" in settings and len(settings["seed"]) > 1 and settings.get("num", (1,)) == (1,):
        settings = {**settings, "seed": (settings["seed"],)}  # type: ignore[dict-item]
    for values in itertools.product(*settings.values()):
        yield dict(zip(settings, values, strict=True))
