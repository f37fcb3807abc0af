"""replay, verify and tokens through the installed command; the logic of verdicts without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddgen.app import replaying
from ddgen.errors import InputError
from ddgen.io import metadata
from ddgen.io.foreign import Found
from ddgen.weights import registry

DDGEN = str(Path(sys.executable).with_name("ddgen"))


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(cwd)}
    return subprocess.run(
        [DDGEN, *words], cwd=cwd, capture_output=True, text=True, timeout=240, env=environment
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one picture of four steps."""
    root = tmp_path_factory.mktemp("made")
    done = run(
        "sample", "a (red:1.2) apple", "-N", "blurry", "--steps", "4", "-s", "7", "-o", "a.png", cwd=root
    )
    assert done.returncode == 0, done.stderr
    return root


def changed(source: Path, target: Path, edit) -> None:  # type: ignore[no-untyped-def]
    """Save a picture's pixels and record again, after `edit(image, record)`."""
    with Image.open(source) as image:
        record = json.loads(image.info["ddgen"])
        image = edit(image, record) or image
        info = PngInfo()
        info.add_itxt("ddgen", json.dumps(record))
        image.save(target, pnginfo=info)


def test_replay_gives_the_same_bytes_and_takes_changes(made: Path, tmp_path: Path) -> None:
    done = run("replay", str(made / "a.png"), "-o", "b.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "b.png\n"), done.stderr
    assert (tmp_path / "b.png").read_bytes() == (made / "a.png").read_bytes()
    other = run("replay", str(made / "a.png"), "--seed", "8", "--json", "-o", "c.png", cwd=tmp_path)
    record = json.loads(other.stdout)
    assert record["seed"] == 8 and record["prompt"] == "a (red:1.2) apple"
    assert (tmp_path / "c.png").read_bytes() != (made / "a.png").read_bytes()
    again = run("replay", str(made / "a.png"), "-o", "b.png", cwd=tmp_path)
    assert again.returncode == 7 and "'b.png' exists" in again.stderr


def test_verify_tells_the_three_cases_apart(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "a.png", tmp_path / "same.png")

    def by_one(image: Image.Image, record: dict) -> None:
        value = image.getpixel((3, 3))
        image.putpixel((3, 3), tuple(v + 1 if v < 255 else v - 1 for v in value))  # type: ignore[union-attr]

    def painted(image: Image.Image, record: dict) -> None:
        image.putpixel((3, 3), (0, 0, 0))
        image.putpixel((4, 3), (255, 255, 255))

    def other_weights(image: Image.Image, record: dict) -> None:
        painted(image, record)
        record["weights"] = {"model": "ab" * 32}

    def smaller(image: Image.Image, record: dict) -> Image.Image:
        return image.resize((64, 64))

    for name, edit in (
        ("one", by_one),
        ("painted", painted),
        ("weights", other_weights),
        ("smaller", smaller),
    ):
        changed(made / "a.png", tmp_path / f"{name}.png", edit)
    names = ["same.png", "one.png", "painted.png", "weights.png", "smaller.png"]
    done = run("verify", *names, "--json", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    verdicts = {record["path"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert [verdicts[name]["verdict"] for name in names] == [
        "equal bytes",
        "equal within 1/255",
        *["different"] * 3,
    ]
    assert verdicts["one.png"]["largest"] == 1
    assert verdicts["painted.png"]["causes"] == ["the pixels were changed after the picture was made"]
    assert verdicts["weights.png"]["causes"][0].startswith("other weights: abababababab then, ")
    assert "made again it is 128x128: it was resized" in verdicts["smaller.png"]["causes"][0]
    fine = run("verify", "same.png", "one.png", cwd=tmp_path)
    assert fine.returncode == 0 and fine.stdout == "same.png: equal bytes\none.png: equal within 1/255\n"


def test_rows_of_bad_input(made: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "plain.png")
    changed(
        made / "a.png",
        tmp_path / "unknown.png",
        lambda image, record: record["job"].update(model="nobody-has-it"),
    )
    changed(
        made / "a.png", tmp_path / "seedless.png", lambda image, record: record["job"].pop("seed") and None
    )
    changed(made / "a.png", tmp_path / "min.png", lambda image, record: record["job"].pop("prompt") and None)
    changed(made / "a.png", tmp_path / "wrong.png", lambda image, record: record["job"].update(steps=0))
    rows = {
        "none.png": (4, "image 'none.png': no such file; check the path"),
        "plain.png": (4, "image 'plain.png' says nothing that ddgen can read; see 'ddgen meta json'"),
        "unknown.png": (
            5,
            "image 'unknown.png' was made with model 'nobody-has-it', unknown here; give it with --model",
        ),
        "seedless.png": (4, "image 'seedless.png': the picture does not say its seed; give one with --seed"),
        "min.png": (4, "image 'min.png': the picture does not say its prompt; give it with --prompt"),
        "wrong.png": (4, "image 'wrong.png': --steps 0 is out of range; use 1 to 1000"),
    }
    for name, (code, line) in rows.items():
        done = run("replay", name, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (code, f"ddgen: error: {line}\n")


def test_what_a_picture_says_is_data(made: Path, tmp_path: Path) -> None:
    """A record that names a file as its model opens nothing, be the file a good model."""
    path = registry.find(None).source.path
    assert path is not None and path.is_file()
    changed(
        made / "a.png", tmp_path / "evil.png", lambda image, record: record["job"].update(model=str(path))
    )
    done = run("replay", "evil.png", cwd=tmp_path)
    assert done.returncode == 5 and "unknown here; give it with --model" in done.stderr
    assert [file.name for file in tmp_path.glob("*.png")] == ["evil.png"]


def test_a_foreign_picture_is_made_here_with_a_word_about_it() -> None:
    spec = registry.find(None)
    found = Found("a1111", "a fox", "", {"seed": 5, "steps": 7, "sampler": "DPM++ 2M", "spacing": "karras"})
    job = replaying.job_of(found, spec, {})
    assert (job.prompt, job.seed, job.steps, job.sampler) == ("a fox", 5, 7, "dpmpp_2m")
    job = replaying.job_of(found, spec, {"sigmas": (5.0, 1.0, 0.0), "prompt": "a cat"})
    assert (job.prompt, job.steps, job.sigmas) == ("a cat", 2, (5.0, 1.0, 0.0))
    with pytest.raises(InputError, match="does not say its seed"):
        replaying.job_of(Found("a1111", "a fox"), spec, {})


def test_causes_are_named_in_the_order_of_their_weight() -> None:
    record = {"weights": {"model": "1" * 64}, "torch": "1.0", "dtype": "float16", "program": "ddgen 0.0.1"}
    causes = replaying.differences(record, metadata.Origin(digests={"model": "2" * 64}, torch="2.0"), "ddgen")
    assert [cause.split(":")[0] for cause in causes] == [
        "other weights",
        "other dtype",
        "other torch",
        "other program",
    ]


def test_tokens(tmp_path: Path) -> None:
    done = run("tokens", "a (red:1.3) [cup:car:0.5] AND a hat", "--steps", "10", cwd=tmp_path)
    assert done.returncode == 0 and "red(1.3)" in done.stdout and "steps 1-5 of 10" in done.stdout
    records = [
        json.loads(line) for line in run("tokens", "a cat", "--json", cwd=tmp_path).stdout.splitlines()
    ]
    assert records[0]["count"] == 2 and [token["text"].strip() for token in records[0]["chunks"][0]] == [
        "a",
        "cat",
    ]
    long = run("tokens", "word " * 80, "--strict-tokens", cwd=tmp_path)
    assert long.returncode == 2 and "2 chunks" in long.stdout and "these 5 tokens would be cut" in long.stdout
    assert long.stderr.startswith(
        "ddgen: error: prompt has 80 tokens, beyond 75 is 'word word word word word'"
    )
    assert run("tokens", "short", "--strict-tokens", cwd=tmp_path).returncode == 0
