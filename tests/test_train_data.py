"""Pictures with captions from folders, tables and shards; what is wrong is named; sizes follow the pictures."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddgen.app import examples
from ddgen.app.dataset import MAX_ASPECT, Dataset, Frame, bucket_sizes
from ddgen.app.examples import read_folder
from ddgen.errors import InputError


def picture(colour: str = "red", size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def found(path: Path) -> list[tuple[str, list[str]]]:
    return [(example.path.name, list(example.captions)) for example in read_folder(path)]


def test_a_csv_table(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text", "weight"], ["a.png", 'a "fox", red', ""], ["b.png", "b", 2]])
    assert found(tmp_path) == [("a.png", ['a "fox", red']), ("b.png", ["b"])]
    assert [example.weight for example in read_folder(tmp_path)] == [1.0, 2.0]


def test_the_split_and_tables_below(tmp_path):
    for folder in ("train/one", "train/two", "test"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").write_bytes(picture())
        row = {"file_name": "x.png", "caption": folder}
        (tmp_path / folder / "metadata.jsonl").write_text(json.dumps(row))
    assert [captions for _, captions in found(tmp_path)] == [["train/one"], ["train/two"]]


def test_directories_name_what_they_hold(tmp_path):
    for folder in ("red_fox", "owl"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(picture())
    assert [captions for _, captions in found(tmp_path)] == [["owl"], ["red fox"]]
    (tmp_path / "owl" / "1.txt").write_text("an owl")
    assert [captions for _, captions in found(tmp_path)] == [["an owl"]]


def test_shards_are_read_where_they_lie(tmp_path):
    shard(
        tmp_path / "s-001.tar",
        {
            "d/1.png": picture("red"),
            "d/1.txt": b" a red one\n",
            "d/2.jpg.bak": b"",
            "2.PNG": picture("lime"),
            "2.json": b'{"caption": "a green one"}',
            "3.png": picture(),
        },
    )
    shard(tmp_path / "s-000.tar", {"x.webp": picture("blue"), "x.txt": b"a blue one"})
    data = Dataset(tmp_path, 8, 8)
    assert [list(example.captions) for example in data.examples] == [["a blue one"], ["a red one"], ["a green one"]]
    assert data.pixels[:, :, 0, 0].tolist() == [[0, 0, 255], [255, 0, 0], [0, 255, 0]]
    assert len(Dataset(tmp_path / "s-001.tar", 8, 8)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-000.tar", "s-001.tar"]


def test_wrong_shards_are_named(tmp_path, monkeypatch):
    bad = shard(tmp_path / "bad.tar", {"1.png": b"no picture", "1.txt": b"x"})
    with pytest.raises(InputError, match=r"bad.tar: 1.png' cannot be read"):
        Dataset(bad, 8, 8)
    with pytest.raises(InputError, match=r"bad.tar: 1.png' cannot be read"):
        Dataset(bad, 8, 8, budget=0)
    for data, why in ((b"\xff\xfe", "no caption"), (b"[1", "no caption"), (b"{}", "no caption")):
        with pytest.raises(InputError, match=why):
            Dataset(shard(tmp_path / "j.tar", {"1.png": picture(), "1.json": data}), 8, 8)
    with pytest.raises(InputError, match="not compressed"):
        list(read_folder(shard(tmp_path / "c.tar.gz", {"1.png": picture(), "1.txt": b"x"}, "w:gz")))
    whole = shard(tmp_path / "cut.tar", {"1.png": picture(size=(64, 64)), "1.txt": b"x"}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:700])
    with pytest.raises(InputError, match="cut.tar|no pictures"):
        Dataset(tmp_path / "cut.tar", 8, 8)
    monkeypatch.setattr(examples, "MAX_PICTURE", 10)
    with pytest.raises(InputError, match="more than 10"):
        Dataset(shard(tmp_path / "b.tar", {"1.png": picture(), "1.txt": b"x"}), 8, 8)
    monkeypatch.setattr(examples, "MAX_TEXT", 3)
    with pytest.raises(InputError, match="longer than 3"):
        list(read_folder(shard(tmp_path / "t.tar", {"1.png": picture(), "1.txt": b"longer"})))


def folder(path: Path, sizes: list[tuple[int, int]]) -> Path:
    for i, size in enumerate(sizes):
        (path / f"{i}.png").write_bytes(picture(("red", "lime", "blue")[i % 3], size))
        (path / f"{i}.txt").write_text(f"picture {i}")
    return path


def test_what_is_not_kept_is_the_same(tmp_path):
    folder(tmp_path, [(40, 20), (20, 40), (33, 33)])
    kept, lazy = Dataset(tmp_path, 16, 16), Dataset(tmp_path, 16, 16, budget=0)
    assert (kept.images(np.array([2, 0])) == lazy.images(np.array([2, 0]))).all()
    before = lazy.digest()
    assert before == Dataset(tmp_path, 16, 16, budget=0).digest()
    (tmp_path / "1.png").write_bytes(picture("white", (20, 40)))
    assert lazy.digest() != before


@pytest.mark.parametrize("budget", [0, 2**20])
def test_how_a_picture_came_to_its_size_is_known(budget, tmp_path):
    data = Dataset(folder(tmp_path, [(300, 100), (100, 300), (32, 32), (64, 64)]), 32, 32, budget=budget)
    assert [data.frame(i) for i in range(4)] == [
        Frame((300, 100), (32, 0)),  # resized to 96 x 32
        Frame((100, 300), (0, 32)),
        Frame((32, 32), (0, 0)),
        Frame((64, 64), (0, 0)),
    ]
    for i in range(4):  # reading pictures again changes nothing
        data.images(np.array([i]))
    assert data.frame(1).original == (100, 300)


@pytest.mark.parametrize("budget", [0, 2**20])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_are_upright(budget, suffix, tmp_path):
    """A camera that was held on its side says so in EXIF: red was at the left, it is above."""
    image, exif = Image.new("RGB", (64, 32), "blue"), Image.Exif()
    image.paste("red", (0, 0, 32, 32))
    exif[0x0112] = 6  # turned to the right to be upright
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    (tmp_path / "a.txt").write_text("red above blue")
    for bucket in (None, 8):
        data = Dataset(tmp_path, 32, 32, bucket=bucket, budget=budget)
        assert data.frame(0).original == (32, 64)
        red, _, blue = data.images(np.array([0]))[0]
        assert red[:8].mean() > 0.8 > -0.8 > blue[:8].mean() and blue[-8:].mean() > 0.8 > -0.8 > red[-8:].mean()
    assert data.sizes[0][1] > data.sizes[0][0]


def test_16_bits_of_grey_are_not_white(tmp_path):
    Image.fromarray(np.full((32, 32), 257 * 77, dtype=np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("grey")
    assert (Dataset(tmp_path, 32, 32).pixels == 77).all()


def test_sizes_follow_the_pictures(tmp_path):
    data = Dataset(folder(tmp_path, [(300, 100), (100, 300), (200, 210), (400, 200)]), 128, 128, bucket=32)
    own = [data.sizes[i] for i in data.size_of]
    assert own[0][0] > own[0][1] and own[1][0] < own[1][1] and own[2] == (128, 128) and own[3] == (160, 96)
    shapes = [(4, h // 8, w // 8) for w, h in data.sizes]
    seen = set()
    for step in range(60):
        draw = data.draw(0, step, 2, shapes, dropout=0.0, high_noise=0.0)
        (size,) = {data.size_of[i] for i in draw.pictures}
        assert draw.eps.shape == (2, *shapes[size])
        assert data.images(draw.pictures).shape == (2, 3, data.sizes[size][1], data.sizes[size][0])
        seen |= set(draw.pictures.tolist())
    assert seen == {0, 1, 2, 3}
    fixed = data.fixed(8, shapes)
    assert sum(len(draw.u) for draw in fixed) == 8
    assert all(len({data.size_of[i] for i in draw.pictures}) == 1 for draw in fixed)


def test_bucket_sizes_have_no_more_area():
    sizes = bucket_sizes(512, 512, 64)
    assert (512, 512) in sizes and (640, 384) in sizes and (384, 640) in sizes
    assert all(w * h <= 512 * 512 and w % 64 == h % 64 == 0 for w, h in sizes)
    assert all(max(w / h, h / w) <= MAX_ASPECT for w, h in sizes)


def test_a_new_word_is_put_before_captions_without_it(tmp_path):
    folder(tmp_path, [(8, 8)] * 2)
    (tmp_path / "1.txt").write_text("a photo of <Mine>")
    data = Dataset(tmp_path, 8, 8, word="<mine>")
    assert [list(example.captions) for example in data.examples] == [["<mine>, picture 0"], ["a photo of <Mine>"]]
    data = Dataset(tmp_path, 8, 8, word="phot")
    assert list(data.examples[1].captions) == ["phot, a photo of <Mine>"]
