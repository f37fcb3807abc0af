"""The sticker data set: what a package becomes, without a network and without a renderer."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ddgen.app import stickers
from ddgen.app.concepts import (
    BACKGROUNDS,
    COLOURS,
    KEY,
    STYLES,
    Concept,
    captions,
    concepts,
    held_out,
    plural,
    with_article,
)
from ddgen.app.dataset import read_folder
from ddgen.app.scenes import CELL, NUMBERS, Scene, scenes
from ddgen.errors import InputError, NetworkError, UsageError

LISTED = [Concept("fox", ("fox",)), Concept("star", ("star", "yellow star"), recolour=True)]


def tarball(directory, package, version="1.2.3", icons=None):
    files = {
        "package": {"name": package, "version": version},
        "info": {"author": {"name": "Somebody"}, "license": {"spdx": "MIT"}},
        "icons": {
            "width": 32,
            "height": 32,
            "icons": icons
            if icons is not None
            else {"fox": {"body": "<orange/>"}, "gold": {"body": "<yellow/>", "width": 64}},
            "aliases": {"star": {"parent": "gold"}, "turned": {"parent": "fox", "rotate": 1}},
        },
    }
    path = directory / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}.json")
            raw = json.dumps(data).encode()
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def draw(svg, side):
    """A disc in the colour that the body names, on nothing."""
    y, x = np.mgrid[:side, :side] - side / 2
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[x**2 + y**2 < (side / 3) ** 2] = (255, 128, 0, 255) if "<orange/>" in svg else (240, 200, 20, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def packages(tmp_path):
    directory = tmp_path / "npm"
    directory.mkdir()
    for package in STYLES.values():
        tarball(directory, package)
    return directory


def test_every_picture_has_its_line_licence_and_digest(packages, tmp_path):
    out = tmp_path / "out"
    built = list(stickers.build(out, packages, listed=LISTED, render=draw))
    drawn = [len(stickers.compositions(concept)) for concept in LISTED]
    assert len(built) == built[0].total == 3 * sum(drawn)
    assert max(drawn) > 1 + len(COLOURS), "recoloured, and on backgrounds"
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [item.file for item in built]
    for row in rows:
        assert hashlib.sha256((out / row["file_name"]).read_bytes()).hexdigest() == row["sha256"]
        assert (row["licence"], row["version"]) == ("MIT", "1.2.3") and row["source"] == STYLES[row["style"]]
        assert row["text"] in row["captions"]
    assert {source["package"] for source in json.loads((out / "sources.json").read_text())} == set(
        STYLES.values()
    )
    assert len(list(read_folder(out))) == len(rows)
    again = tmp_path / "again"
    list(stickers.build(again, packages, listed=LISTED, render=draw))
    assert (again / "metadata.jsonl").read_bytes() == (out / "metadata.jsonl").read_bytes()


def test_held_out_compositions_are_never_drawn_and_the_key_always(packages, tmp_path):
    list(stickers.build(tmp_path, packages, listed=LISTED, render=draw))
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        assert not ("colour" in row and held_out(row["icon"], row["colour"], "thing"))
        assert not ("background" in row and held_out(row["icon"], row["background"], "background"))
    for concept in LISTED:
        assert any(row["icon"] == concept.icon and row.get("background") == KEY for row in rows)
    every = [held_out(concept.icon, colour, "background") for concept in concepts() for colour in BACKGROUNDS]
    assert 0.1 < sum(every) / len(every) < 0.3
    ground = next(row for row in rows if row.get("background") == KEY)
    assert Image.open(tmp_path / ground["file_name"]).getpixel((0, 0)) == BACKGROUNDS[KEY]
    assert all(f"on a {KEY} background" in text or f"{KEY} background" in text for text in ground["captions"])


def test_scenes_are_drawn_told_and_held_out_in_every_order(packages, tmp_path):
    listed = [Concept("fox", ("fox",), scenes=True), Concept("star", ("yellow star", "star"), scenes=True)]
    every = list(scenes(listed))
    assert [scene.name for scene in every[3:7]] == ["two-star", "three-star", "four-star", "fox-left-of-star"]
    pairs = [scene for scene in every if scene.relation]
    assert len({scene.held_out for scene in pairs}) == 1, "a pair is held out in both orders and places, or in none"
    list(stickers.build(tmp_path / "out", packages, listed=listed, render=draw))
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    found = {row["file_name"]: row for row in rows if "things" in row}
    assert {name.split("/")[1] for name in found} == {f"{scene.name}.png" for scene in every if not scene.held_out}
    for kind, share in (("pair", 1.0), ("count", 1 / 3)):
        weights = [row["weight"] for row in found.values() if (len(set(row["things"])) == 1) == (kind == "count")]
        if weights:
            assert sum(weights) == pytest.approx(share * 3 * len(listed), rel=1e-4)
    row = found["noto/three-star.png"]
    assert row["things"] == ["star"] * 3 and row["captions"]["three stars"] == 3.0


def test_a_scene_has_its_things_in_their_places():
    fox, star = Concept("fox", ("fox",), scenes=True), Concept("star", ("star",), scenes=True)
    cuts = {"fox": np.full((CELL, CELL, 4), (200, 0, 0, 255), np.uint8), "star": np.full((CELL, CELL, 4), (0, 0, 200, 255), np.uint8)}
    beside = Scene((fox, star), "left of").drawn(cuts, 128)
    assert beside[64, 32, 0] == 200 and beside[64, 96, 2] == 200 and not beside[64, 64, 3] and not beside[10, 32, 3]
    above = Scene((fox, star), "above").drawn(cuts, 128)
    assert above[32, 64, 0] == 200 and above[96, 64, 2] == 200
    told = Scene((fox, star), "left of").captions("flat")
    assert told["a fox left of a star"] > told["a star right of a fox"] > 0 and "a fox and a star, flat style" in told
    for count in NUMBERS:
        made = Scene((fox,), count=count).drawn(cuts, 128)
        assert made[..., 3].astype(bool).sum() == count * CELL**2
    assert [plural(name) for name in ("fox", "butterfly", "house", "monkey")] == ["foxes", "butterflies", "houses", "monkeys"]


def test_the_list_holds_out_a_fifth_of_the_scenes():
    every = list(scenes(list(concepts())))
    assert 0.1 < sum(scene.held_out for scene in every) / len(every) < 0.3


def test_an_interrupted_build_has_no_manifest(packages, tmp_path):
    list(stickers.build(tmp_path / "out", packages, listed=LISTED[:1], render=draw))  # an earlier one, of another list
    assert (tmp_path / "out" / "metadata.jsonl").exists()
    for built in stickers.build(tmp_path / "out", packages, listed=LISTED, render=draw):
        assert built.file
        break
    assert not (tmp_path / "out" / "metadata.jsonl").exists()


def test_recoloured_pictures_have_the_colour_and_keep_the_ground(packages):
    raw = np.asarray(Image.open(io.BytesIO(draw("<yellow/>", 64))))
    hue = stickers.dominant_hue(raw)
    assert 40 <= hue <= 60
    for colour, (wanted, _, _) in COLOURS.items():
        made = stickers.recolour(raw, colour, hue)
        assert np.array_equal(made[..., 3], raw[..., 3])
        found = Image.fromarray(made[32:33, 32:33, :3]).convert("HSV").getpixel((0, 0))[0] / 256 * 360
        assert abs((found - wanted + 180) % 360 - 180) < 12
        assert (stickers.laid_on(made)[0, 0] == 255).all()


def test_a_dark_thing_takes_the_colour_in_its_dark_parts_and_keeps_the_rest():
    raw = np.zeros((40, 40, 4), np.uint8)
    raw[4:36, 4:36] = (45, 47, 52, 255)  # a dark body
    raw[12:28, 12:28] = (250, 250, 250, 255)  # with a white belly
    raw[30:34, 12:28] = (250, 160, 20, 255)  # and orange feet
    assert stickers.body_hue(raw) is None
    for colour, (wanted, _, _) in COLOURS.items():
        made = stickers.recolour(raw, colour, None)
        hue, saturation, value = Image.fromarray(made[6:7, 6:7, :3]).convert("HSV").getpixel((0, 0))
        assert abs((hue / 256 * 360 - wanted + 180) % 360 - 180) < 12 and saturation > 100 and value > 140
        assert np.array_equal(made[12:28, 12:28], raw[12:28, 12:28])
        assert np.array_equal(made[30:34, 12:28], raw[30:34, 12:28])
    raw[4:26, 4:36, :3] = (250, 160, 20)
    assert abs(stickers.body_hue(raw) - 36) < 12


def test_svg_takes_size_from_the_icon_and_follows_aliases(packages):
    icons = stickers.read_package(stickers.find_tarball(packages, STYLES["noto"]))
    assert 'viewBox="0 0 32 32" width="128"' in icons.svg("fox", 128)
    assert 'viewBox="0 0 64 32"' in icons.svg("star", 128) and "<yellow/>" in icons.svg("star", 128)
    for missing in ("nothing", "turned"):
        with pytest.raises(InputError, match="has no icon"):
            icons.svg(missing, 128)


def test_a_missing_or_doubled_package_is_named(packages, tmp_path):
    with pytest.raises(InputError, match="0 tarballs of '@iconify-json/none'.*npm pack"):
        stickers.find_tarball(packages, "@iconify-json/none")
    tarball(packages, STYLES["noto"], version="1.2.4")
    with pytest.raises(InputError, match="2 tarballs"):
        stickers.find_tarball(packages, STYLES["noto"])
    broken = tmp_path / "broken.tgz"
    broken.write_bytes(b"no archive")
    with pytest.raises(InputError, match="not an icon package"):
        stickers.read_package(broken)


def test_similar_package_names_are_told_apart(tmp_path):
    """fluent-emoji and fluent-emoji-flat begin alike."""
    tarball(tmp_path, "@iconify-json/fluent-emoji-flat")
    with pytest.raises(InputError, match="0 tarballs"):
        stickers.find_tarball(tmp_path, "@iconify-json/fluent-emoji")


def test_npm_is_asked_and_its_failure_told(tmp_path, monkeypatch):
    fake = tmp_path / "npm"
    fake.write_text('#!/bin/sh\necho "npm error 404 not found" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(NetworkError, match="npm error 404"):
        stickers.fetch(["@x/y"], tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="npm is not installed"):
        stickers.fetch(["@x/y"], tmp_path)


def test_captions_say_name_style_and_article():
    found = captions(("red apple", "grapes!"), "noto")
    assert {
        "a red apple",
        "red apple",
        "noto grapes",
        "grapes",
        "a sticker of grapes",
        "a red apple in noto style",
    } <= found.keys()
    assert not any("!" in text for text in found)
    assert found["grapes"] == 4.5  # "{phrase}" and "{name}" are one text here
    assert [with_article(name) for name in ("owl", "unicorn", "umbrella", "ufo", "fox")] == [
        "an owl",
        "a unicorn",
        "an umbrella",
        "a ufo",
        "a fox",
    ]


def test_the_list_of_concepts_is_sound():
    listed = list(concepts())
    assert len({concept.icon for concept in listed}) == len(listed) >= 30
    names = [name for concept in listed for name in concept.names]
    assert len(set(names)) == len(names), "a name stands for two concepts"
    assert {
        "red apple",
        "penguin",
        "tulip",
        "fox",
        "cat",
        "dog",
        "strawberry",
        "banana",
        "rocket",
        "car",
        "snowman",
    } <= set(names)


@pytest.mark.parametrize("line", ["fox", "| fox", "fox |", "fox | fox | red", "fox | fox, !", "fox | fox | | !", "fox | fox | | vixen | red"])
def test_a_wrong_line_of_a_list_is_named(tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text(f"# mine\nstar | star | recolour\n{line}\n")
    with pytest.raises(InputError, match="line 3 is wrong"):
        list(concepts(path))
    path.write_text("# nothing yet\n\n")
    with pytest.raises(InputError, match="names nothing to draw"):
        list(concepts(path))
    path.write_text("star | star, asterisk | recolour\n")
    assert list(concepts(path)) == [Concept("star", ("star", "asterisk"), True)]
    path.write_text("fox | fox | scenes | vixen, red fox\nsun | sun! | | sunlight!\n")
    fox, sun = concepts(path)
    assert fox == Concept("fox", ("fox",), False, True, ("vixen", "red fox")) and sun.also == ("sunlight!",)
    told = captions(fox.names, "flat", fox.also)
    assert 0 < told["a vixen"] < told["a fox"] and "a vixen, flat style" not in told
