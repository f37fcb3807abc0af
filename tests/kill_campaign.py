"""Kill a batch at random moments, again and again, and look at what is left. A program; prints one JSON
object.

    python kill_campaign.py DIRECTORY KILLS safe|naive|real [IMAGES [STEPS]]

A fork server: this process imports everything once and starts no thread; every run of the batch is a fork
that is killed by SIGKILL after a random time, until the batch is complete; then a new one begins, until there
were enough kills. `naive` replaces the safe write by Image.save to the final name: the campaign must find
torn files then, or it proves nothing. `real` samples with the model that ships, one batch for all kills.
"""

import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from batch_fakes import FakeRender, ListSource, lines, make_batch, planner
from PIL import Image

from ddgen.app.batch import Event, Group, OnStep, Render, local
from ddgen.app.ledger import Ledger, Lock, Shard
from ddgen.app.naming import Target
from ddgen.app.outcome import Outcome
from ddgen.app.tasks import Planner
from ddgen.io import files
from ddgen.io.whole import Torn, embedded_id


@dataclass(frozen=True)
class Setup:
    """What is run: so many images in groups, by what, planned how."""

    images: int
    group: int
    render: Render
    plan: Callable[[Path], Planner]
    settings: dict[str, tuple]
    marked: bool = True


def save_naively(path: Path, data: bytes, *, force: bool = False) -> Path:
    """Write as most programs do: straight to the final name."""
    with Image.open(io.BytesIO(data)) as image:
        image.save(path)
    return path


def one_run(setup: Setup, root: Path, announced: int, rendered: int) -> None:
    """Run the batch to its end; tell every announced name and rendered prompt through the descriptors."""

    def emit(event: Event) -> None:
        if event.kind == "image" and event.task is not None:
            os.write(announced, f"{event.task.path.name}\n".encode())

    def watched(group: Group, on_step: OnStep) -> Iterator[Outcome]:
        os.write(rendered, b"x" * len(group))
        return setup.render(group, on_step)

    given = lines(*(f"a red apple number {index}" for index in range(setup.images)), **setup.settings)
    lock = Lock(root, Shard())
    files.sweep(root)
    batch = make_batch(root, emit=emit, batch_size=setup.group, marked=setup.marked)
    batch.run(ListSource(setup.plan(root), given), local(lambda: watched, lambda step, steps, images: None))
    lock.release()


def torn_files(root: Path) -> list[str]:
    found = []
    for path in root.glob("*.png"):
        try:
            embedded_id(path, thorough=True)
        except Torn:
            found.append(path.name)
    return found


def unlike(one: Path, other: Path) -> int:
    """Count the pictures of a directory that the other lacks, or has with a pixel more than 1 apart."""
    count = 0
    names = {path.name for path in one.glob("*.png")} | {path.name for path in other.glob("*.png")}
    for name in names:
        if not ((one / name).exists() and (other / name).exists()):
            count += 1
        elif (one / name).read_bytes() != (other / name).read_bytes():
            with Image.open(one / name) as a, Image.open(other / name) as b:
                count += int(abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() > 1)
    return count


def fork(setup: Setup, root: Path, announced: Path, rendered: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            one_run(setup, root, os.open(announced, flags), os.open(rendered, flags))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return child


def campaign(
    setup: Setup, directory: Path, kills: int, *, one_batch: bool, seed: int = 0
) -> dict[str, float]:
    rng = random.Random(seed)
    reference = directory / "reference"
    reference.mkdir()
    begun = time.monotonic()
    os.waitpid(fork(setup, reference, directory / "a", directory / "r"), 0)
    whole_run = time.monotonic() - begun
    longest = whole_run * (1.6 / kills if one_batch else 0.4)
    if not setup.marked:
        files.publish = save_naively
    done = dict.fromkeys(
        ("kills", "batches", "torn", "lost", "redone", "left", "different", "bad_ledger", "failed"), 0
    )
    while done["kills"] < kills:
        root = directory / f"batch-{done['batches']}"
        root.mkdir()
        announced, rendered = directory / f"{root.name}.announced", directory / f"{root.name}.rendered"
        announced.touch()
        killed_here = 0
        while True:
            child = fork(setup, root, announced, rendered)
            if done["kills"] < kills:
                time.sleep(rng.uniform(0, longest))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            done["failed"] += not killed and status != 0
            done["kills"] += killed
            killed_here += killed
            torn = torn_files(root)
            done["torn"] += len(torn)
            done["lost"] += sum(not (root / name).exists() for name in announced.read_text().split())
            for name in torn:  # a naive writer's leavings would stop the next run
                (root / name).unlink()
            if not killed:
                break
        made = len(rendered.read_bytes())
        done["redone"] = max(done["redone"], made - setup.images - setup.group * killed_here)
        done["left"] += len(list(root.glob(".*.part")))
        done["different"] += unlike(root, reference) if setup.marked else 0
        done["bad_ledger"] += Ledger(root / "ledger.jsonl").bad_lines > killed_here
        done["batches"] += 1
    return {**done, "images": setup.images, "seconds": round(time.monotonic() - begun)}


def fake_setup(*, marked: bool) -> Setup:
    return Setup(60, 4, FakeRender(size=256), planner, {}, marked)


def real_setup(images: int, steps: int) -> Setup:
    """The model that ships, loaded once before any fork, on one thread."""
    import torch

    from ddgen.app.assemble import assemble
    from ddgen.app.identity import model_key, weights_digests
    from ddgen.app.produce import Saving
    from ddgen.app.render import Renderer
    from ddgen.weights import registry

    torch.set_num_threads(1)
    spec = registry.find(None)
    key = model_key(spec, weights_digests(spec))
    render = Renderer(assemble(spec, device="cpu"), Saving())
    return Setup(
        images,
        8,
        render,
        lambda root: Planner(spec, key, Target("directory", root, "", "png")),
        {"steps": (steps,), "sampler": ("euler",), "guidance": (1.0,)},
    )


if __name__ == "__main__":
    kind, numbers = sys.argv[3], [int(word) for word in sys.argv[4:]]
    chosen = real_setup(*numbers) if kind == "real" else fake_setup(marked=kind == "safe")
    print(json.dumps(campaign(chosen, Path(sys.argv[1]), int(sys.argv[2]), one_batch=kind == "real")))
