"""What pictures say about themselves: exact in PNG, JPEG and WebP, readable elsewhere, and no secrets."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddgen.errors import InputError, OutputError
from ddgen.io import images, metadata
from ddgen.request import Job

JOB = Job("a red apple", "", 7, 128, 128, 25, 3.0, 0.0, None, "ddim", "linspace", None, 0.0, 1, "sticker")
ORIGIN = metadata.Origin(digests={"model": "ab" * 32}, sampler="DDIM", torch="2.15")
PIXELS = np.random.default_rng(7).integers(0, 256, (24, 40, 3), dtype=np.uint8)

# How A1111 reads: the last line is settings if it has three `Key: value` pairs.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_a1111(text: str) -> tuple[str, str, dict[str, str]]:
    *lines, last = text.strip().split("\n")
    assert len(PAIR.findall(last)) >= 3
    prompt, negative, into_negative = [], [], False
    for line in lines:
        if line.strip().startswith("Negative prompt:"):
            into_negative, line = True, line.strip().removeprefix("Negative prompt:").strip()
        (negative if into_negative else prompt).append(line)
    return (
        "\n".join(prompt),
        "\n".join(negative),
        {key: json.loads(value) if value[:1] == '"' else value for key, value in PAIR.findall(last)},
    )


def test_the_text_for_other_programs_to_the_letter() -> None:
    job = replace(JOB, negative="blurry", sampler="dpmpp_2m", spacing="karras", guidance=7.0)
    text = metadata.a1111(job, replace(ORIGIN, sampler="DPM++ 2M"))
    program = metadata.settings_of(JOB, ORIGIN)["program"]
    assert text == (
        "a red apple\nNegative prompt: blurry\n"
        "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 128x128, "
        f"Model hash: ababababab, Model: sticker, RNG: CPU, Version: {program}"
    )


def test_what_was_put_on_the_model_is_named_by_its_hash() -> None:
    digests = {
        "model": "ab" * 32,
        "lora:ink.safetensors x 0.8": "01" * 32,
        "lora:a, b x c.safetensors x -1": "23" * 32,
        "embedding:zebra.pt": "45" * 32,
        "vae:fine.v2.safetensors": "67" * 32,
    }
    _, _, found = read_a1111(metadata.a1111(JOB, replace(ORIGIN, digests=digests)))
    assert found["Model hash"] == "ababababab" and found["VAE hash"] == "6767676767"
    assert found["Lora hashes"] == "ink: 0101010101, a_ b x c: 2323232323"
    assert found["TI hashes"] == "zebra: 4545454545"
    _, _, plain = read_a1111(metadata.a1111(JOB, ORIGIN))
    assert not {"Lora hashes", "TI hashes", "VAE hash"} & plain.keys()


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(prompt=words, negative=words, model=st.text('ab,:"\\ ', min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_a_reader_of_a1111_is_not_misled(prompt: str, negative: str, model: str) -> None:
    job = replace(JOB, prompt=prompt, negative=negative, model=model)
    _, _, found = read_a1111(metadata.a1111(job, ORIGIN))
    assert (found["Steps"], found["Seed"], found["Size"]) == ("25", "7", "128x128")
    assert found["Model"].strip() == model.strip() or model.strip() == ""


def test_a_prompt_cannot_pose_as_settings() -> None:
    job = replace(JOB, prompt="a cat\nSteps: 1, Sampler: x, Seed: 2", negative="b\nNegative prompt: c")
    prompt, negative, found = read_a1111(metadata.a1111(job, ORIGIN))
    assert (
        found["Seed"] == "7"
        and prompt == "a cat Steps: 1, Sampler: x, Seed: 2"
        and negative == "b Negative prompt: c"
    )


@given(prompt=st.text(st.characters(), max_size=80), negative=words, seed=st.integers(0, 2**63 - 1))
@settings(max_examples=200, deadline=None)
def test_the_json_comes_back_exactly(prompt: str, negative: str, seed: int) -> None:
    job = replace(
        JOB, prompt=prompt, negative=negative, seed=seed, sigmas=(2.0, 0.1, 0.0), guidance_interval=(0.1, 0.8)
    )
    text = metadata.describe(job, ORIGIN).settings
    assert text.isascii() and text.isprintable()
    found = metadata.parse(text)
    assert found["job"] == {
        **metadata.settings_of(job, ORIGIN)["job"],
        "sigmas": [2.0, 0.1, 0.0],
        "guidance_interval": [0.1, 0.8],
    }
    assert metadata.canonical(found) == text


@given(prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
@settings(max_examples=60, deadline=None)
def test_png_holds_all_three_before_the_pixels(prompt: str) -> None:
    texts = metadata.describe(replace(JOB, prompt=prompt), ORIGIN)
    data = images.encode(PIXELS, "png", 92, texts)
    found = metadata.png_texts(data)
    assert (found["parameters"], found["ddgen"], found["XML:com.adobe.xmp"]) == (
        texts.parameters,
        texts.settings,
        texts.xmp,
    )
    assert data.index(b"XML:com.adobe.xmp") < data.index(b"IDAT") and data.index(b"ddgen") < data.index(
        b"IDAT"
    )
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["ddgen"] == texts.settings and np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_jpeg_and_webp_hold_them_as_exif_and_xmp(format: str) -> None:
    texts = metadata.describe(replace(JOB, prompt="ein Äpfel 🍎 & <b>"), ORIGIN)
    with Image.open(io.BytesIO(images.encode(PIXELS, format, 92, texts))) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be") == texts.parameters
        tree = ElementTree.fromstring(re.sub(rb"<\?xpacket.*?\?>", b"", image.info["xmp"]).decode())
    found = {element.tag.split("}")[1]: element.text for element in tree.iter()}
    assert found["settings"] == texts.settings and found["DigitalSourceType"] == metadata.SOURCE_TYPE


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_equal_pictures_are_equal_bytes(format: str) -> None:
    first, second = (
        images.encode(PIXELS.copy(), format, 92, metadata.describe(JOB, ORIGIN)) for _ in range(2)
    )
    assert first == second
    assert b"2026" not in metadata.describe(JOB, ORIGIN).settings.encode()


def test_levels() -> None:
    least = metadata.describe(replace(JOB, negative="hidden"), ORIGIN, "min")
    assert (
        least.parameters == ""
        and "apple" not in str(least)
        and "hidden" not in str(least)
        and '"seed":7' in least.settings
    )
    assert not metadata.describe(JOB, ORIGIN, "none")


def test_what_jpeg_cannot_hold_is_told_before() -> None:
    long = metadata.describe(replace(JOB, prompt="a" * 40_000), ORIGIN)
    with pytest.raises(OutputError, match="JPEG holds 65000"):
        metadata.check_fits(long, "jpeg")
    metadata.check_fits(long, "png")
    metadata.check_fits(metadata.describe(replace(JOB, prompt="a" * 40_000), ORIGIN, "min"), "jpeg")
    fits = metadata.describe(replace(JOB, prompt="a" * 32_000), ORIGIN)
    metadata.check_fits(fits, "jpeg")
    images.encode(PIXELS, "jpeg", 92, fits)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema":2}', "[" * 100_000, "9" * 5000])
def test_foreign_json_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        metadata.parse(text)


def test_a_damaged_png_is_an_input_error() -> None:
    data = images.encode(PIXELS, "png", 92, metadata.describe(JOB, ORIGIN))
    random = np.random.default_rng(0)
    for _ in range(300):
        at = int(random.integers(0, len(data)))
        for broken in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            with pytest.raises(InputError):
                metadata.png_texts(broken)
