"""Kill a batch at random moments, again and again, and look at what is left. Run as a program; prints one
JSON object.

    python kill_campaign.py DIRECTORY KILLS safe|naive

A fork server: this process imports everything once and starts no thread; every run of the batch is a fork
that is killed by SIGKILL after a random time, until the batch is complete; then a new one begins. `naive`
replaces the safe write by Image.save to the final name: the campaign must find torn files then, or it proves
nothing.
"""

import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from batch_fakes import FakeRender, ListSource, lines, make_batch, pictures, planner, runner
from PIL import Image

from ddgen.app.batch import Event
from ddgen.app.ledger import Ledger, Lock, Shard
from ddgen.io import files
from ddgen.io.whole import Torn, embedded_id

IMAGES, GROUP, SIZE = 60, 4, 256


def save_naively(path: Path, data: bytes, *, force: bool = False) -> Path:
    """Write as most programs do: straight to the final name."""
    with Image.open(io.BytesIO(data)) as image:
        image.save(path, pnginfo=None)
    return path


def one_run(root: Path, announced: int, rendered: int) -> None:
    """Run the batch to its end; tell every announced name and rendered prompt through the descriptors."""

    def emit(event: Event) -> None:
        if event.kind == "image" and event.task is not None:
            os.write(announced, f"{event.task.path.name}\n".encode())

    class Watched(FakeRender):
        def __call__(self, group, on_step):  # type: ignore[no-untyped-def]
            os.write(rendered, b"x" * len(group))
            return super().__call__(group, on_step)

    given = lines(*(f"prompt {index}" for index in range(IMAGES)))
    lock = Lock(root, Shard())
    files.sweep(root)
    batch = make_batch(root, emit=emit, batch_size=GROUP, marked=files.publish is not save_naively)
    batch.run(ListSource(planner(root), given), runner(Watched(size=SIZE)))
    lock.release()


def torn_files(root: Path) -> list[str]:
    found = []
    for path in root.glob("*.png"):
        try:
            embedded_id(path, thorough=True)
        except Torn:
            found.append(path.name)
    return found


def campaign(directory: Path, kills: int, naive: bool, seed: int = 0) -> dict[str, int]:
    rng = random.Random(seed)
    reference = directory / "reference"
    reference.mkdir()
    null = os.open(os.devnull, os.O_WRONLY)
    begun = time.monotonic()
    one_run(reference, null, null)
    whole_run = time.monotonic() - begun
    wanted = pictures(reference)
    if naive:
        files.publish = save_naively
    done = {
        "kills": 0,
        "batches": 0,
        "torn": 0,
        "lost": 0,
        "redone": 0,
        "left": 0,
        "different": 0,
        "bad_ledger": 0,
    }
    while done["kills"] < kills:
        root = directory / f"batch-{done['batches']}"
        root.mkdir()
        announced, rendered = (
            directory / f"announced-{done['batches']}",
            directory / f"rendered-{done['batches']}",
        )
        killed_here = 0
        while True:
            names = os.open(announced, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            count = os.open(rendered, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            child = os.fork()
            if child == 0:
                try:
                    one_run(root, names, count)
                finally:
                    os._exit(0)
            os.close(names)
            os.close(count)
            if done["kills"] < kills:
                time.sleep(rng.uniform(0, whole_run * 0.4))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            done["kills"] += killed
            killed_here += killed
            torn = torn_files(root)
            done["torn"] += len(torn)
            told = announced.read_text().split()
            done["lost"] += sum(1 for name in told if not (root / name).exists())
            for name in torn:  # a naive writer's leavings would stop the next run
                (root / name).unlink()
            if not killed:
                break
        made = len(rendered.read_bytes())
        done["redone"] = max(done["redone"], made - IMAGES - GROUP * killed_here)
        done["left"] += len(list(root.glob(".*.part")))
        done["different"] += naive is False and pictures(root) != wanted
        done["bad_ledger"] += Ledger(root / "ledger.jsonl").bad_lines > killed_here
        done["batches"] += 1
    return done


if __name__ == "__main__":
    print(json.dumps(campaign(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "naive")))
