"""`ddgen sample` with the model that ships: what a fake pipeline cannot show."""

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


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_picture_depends_on_its_seed_not_on_its_neighbours(place: Place) -> None:
    four = place.run(
        "sample", "a red apple", "-s", "7", "-n", "4", "--steps", "3", "-o", "four/", "-q", fake=False
    )
    assert four.returncode == 0, four.stderr
    one = place.run("sample", "a red apple", "-s", "9", "--steps", "3", "-o", "one/", "--json", fake=False)
    assert one.returncode == 0, one.stderr
    together, alone = (
        pixels(place.path / "four/a-red-apple-9.png"),
        pixels(place.path / "one/a-red-apple-9.png"),
    )
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together - pixels(place.path / "four/a-red-apple-8.png")).max() > 20
    told = json.loads(one.stdout)
    texts = metadata.png_texts((place.path / told["path"]).read_bytes())
    said = metadata.parse(texts["ddgen"])
    assert said["torch"].count(".") == 1 and said["device"] == "cpu" and said["job"]["seed"] == 9
    assert all(len(digest) == 64 for digest in said["weights"].values())
    assert f"Model hash: {said['weights']['model'][:10]}, Model: sticker" in texts["parameters"]


def test_a_device_that_is_not_there(place: Place) -> None:
    failed = place.run("sample", "x", "--device", "cuda:7", fake=False)
    assert failed.returncode == 8
    line = failed.stderr.decode().splitlines()[-1]
    assert line.startswith("ddgen: error: --device cuda:7: ") and line.endswith("; use --device cpu")
    assert place.files() == []
