"""What `noise`, `compare`, `explain`, `plot` and `sample --filmstrip` refuse, before a model is loaded, and
with what words."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddgen.app import assemble
from ddgen.cli import program


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that announces a size and holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + head + b"\0\0\0\0IEND\xaeB`\x82"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with good and bad pictures, and a program that must not load a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded although the flags are wrong")

    monkeypatch.setattr(assemble, "assemble", never)
    ramp = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    picture = Image.fromarray(ramp)
    picture.save("good.png")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    Path("cut.png").write_bytes(buffer.getvalue()[:-40])
    Path("bomb.png").write_bytes(png_header(20000, 20000))
    Path("text.png").write_text("hello")
    picture.save("moving.webp", save_all=True, append_images=[picture.rotate(90)])
    picture.convert("CMYK").save("cmyk.jpg")
    Image.fromarray((ramp[..., 0].astype(np.uint16) * 257)).save("deep.png")
    Path("taken.png").write_bytes(b"mine")
    return tmp_path


ROWS = {
    "noise nothing.png": (4, "image 'nothing.png': no such file or directory; check the path"),
    "noise cut.png": (4, "image 'cut.png': cut short or damaged; get it from its source again"),
    "noise bomb.png": (4, "image 'bomb.png': over the 64 megapixel limit; scale it down"),
    "noise text.png": (4, "image 'text.png': not a PNG, JPEG or WebP picture; convert it to PNG"),
    "noise moving.webp": (4, "image 'moving.webp': is animated; save one of its frames as PNG"),
    "noise good.png --times 0,1000": (
        2, "--times 1000 is out of range of schedule 'scaled_linear'; use 0 to 999",
    ),
    "noise good.png --times 0,x": (2, "--times '0,x' is not a list of numbers; use some as 0,250,999"),
    "noise good.png --schedule cosin": (2, "unknown schedule 'cosin'; did you mean 'cosine'?"),
    "noise good.png --seed 1,2": (
        2, "--seed '1,2' is a list, one picture has one noise; give one, as --seed 7",
    ),
    "noise good.png --from-model stiker": (
        5, "model 'stiker' is not in the registry; did you mean 'sticker'?",
    ),
    "noise good.png -o a.bmp": (
        2, "--output 'a.bmp': unknown format '.bmp'; use a file in .png, .gif, .webp",
    ),
    "noise good.png -o taken.png": (7, "'taken.png' exists; use --force to replace it, or another --output"),
    "compare fox": (2, "nothing to compare, no setting has several values; as in:"),
    "compare fox --steps 1,2 --guidance 1,2 --eta 0,1 --seed 1,2": (
        2, "a table has at most three settings with lists, not 4 (steps, guidance, eta, seed); drop one",
    ),
    "compare fox --steps 4,10,4": (2, "--steps lists '4' twice; name it once"),
    "compare fox --seed 1-17 --steps 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16": (
        2, "17 x 16 = 272 cells are over the limit of 256; use shorter lists",
    ),
    "compare fox --steps 4,x": (2, "--steps 'x' is not a whole number; use one as 20"),
    "compare fox --sampler euler,eular": (2, "unknown sampler 'eular'; did you mean 'euler'?"),
    "compare fox --guidance 1,500": (2, "--guidance 500 is out of range; use 0 to 100"),
    "compare fox --steps 1,2 -o a.gif": (2, "--output 'a.gif': unknown format '.gif'; use a file in .png"),
    "explain fox --words hat": (2, "'hat' is not a word of the prompt; use some of: fox"),
    "explain fox hat": (2, "explain reads one prompt, not 2; quote it"),
    "explain !!!": (2, "the prompt has no words; write some, as in:"),
    "explain fox --at 99": (2, "--at 99 is out of range of a run of 25 steps; use 1 to 25"),
    "explain fox --seed 1,2": (2, "explain shows one picture; give one --seed"),
    "sample fox -n 2 --filmstrip f.png": (
        2, "--filmstrip shows one picture, not 2; give one prompt and one seed",
    ),
    "sample fox --filmstrip f.bmp": (
        2, "--filmstrip 'f.bmp': unknown format '.bmp'; use a file in .png, .gif, .webp",
    ),
    "sample fox --filmstrip taken.png": (7, "'taken.png' exists; use --force to replace it, or another"),
    "sample fox --filmstrip-steps 1,2": (
        2, "--filmstrip-steps is given without --filmstrip; add --filmstrip FILE",
    ),
    "sample fox --steps 5 --filmstrip f.png --filmstrip-steps 1,9": (
        2, "--filmstrip-steps 9 is out of range of a run of 5 steps; use 1 to 5",
    ),
    "sample fox -o f.png --filmstrip f.png": (
        2, "--filmstrip and --output name the same file; choose another",
    ),
    "plot schedule cosin": (2, "'cosin' is no schedule and no model; did you mean 'cosine'?"),
    "plot spacing karas": (2, "unknown spacing 'karas'; did you mean 'karras'?"),
    "plot spacing --steps 0": (2, "--steps 0 is out of range; use 1 to 1000"),
    "plot spacing -o a.gif": (2, "--output 'a.gif': unknown format '.gif'; use a file in .png, .svg"),
}  # fmt: skip


@pytest.mark.parametrize("line", ROWS)
def test_row(line: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.iterdir())
    code, words = ROWS[line]
    found = program.run(line.split())
    said = capfd.readouterr()
    assert "ddgen: error: " + words in said.err
    assert (found, said.out) == (code, "")
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize("name", ["cmyk.jpg", "deep.png", "good.png"])
def test_other_kinds_of_pictures_are_read(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert program.run(["noise", name, "--times", "0,999", "-o", "out.png"]) == 0
    assert capfd.readouterr().out == "out.png\n"
    with Image.open(place / "out.png") as image:
        assert np.asarray(image.convert("L")).std() > 20


def test_without_matplotlib_the_terminal_still_draws(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec

    def hidden(name: str, *rest: str) -> object:
        return None if name == "matplotlib" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    assert program.run(["plot", "spacing", "-o", "a.png"]) == 8
    assert "pip install 'ddgen[plot]'" in capfd.readouterr().err
    assert program.run(["plot", "spacing", "karras", "linspace", "--steps", "5"]) == 0
    rows = {line.split()[0]: line for line in capfd.readouterr().out.splitlines() if line.strip()}
    assert rows["karras"].count("o") == 5 and rows["linspace"].count("o") == 5
    assert program.run(["plot", "schedule", "cosine", "sticker"]) == 0
    drawn = capfd.readouterr().out
    assert "* cosine" in drawn and "o sticker" in drawn and drawn.isascii()


@pytest.mark.parametrize("what", ["schedule", "spacing"])
def test_plots_are_files(what: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    for name in ("a.svg", "b.svg", "a.png"):
        assert program.run(["plot", what, "-o", name]) == 0
    assert (place / "a.svg").read_bytes() == (place / "b.svg").read_bytes()
    assert b"<svg" in (place / "a.svg").read_bytes()
    with Image.open(place / "a.png") as image:
        assert image.width > 800
