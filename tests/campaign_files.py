"""Kill a writer at random moments and look at what it left.

    python campaign_files.py publish|naive KILLS DIRECTORY

The parent forks a child that writes files of known content as fast as it can, tells each name through a pipe
once it is safe, and is killed with SIGKILL. Printed as JSON: files that are torn, names told whose file is
not whole, temps left before and after a sweep.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from ddgen.io import files

SIZE = 400_000  # bytes


def content(name: str) -> bytes:
    """Return a file's content: random bytes and their digest."""
    body = random.Random(name).randbytes(SIZE)
    return body + hashlib.sha256(body).digest()


def is_whole(path: Path) -> bool:
    """Tell whether a file holds all of what was to be written."""
    data = path.read_bytes()
    return len(data) == SIZE + 32 and hashlib.sha256(data[:-32]).digest() == data[-32:]


def naive(path: Path, data: bytes) -> None:
    """Write as programs do that do not think of it."""
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(data), 16_384):  # an encoder writes in pieces
            file.write(data[start : start + 16_384])


def main(writer: str, kills: int, directory: Path) -> dict[str, int]:
    """Run the campaign and return its counts."""
    write = {"publish": lambda path, data: files.publish(path, data), "naive": naive}[writer]
    data = {f"{number}": content(f"{number}") for number in range(4)}
    moments = random.Random(7)
    told: set[str] = set()
    for trial in range(kills):
        reader, teller = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            for number in range(10**6):
                name = f"{trial}-{number}"
                write(directory / name, data[str(number % 4)])
                os.write(teller, f"{name}\n".encode())
        os.close(teller)
        time.sleep(moments.uniform(0.002, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(reader, "rb") as pipe:
            told |= set(pipe.read().decode().split())
    temps = [path for path in directory.iterdir() if path.name.endswith(".part")]
    finals = [path for path in directory.iterdir() if not path.name.endswith(".part")]
    torn = [path for path in finals if not is_whole(path)]
    lost = [name for name in told if not (directory / name).exists() or not is_whole(directory / name)]
    files.sweep(directory)
    left = [path for path in directory.iterdir() if path.name.endswith(".part")]
    return {
        "files": len(finals),
        "torn": len(torn),
        "lost": len(lost),
        "temps": len(temps),
        "left": len(left),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
