"""Pictures: tensors to bytes and back, what is read from strangers, and the contact sheet."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddgen.errors import InputError, NumericsError
from ddgen.io import images


def png(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_every_level_survives_the_way_to_a_tensor_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    unit = torch.from_numpy(images.to_unit(pixels))
    assert unit.shape == (1, 3, 16, 16) and unit.min() == -1 and unit.max() == 1
    assert np.array_equal(images.to_uint8(unit[0]), pixels)
    assert images.to_uint8(torch.full((3, 1, 1), 9.0)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_a_pixel(value: float) -> None:
    image = torch.zeros(3, 4, 4)
    image[1, 2, 3] = value
    with pytest.raises(NumericsError):
        images.to_uint8(image)


def test_enlarging_keeps_the_picture() -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    large = images.enlarge(ramp, 4)
    assert large.shape == (128, 128, 3)
    small = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert abs(small - ramp).max() < 4
    assert images.enlarge(ramp, 1) is ramp


@pytest.mark.parametrize(("format", "least"), [("png", np.inf), ("jpeg", 30), ("webp", 30)])
def test_encoding(format: str, least: float) -> None:
    y, x = np.mgrid[0:64, 0:64]
    pixels = np.stack([x * 4, y * 4, (x + y) * 2], axis=2).astype(np.uint8)
    back = images.read_image("a", images.encode(pixels, format, 95))
    error = ((back.astype(float) - pixels) ** 2).mean()
    assert error == 0 or 10 * np.log10(255**2 / error) > least
    assert np.array_equal(images.read_image("a", images.encode(pixels, "webp", 100)), pixels)


def test_reading_turns_flattens_and_narrows() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(buffer, "JPEG", exif=exif)
    assert images.read_image("a", buffer.getvalue()).shape == (8, 4, 3)
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert images.read_image("a", png(clear))[0, 0].tolist() == [255, 255, 255]
    indexed = Image.new("P", (2, 2), 0)
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    assert images.read_image("a", png(indexed, transparency=0))[0, 0].tolist() == [255, 255, 255]
    deep = Image.fromarray(np.full((2, 2), 257 * 77, dtype=np.uint16))
    assert images.read_image("a", png(deep))[0, 0].tolist() == [77, 77, 77]
    assert images.read_image("a", png(Image.new("1", (2, 2), 1)))[0, 0].tolist() == [255, 255, 255]


def test_what_is_refused(tmp_path: Path) -> None:
    frames = io.BytesIO()
    Image.new("RGB", (4, 4)).save(
        frames, "WEBP", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]
    )
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    large = png(Image.new("1", (9000, 9000)))
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    for data, words in (
        (frames.getvalue(), "is animated"),
        (gif.getvalue(), "not a PNG, JPEG or WebP picture"),
        (b"<svg/>", "not a PNG, JPEG or WebP picture"),
        (b"", "not a PNG, JPEG or WebP picture"),
        (large, "9000x9000 is over the 64 megapixel limit"),
        (whole[:-2000], "cut short or damaged"),
    ):
        with pytest.raises(InputError, match=words):
            images.read_image("a.png", data)
    with pytest.raises(InputError, match="no such file"):
        images.read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a directory"):
        images.read_image(tmp_path)


def test_mutants_raise_nothing_but_input_errors() -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    seeds = [images.encode(pixels, format) for format in ("png", "jpeg", "webp")]
    for _ in range(1500):
        data = bytearray(seeds[random.integers(3)])
        for _ in range(random.integers(1, 8)):
            data[random.integers(len(data))] = random.integers(256)
        if random.integers(4) == 0:
            del data[random.integers(len(data)) :]
        try:
            assert images.read_image("a", bytes(data)).dtype == np.uint8
        except InputError:
            pass


def test_the_contact_sheet_holds_every_picture_and_legible_labels() -> None:
    colours = [
        (40 * number, 17, 250 - 40 * number) for number in range(6)
    ]  # no grey, as the letters' edges are
    pictures = [np.full((64, 64, 3), colour, dtype=np.uint8) for colour in colours]
    sheet = images.contact_sheet(
        pictures, ["a fox " * 50, "a penguin"], [f"seed {number}" for number in range(6)]
    )
    corners = []
    for colour in colours:
        ys, xs = np.nonzero((sheet == colour).all(2))
        assert len(ys) == 64 * 64 and (np.ptp(ys), np.ptp(xs)) == (63, 63)
        corners.append((ys.min(), xs.min()))
    assert corners == sorted(corners) and len({y for y, _ in corners}) == 2, "row by row"
    blank = images.contact_sheet(pictures, ["", ""], [""] * 6)
    assert sheet.shape[0] > blank.shape[0] and sheet.shape[1] == blank.shape[1]
    band = sheet[: sheet.shape[0] - blank.shape[0]]
    assert (band.min(2) < 128).sum() > 150, "the prompt is written above its row"
    many = images.contact_sheet([np.zeros((512, 512, 3), np.uint8)] * 400, [""] * 20, [""] * 400)
    assert many.shape[0] * many.shape[1] <= images.MAX_READ_PIXELS
