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

from ddgen.app import remade, replaying
from ddgen.errors import InputError, ModelError
from ddgen.io import metadata
from ddgen.io.foreign import Found
from ddgen.weights import registry, shelves
from ddgen.weights.digest import digest

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


def test_a_replay_is_planned_without_being_made(made: Path, tmp_path: Path) -> None:
    done = run("replay", str(made / "a.png"), "--steps", "5", "-o", "b.png", "--plan", cwd=tmp_path)
    assert done.returncode == 0 and list(tmp_path.glob("*.png")) == [], done.stderr
    assert done.stdout.startswith("b.png  128x128") and "5 steps" in done.stdout and "seed 7" in done.stdout
    done = run("replay", str(made / "a.png"), "--plan", "--json", cwd=tmp_path)
    record = json.loads(done.stdout)
    assert (record["type"], record["steps"], record["prompt"]) == ("job", 4, "a (red:1.2) apple")
    (tmp_path / "b.png").write_bytes(b"")
    taken = run("replay", str(made / "a.png"), "-o", "b.png", "--plan", cwd=tmp_path)
    assert taken.returncode == 7 and "'b.png' exists" in taken.stderr


def test_what_a_run_changed_about_its_model_is_said_and_done_again(made: Path, tmp_path: Path) -> None:
    plain = ("sample", "a (red:1.2) apple", "-N", "blurry", "--steps", "4", "-s", "7")
    done = run(*plain, "--clip-skip", "2", "-o", "skip.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "skip.png").read_bytes() != (made / "a.png").read_bytes()
    told = run("meta", "json", "skip.png", cwd=tmp_path)
    assert "Clip skip: 2, " in json.loads(told.stdout)["texts"]["parameters"]
    assert run("verify", "skip.png", cwd=tmp_path).stdout == "skip.png: equal bytes\n"
    back = run("replay", "skip.png", "--clip-skip", "1", "-o", "back.png", cwd=tmp_path)
    assert back.returncode == 0, back.stderr
    with Image.open(tmp_path / "back.png") as one, Image.open(made / "a.png") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))


SHA = "ab" * 32


def test_files_of_a_picture_are_found_by_name_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ink = tmp_path / "loras" / "ink.safetensors"
    ink.parent.mkdir()
    ink.write_bytes(b"ink")
    monkeypatch.setattr(shelves, "directories", lambda key: (ink.parent,))
    sha256 = digest(ink)

    def found(**weights: str) -> Found:
        return Found("ddgen", "x", record={"weights": {"model": SHA, **weights}, "job": {"prompt": "x"}})

    sticker = registry.find("sticker")
    (lora,) = remade.spec_of(found(**{"lora:ink.safetensors x 0.8": sha256}), sticker, {}).additions
    assert (lora.kind, lora.path, lora.weight) == ("lora", ink, 0.8)
    with pytest.raises(ModelError, match=r"another lora 'ink.safetensors' than '.*'; give it with --lora ink"):
        remade.spec_of(found(**{"lora:ink.safetensors x 0.8": SHA}), sticker, {})
    with pytest.raises(ModelError, match=r"made with lora 'x y.pt'; give it with --lora x y.pt:-1$"):
        remade.spec_of(found(**{"lora:x y.pt x -1": SHA}), sticker, {})
    with pytest.raises(ModelError, match=r"made with embedding 'cat.pt'; give it with --embedding cat.pt$"):
        remade.spec_of(found(**{"embedding:cat.pt": SHA}), sticker, {})
    with pytest.raises(ModelError, match=r"a refiner; give it with --refiner NAME --refiner-start 0.7$"):
        remade.spec_of(found(**{"refiner from 0.7: model": SHA}), sticker, {})
    given = remade.spec_of(found(**{"lora:gone.pt x 1": SHA}), sticker, {"loras": [f"{ink}:2"]})
    assert [(item.path, item.weight) for item in given.additions] == [(ink, 2.0)]
    assert remade.spec_of(found(), sticker, {}) is sticker


def test_rules_of_a_picture() -> None:
    def said(changes: object) -> dict[str, object]:
        return remade.rules_said(Found("ddgen", record={"changes": changes, "job": {}}))

    assert said({"clip_skip": 2, "prediction": "v", "ema": True}) == {"clip_skip": 2, "prediction": "v", "ema": True}
    for wrong in (None, [], {"clip_skip": -1}, {"clip_skip": [2]}, {"prediction": "w"}, {"ema": "yes"}):
        assert said(wrong) == {}
    assert remade.rules_said(Found("a1111", rest={"Clip skip": "2"})) == {"clip_skip": 2}
    assert remade.rules_said(Found("a1111", rest={"Clip skip": "1"})) == {}


@pytest.mark.parametrize(
    ("tool", "rest", "rng"),
    [
        ("ddgen", {}, "ddgen"),
        ("a1111", {}, "a1111"),
        ("a1111", {"RNG": "NV"}, "a1111"),
        ("a1111", {"RNG": "CPU"}, "diffusers"),
        ("a1111", {"RNG": "CPU", "Version": "ddgen 0.1.0"}, "ddgen"),
        ("comfyui", {}, "comfy"),
        ("invokeai", {}, "diffusers"),
    ],
)
def test_other_tools_pictures_are_made_from_their_noise(tool: str, rest: dict[str, str], rng: str) -> None:
    found = Found(tool, "x", settings={"seed": 1}, rest=rest)
    spec = registry.find("sticker")
    assert replaying.job_of(found, spec, {}).rng == rng
    assert replaying.job_of(found, spec, {"rng": "ddgen"}).rng == "ddgen"


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
