"""Make the pictures and transcripts of these pages anew, from the model that ships.

    python docs/make.py              all pages
    python docs/make.py index.md     some of them

Every command behind `$ ` in a ```console block is run, page by page in an empty directory, and what it says replaces what stood
below it. Every picture that a page shows as made/NAME is taken from that directory. A command that fails without telling an error of
ddgen ends the work.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
MADE = DOCS / "made"
PAGES = ("index.md", "how-it-works.md", "prompts.md", "editing.md", "models.md", "batches.md", "reproducibility.md", "troubleshooting.md")
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
PICTURE = re.compile(r"\]\(made/([\w.-]+)\)")


def run(command: str, place: Path) -> str:
    """Run one command in a shell as a reader would; return what it says on both streams."""
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    plain = {"HOME": str(place.parent), "PATH": paths, "COLUMNS": "96", "LC_ALL": "C.UTF-8", "TERM": "dumb"}
    quiet = {"DDGEN_PROGRESS": "none", "XDG_CONFIG_HOME": str(place.parent), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, env=plain | quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode and "ddgen: error:" not in done.stdout:
        raise SystemExit(f"{command}\nended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def remade(block: str, place: Path) -> str:
    """Return a block with the transcripts of its commands."""
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"$ {command}\n{run(command, place)}" for command in commands)


def make(page: Path) -> None:
    """Run a page's commands, rewrite its transcripts and take its pictures."""
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "work"
        place.mkdir()
        text = BLOCK.sub(lambda found: f"```console\n{remade(found[1], place)}```", text)
        for name in PICTURE.findall(text):
            found = next(place.rglob(name), None)
            if found is None:
                raise SystemExit(f"{page.name}: no command made {name}:\n" + "\n".join(BLOCK.findall(text)))
            shutil.copyfile(found, MADE / name)
    page.write_text(text)
    print(page.name)


if __name__ == "__main__":
    MADE.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PAGES:
        make(DOCS / name)
