"""Kill the installed `ddgen batch` at random moments, run it again each time, and look at what is left.

    python tests/kill_command.py DIRECTORY [--pictures 1000] [--kills 100] [--naive] [--scale 1]

A program; prints one JSON object. Every run is a new process of the real command with the model that ships,
few steps, on one thread; SIGKILL comes at a random moment, by turns of its start and of the work after its
first picture, so that most of the batch is done at the last kill. Then the command runs to its end, and
everything is compared with a run that nobody disturbed. `--naive` lets it write pictures straight to their names: the same campaign must find
torn files then, or it proves nothing.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from kill_campaign import torn_files, unlike

DDGEN = str(Path(sys.executable).with_name("ddgen"))
NAIVE = Path(__file__).with_name("naive_writer")
STEPS = 2
GROUP = 4


def command(directory: Path, out: str, scale: int) -> list[str]:
    """Return the command of a batch."""
    settings = f"--steps {STEPS} --sampler euler --guidance 1 --seed 7 --batch-size {GROUP} --scale {scale}"
    told = ["--json", "--events", "-q"]
    return [DDGEN, "batch", "prompts.txt", "-o", str(directory / out), *settings.split(), *told]


def environment(*, naive: bool) -> dict[str, str]:
    """Return one thread, no settings of the user, and the naive writer if asked for."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DDGEN_")}
    return kept | {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(NAIVE)} if naive else {})


def undisturbed(whole: list[str], directory: Path) -> tuple[float, float, int]:
    """Run a batch to its end; return the seconds to its first picture and to its end, and its groups."""
    begun, first, groups = time.monotonic(), 0.0, 0
    with subprocess.Popen(
        whole, cwd=directory, env=environment(naive=False), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            kind = json.loads(line)["type"]
            first = first or (time.monotonic() - begun if kind == "image" else 0.0)
            groups += kind == "start"
    if process.returncode:
        raise SystemExit("the undisturbed run failed")
    return first, time.monotonic() - begun, groups


def said(path: Path) -> tuple[list[str], int]:
    """Return the pictures that a run announced, and the groups that it began."""
    names, groups = [], 0
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            record = json.loads(line)
            names += [record["path"]] if record["type"] == "image" else []
            groups += record["type"] == "start"
    return names, groups


def await_picture(log: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a run has announced its first picture, or has ended."""
    while process.poll() is None and not said(log)[0]:
        time.sleep(0.01)


def campaign(directory: Path, pictures: int, kills: int, *, naive: bool, scale: int) -> dict[str, object]:
    """Run it; return the counts.

    torn, lost: files found so after a kill. twice: announced again. beyond: groups begun beyond those of the
    undisturbed run and one a kill. different: pictures that the undisturbed run has otherwise, or not at all.
    """
    lines = "".join(f"a red apple number {index}\n" for index in range(pictures))
    (directory / "prompts.txt").write_text(lines)
    reference, root, log = directory / "reference", directory / "killed", directory / "said.jsonl"
    first, end, groups = undisturbed(command(directory, reference.name, scale), directory)
    share = min(2 / kills, 0.3) * (end - first)  # seconds of work, at most, between two kills
    moments = random.Random(0)
    counts = dict.fromkeys(("kills", "torn", "lost", "twice"), 0)
    told: set[str] = set()
    begun, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command(directory, root.name, scale),
                cwd=directory,
                env=environment(naive=naive),
                stdout=out,
                stderr=subprocess.DEVNULL,
            )
            if counts["kills"] < kills:
                if counts["kills"] % 2:
                    time.sleep(moments.uniform(0, first))
                else:
                    await_picture(log, process)
                    time.sleep(moments.uniform(0, share))
                os.kill(process.pid, signal.SIGKILL)
            code = process.wait()
        counts["kills"] += code == -signal.SIGKILL
        names, groups_here = said(log)
        begun += groups_here
        counts["twice"] += sum(name in told for name in names)
        told.update(names)
        counts["lost"] += sum(not Path(name).exists() for name in told)
        torn = torn_files(root)
        counts["torn"] += len(torn)
        for name in torn:  # a naive writer's leavings would stop the next run
            (root / name).unlink()
            told.discard(str(root / name))
    return {
        **counts,
        "exit": code,
        "pictures": len(list(root.glob("*.png"))),
        "beyond": max(0, begun - groups - counts["kills"]),
        "different": unlike(root, reference),
        "left": len(list(root.glob(".*.part"))),
        "seconds to the first, to the end": [round(first, 1), round(end, 1)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--scale", type=int, default=1)
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    found = campaign(
        given.directory.resolve(), given.pictures, given.kills, naive=given.naive, scale=given.scale
    )
    print(json.dumps(found))
