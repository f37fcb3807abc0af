"""`ddgen sample` end to end with a pipeline that costs nothing: what is written, what is said, and where."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import Place

from ddgen.io import metadata


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_first_command_anybody_types(place: Place) -> None:
    done = place.run("sample", "a red apple")
    (name,) = place.files()
    assert done.stdout.decode() == name + "\n"
    assert name.startswith("a-red-apple-") and name.endswith(".png")
    seed = name.removeprefix("a-red-apple-").removesuffix(".png")
    assert done.stderr.decode() == f"ddgen: sticker, 1 x 128x128, ddim 25 steps, guidance 2.5, seed {seed}\n"
    assert place.run("sample", "a red apple").stdout != done.stdout, "seeds are drawn at random"


def test_equal_runs_give_equal_bytes_and_numbered_names(place: Place) -> None:
    first = place.run("sample", "a red apple", "--seed", "7")
    before = (place.path / "a-red-apple-7.png").read_bytes()
    assert place.run("sample", "a red apple", "--seed", "7").stdout == b"a-red-apple-7-2.png\n"
    assert place.run("sample", "a red apple", "--seed", "7", "-f").stdout == first.stdout
    assert (
        (place.path / "a-red-apple-7.png").read_bytes()
        == before
        == (place.path / "a-red-apple-7-2.png").read_bytes()
    )


def test_an_explicit_file_is_never_replaced_unasked(place: Place) -> None:
    (place.path / "a.png").write_bytes(b"mine")
    done = place.run("sample", "x", "-o", "a.png")
    assert (
        done.returncode == 7
        and b"'a.png' exists; use --force to replace it, or another --output" in done.stderr
    )
    assert (place.path / "a.png").read_bytes() == b"mine"
    assert place.run("sample", "x", "-o", "a.png", "--force").returncode == 0
    Image.open(place.path / "a.png").load()


def test_prompts_are_crossed_with_seeds(place: Place) -> None:
    done = place.run("sample", "a", "b", "-s", "3,10-11", "-q")
    assert done.stdout.decode().split() == [f"{p}-{s}.png" for p in "ab" for s in (3, 10, 11)]
    assert done.stderr == b""
    done = place.run("sample", "a", "b", "-s", "0", "-n", "2", "-q")
    assert done.stdout.decode().split() == [f"{p}-{s}.png" for p in "ab" for s in (0, 1)]


@pytest.mark.parametrize("size", ["1", "2", "3", "64"])
def test_batches_change_nothing(place: Place, size: str) -> None:
    place.run("sample", "x", "-s", "1-5", "--batch-size", size, "-q")
    found = {name: hashlib.sha256((place.path / name).read_bytes()).hexdigest() for name in place.files()}
    alone = Place.__new__(Place)
    alone.path, alone.home = place.path.parent / "alone", place.home
    alone.path.mkdir()
    alone.run("sample", "x", "-s", "1-5", "--batch-size", "1", "-q")
    assert found == {
        name: hashlib.sha256((alone.path / name).read_bytes()).hexdigest() for name in alone.files()
    }


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("out", ["out/a-fox-7.png", "out/a-fox-8.png"]),
        ("new/deep/", ["new/deep/a-fox-7.png", "new/deep/a-fox-8.png"]),
        ("{index:03}-{seed}.webp", ["001-7.webp", "002-8.webp"]),
        (
            "{model}/{prompt:.3}/{width}x{height}-{sampler}-{steps}",
            ["sticker/a f/128x128-ddim-25-2.png", "sticker/a f/128x128-ddim-25.png"],
        ),
        ("../out/{seed}/", ["../out/7/a fox-7.png", "../out/8/a fox-8.png"]),
    ],
)
def test_output_says_where(place: Place, output: str, names: list[str]) -> None:
    done = place.run("sample", "a fox", "-s", "7", "-n", "2", "-o", output)
    assert sorted(done.stdout.decode().splitlines()) == sorted(names), done.stderr
    for name in names:
        Image.open(place.path / name).load()


def test_prompts_make_harmless_names(place: Place) -> None:
    evil = [
        "../../etc/passwd",
        "a/b\\c",
        "-rf",
        ".hidden",
        "CON",
        "\x1b[2J\n\u202e",
        "",
        "🍎",
        "x" * 500,
        "日本" * 100,
    ]
    done = place.run("sample", "-s", "7", "-q", "-o", "{prompt}.png", "--", *evil)
    assert done.returncode == 0, done.stderr
    names = place.files()
    assert len(names) == len(evil)
    for name in names:
        assert (
            "/" not in name
            and not name.startswith(("-", "."))
            and len(name.encode()) <= 210
            and name.isprintable()
        )
    done = place.run("sample", "-s", "7", "-q", "-o", "out/", "--", *evil)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(evil)
    assert all(len(name.encode()) < 80 for name in done.stdout.decode().splitlines())


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (["--format", "jpeg"], "JPEG"),
        (["--format", "jpg"], "JPEG"),
        (["-o", "a.JPG"], "JPEG"),
        (["-o", "a.webp", "--quality", "100"], "WEBP"),
        (["-o", "a.png"], "PNG"),
    ],
)
def test_formats(place: Place, flags: list[str], kind: str) -> None:
    place.run("sample", "x", "-s", "7", *flags)
    (name,) = place.files()
    with Image.open(place.path / name) as image:
        assert image.format == kind


def test_one_picture_to_standard_output(place: Place) -> None:
    done = place.shell("echo 'a tulip' | ddgen sample - -o - > t.png")
    assert (done.returncode, done.stdout) == (0, b"")
    with Image.open(place.path / "t.png") as image:
        assert image.size == (128, 128) and '"prompt":"a tulip"' in image.info["ddgen"]


def test_a_grid_shows_every_picture(place: Place) -> None:
    done = place.run("sample", "a fox", "a penguin", "-s", "7", "-n", "3", "--grid", "-q")
    assert done.stdout.decode().splitlines()[-1] == "a-fox-7-grid.png"
    sheet = np.asarray(Image.open(place.path / "a-fox-7-grid.png").convert("RGB")).astype(int)
    for name in place.files():
        if "grid" in name:
            continue
        picture = np.asarray(Image.open(place.path / name).convert("RGB")).astype(int)
        corner = picture[:4, :4]
        found = any(
            np.array_equal(sheet[y : y + 4, x : x + 4], corner)
            for y, x in np.argwhere((sheet[:-4, :-4] == corner[0, 0]).all(-1))
        )
        assert found, name
    done = place.run("sample", "a fox", "-n", "4", "--grid", "-o", "-")
    assert done.stdout.startswith(b"\x89PNG") and done.returncode == 0


def test_enlarging(place: Place) -> None:
    place.run("sample", "x", "-s", "7", "--scale", "3", "-o", "a.png")
    with Image.open(place.path / "a.png") as image:
        assert image.size == (384, 384)
        assert "Postprocess upscale by: 3, Postprocess upscaler: Lanczos" in image.info["parameters"]


def test_json_tells_all(place: Place) -> None:
    done = place.run("sample", "é\x1b", "-s", "7", "--json", "--grid")
    picture, grid = (json.loads(line) for line in done.stdout.decode("ascii").splitlines())
    assert picture["type"] == "image" and picture["schema"] == "ddgen/1"
    assert picture["sha256"] == hashlib.sha256((place.path / picture["path"]).read_bytes()).hexdigest()
    assert (picture["prompt"], picture["seed"], picture["steps"], picture["sampler"]) == (
        "é\x1b",
        7,
        25,
        "ddim",
    )
    assert grid["type"] == "grid" and (place.path / grid["path"]).is_file()


def test_metadata_levels(place: Place) -> None:
    def texts(level: str) -> dict[str, str]:
        place.run("sample", "a secret", "-N", "bad", "-s", "7", "-f", "-o", "a.png", "--metadata", level)
        return metadata.png_texts((place.path / "a.png").read_bytes())

    full = texts("full")
    assert full["parameters"].startswith("a secret\nNegative prompt: bad\nSteps: 25, Sampler: DDIM, ")
    assert metadata.parse(full["ddgen"])["job"]["prompt"] == "a secret"
    assert "secret" not in str(texts("min")) and metadata.parse(texts("min")["ddgen"])["job"]["seed"] == 7
    assert metadata.SOURCE_TYPE in texts("min")["XML:com.adobe.xmp"]
    assert texts("none") == {}
    assert str(place.path) not in str(full) and str(place.home) not in str(full)


def test_plan_shows_what_would_be_made_and_makes_nothing(place: Place) -> None:
    (place.path / "a-fox-7.png").touch()
    done = place.run(
        "sample",
        "a fox",
        "(a:1.2) penguin",
        "-s",
        "7",
        "--plan",
        "--grid",
        "-o",
        ".",
        FAKE_LOG=str(place.home / "log"),
    )
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "a-fox-7-2.png  128x128, ddim 25 steps, guidance 2.5  seed 7  2 tokens  'a fox'"
    assert lines[1].startswith("a-1-2-penguin-7.png  ") and "  2 tokens  " in lines[1]
    assert lines[2] == "a-fox-7-grid.png  all 2 in one sheet"
    assert place.files() == ["a-fox-7.png"] and not (place.home / "log").exists()
    record = json.loads(place.run("sample", "a fox", "-s", "7", "--plan", "--json").stdout)
    assert (record["type"], record["path"], record["tokens"]) == ("job", "a-fox-7-2.png", 2)
    assert place.run("sample", "x", "--plan", "-o", "/proc/").returncode == 0, (
        "a plan does not write, not even to try"
    )


def test_what_surprises_is_said_once(place: Place) -> None:
    long = "very " * 90 + "red"
    done = place.run("sample", long, "-n", "2", "-g", "0", "--sampler", "euler", "--eta", "1")
    lines = done.stderr.decode().splitlines()
    assert lines[:3] == [
        "ddgen: warning: --guidance 0 means off, as 1 does",
        "ddgen: warning: --eta has no effect with sampler 'euler'",
        "ddgen: warning: prompt has 91 tokens, read in 2 chunks of 75",
    ]
    assert place.run("sample", long, "-q").stderr == b""
    assert (
        json.loads(place.run("sample", "x", "-g", "0", "--json").stderr.splitlines()[0])["type"] == "warning"
    )


def test_a_wildcard_that_is_taken_as_text_is_told(place: Place) -> None:
    done = place.run("sample", "a __fish__", "--expand", "--plan")
    assert b"'__fish__' is taken as text; --wildcards DIR says where its lines are" in done.stderr
    assert b"is taken" not in place.run("sample", "a __fish__", "--plan").stderr
    stream = place.run("batch", "-", "-o", "out", "--steps", "1", stdin=b"a __fish__\nb __fish__\n")
    assert stream.returncode == 0, stream.stderr
    assert stream.stderr.count(b"'__fish__' is taken as text") == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--sampler", "DPM++ 2M Karras"], "dpmpp_2m 25 steps"),
        (["--scheduler", "Karras", "--cfg", "7.5"], "guidance 7.5"),
        (["--ar", "16:9"], "176x96"),
        (["--size", "64x256"], "64x256"),
        (["--sigmas", "10,5,1"], "ddim 3 steps"),
    ],
)
def test_other_words_for_the_same(place: Place, given: list[str], told: str) -> None:
    assert told in place.run("sample", "x", "--plan", *given).stdout.decode()


def test_settings_come_from_flag_environment_config_and_model(place: Place) -> None:
    config = place.home / ".config" / "ddgen" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[sample]\nsteps = 11\nguidance = 2.5\nsampler = "heun"\nbatch-size = 2\n')

    def origins(**variables: str) -> dict[str, tuple[object, str]]:
        lines = place.run("config", "show", "--origin", "--json", **variables).stdout.splitlines()
        return {record["name"]: (record["value"], record["origin"]) for record in map(json.loads, lines)}

    found = origins(DDGEN_GUIDANCE="4", DDGEN_EMPTY="")
    assert found["steps"] == (11, "config") and found["guidance"] == (4.0, "DDGEN_GUIDANCE")
    assert found["sampler"] == ("heun", "config") and found["spacing"] == ("linspace", "model 'sticker'")
    assert (
        found["quality"] == (92, "built-in")
        and found["batch_size"] == (2, "config")
        and found["seed"] == (None, "unset")
    )
    plan = place.run("sample", "x", "--plan", "--steps", "9", DDGEN_GUIDANCE="4").stdout.decode()
    assert "heun 9 steps, guidance 4" in plan
    (place.path / "config.toml").write_text("[sample]\nsteps = 77\n")
    assert "heun 11 steps" in place.run("sample", "x", "--plan").stdout.decode(), (
        "nothing is read from the current directory"
    )
    assert place.run("config", "path").stdout.decode().strip() == str(config)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[sample]\nsteps = \n", "line 2"),
        ("[sample]\nstpes = 3\n", "line 2: unknown key 'stpes'; did you mean 'steps'?"),
        ("steps = 3\n", "line 1: unknown entry 'steps'; settings stand under [sample]"),
        ("[sample]\n\nsteps = [1]\n", "line 3: 'steps' is no plain value; write it as on the command line"),
        ("[sample]\nsteps = 'ten'\n", "config: steps 'ten' is not a whole number; use one as 20"),
    ],
)
def test_a_wrong_config_is_named_with_its_line(place: Place, text: str, line: str) -> None:
    config = place.home / ".config" / "ddgen" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(text)
    done = place.run("sample", "x", "--plan")
    assert done.returncode == 4 and line in done.stderr.decode(), done.stderr


def test_doctor_looks_without_a_word_of_error(place: Place) -> None:
    done = place.run("doctor", "--json")
    found = {
        (record["section"], record["name"]): record["value"]
        for record in map(json.loads, done.stdout.splitlines())
    }
    assert done.returncode == 0 and done.stderr == b""
    assert (
        ("versions", "torch") in found
        and ("devices", "cpu") in found
        and found["paths", "default model"].startswith("sticker, ")
    )
    assert str(place.home) not in done.stdout.decode()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ddgen sample x --sampler eul", {"euler", "euler_ancestral"}),
        ("ddgen sample x --spacing kar", {"karras"}),
        ("ddgen sample x --model stick", {"sticker"}),
        ("ddgen sam", {"sample"}),
        ("ddgen sample --guidance-r", {"--guidance-rescale"}),
    ],
)
def test_completion_offers_what_there_is(place: Place, words: str, offered: set[str]) -> None:
    done = place.run(
        _DDGEN_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
        PYTHONPATH=str(poison(place)),
    )
    assert offered <= set(done.stdout.decode().split()), done


def poison(place: Place) -> Path:
    """Return a directory whose `torch` cannot be imported."""
    folder = place.home / "poison"
    folder.mkdir(exist_ok=True)
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["sample", "--help"],
        ["--version"],
        ["sample", "x", "--plan", "--json"],
        ["batch", "prompts.txt", "--plan"],
        ["config", "show"],
        ["sample", "x", "--steps", "0"],
    ],
)
def test_torch_is_not_imported_for(place: Place, arguments: list[str]) -> None:
    (place.path / "prompts.txt").write_text("a red apple\na fox --steps 3\n")
    done = place.run(*arguments, fake=False, PYTHONPATH=str(poison(place)))
    assert b"torch was imported" not in done.stdout + done.stderr
    assert done.returncode == (2 if "0" in arguments else 0), done.stderr


def test_help_shows_every_flag_but_the_hidden_aliases(place: Place) -> None:
    page = place.run("sample", "--help").stdout.decode()
    for flag in (
        "-N, --negative, --no",
        "-n, --num",
        "-g, --guidance SCALE",
        "-0, --null",
        "--plan",
        "Examples:",
        "╭─ Sampling",
    ):
        assert flag in page, flag
    assert "--cfg" not in page and "--scheduler" not in page
    assert all(len(line) <= 100 for line in page.splitlines())
    assert (
        max(len(line) for line in place.run("sample", "--help", COLUMNS="60").stdout.decode().splitlines())
        <= 75
    )
