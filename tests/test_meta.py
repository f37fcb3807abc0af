"""Metadata of five tools in three containers: read, written, taken out; checked by independent readers."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddgen.errors import InputError
from ddgen.io import containers, foreign, images, metadata, translate
from ddgen.io.metadata import Metadata
from ddgen.request import Job

DDGEN = str(Path(sys.executable).with_name("ddgen"))
JOB = Job(
    prompt='a cat, größer: "x"\nline two',
    negative="blurry, bad",
    seed=42,
    width=64,
    height=96,
    steps=20,
    guidance=7.5,
    guidance_rescale=0.0,
    guidance_interval=None,
    sampler="dpmpp_2m",
    spacing="karras",
    sigmas=None,
    eta=None,
    scale=1,
    model="m",
)
ORIGIN = metadata.Origin(digests={"model": "6ce0161689" + "0" * 54}, sampler="DPM++ 2M")
PIXELS = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
FORMATS = ("png", "jpeg", "webp")


def picture(format: str, texts: Metadata | None = None) -> bytes:
    return images.encode(PIXELS, format, 92, texts)


def decoded(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB").tobytes()


def png_with(**texts: str) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("__", "-"), text)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def with_comment(format: str, comment: bytes, tag: int = 0x9286) -> bytes:
    exif = Image.Exif()
    if tag == 0x9286:
        exif.get_ifd(0x8769)[tag] = comment
    else:
        exif[tag] = comment.decode()
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format, exif=exif.tobytes())
    return buffer.getvalue()


def read(data: bytes) -> foreign.Found:
    found = foreign.interpret(containers.read_texts(data))
    assert found is not None
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_ddgens_own_record_comes_back_from_every_container(format: str) -> None:
    found = read(picture(format, metadata.describe(JOB, ORIGIN, "full", "ab" * 16)))
    assert (found.tool, found.prompt, found.negative) == ("ddgen", JOB.prompt, JOB.negative)
    assert (
        found.settings["seed"] == 42
        and found.settings["sampler"] == "dpmpp_2m"
        and found.settings["guidance"] == 7.5
    )
    assert found.record["id"] == "ab" * 16 and found.record["weights"] == dict(ORIGIN.digests)


@pytest.mark.parametrize("format", FORMATS)
def test_a1111_text_is_read_from_every_container(format: str) -> None:
    texts = Metadata(parameters=metadata.a1111(JOB, ORIGIN))
    found = read(picture(format, texts))
    assert (found.tool, found.negative) == ("a1111", "blurry, bad")
    assert found.prompt == JOB.prompt.replace("\n", " ")
    assert found.settings == {
        "steps": 20,
        "sampler": "DPM++ 2M",
        "spacing": "Karras",
        "guidance": 7.5,
        "seed": 42,
        "width": 64,
        "height": 96,
    }
    assert found.rest["Model hash"] == "6ce0161689"


A1111 = (
    "a (cat:1.2) <lora:x:1>\nsecond line\nNegative prompt: bad\nworse\n"
    "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 123, "
    'Size: 512x768, Model hash: abc, Model: m, Lora hashes: "x: 1, y: 2", Version: v1.6.0'
)


def test_a_real_a1111_text() -> None:
    found = read(png_with(parameters=A1111))
    assert found.prompt == "a (cat:1.2) <lora:x:1>\nsecond line" and found.negative == "bad\nworse"
    assert found.settings["sampler"] == "DPM++ 2M" and found.settings["spacing"] == "karras"
    assert found.rest["Lora hashes"] == "x: 1, y: 2"


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le", "utf-16"])
def test_user_comments_of_either_byte_order(order: str) -> None:
    found = read(with_comment("JPEG", b"UNICODE\0" + A1111.encode(order)))
    assert found.tool == "a1111" and found.settings["seed"] == 123


COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": ["12", 0],
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "uni_pc",
            "scheduler": "karras",
            "denoise": 1,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["4", 1]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "model": ["4", 0], "clip": ["4", 1]}},
    "11": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
    "12": {"class_type": "SeedNode", "inputs": {"seed": 77}},
}


def test_comfyui_graph_is_followed_along_its_links() -> None:
    found = read(png_with(prompt=json.dumps(COMFY), workflow="{}"))
    assert (found.tool, found.prompt, found.negative) == ("comfyui", "a fox", "ugly")
    assert found.settings == {
        "seed": 77,
        "steps": 20,
        "guidance": 8.0,
        "sampler": "unipc",
        "spacing": "karras",
        "width": 512,
        "height": 768,
    }
    assert found.rest["model"] == "sd15.safetensors"
    webp = with_comment("WEBP", b"prompt:" + json.dumps(COMFY).encode(), tag=0x0110)
    assert read(webp).settings["seed"] == 77


def test_comfyui_graph_with_a_loop_ends() -> None:
    graph = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["2", 0]}},
        "2": {"class_type": "A", "inputs": {"a": ["3", 0]}},
        "3": {"class_type": "A", "inputs": {"a": ["2", 0]}},
    }
    assert read(png_with(prompt=json.dumps(graph))).prompt == ""


def test_invokeai() -> None:
    record = {
        "generation_mode": "txt2img",
        "positive_prompt": "a fox",
        "negative_prompt": "bad",
        "width": 512,
        "height": 512,
        "seed": 5,
        "cfg_scale": 6.5,
        "steps": 30,
        "scheduler": "euler_k",
        "model": {"name": "sd-1", "hash": "blake3:x"},
    }
    found = read(png_with(invokeai_metadata=json.dumps(record)))
    assert (found.tool, found.prompt, found.negative, found.rest["model"]) == (
        "invokeai",
        "a fox",
        "bad",
        "sd-1",
    )
    assert found.settings["spacing"] == "karras" and found.settings["guidance"] == 6.5
    old = {
        "image": {
            "prompt": [{"prompt": "a fox [bad] sits", "weight": 1}],
            "steps": 9,
            "cfg_scale": 7,
            "seed": 3,
            "width": 64,
            "height": 64,
        }
    }
    found = read(png_with(sd__metadata=json.dumps(old)))
    assert found.negative == "bad" and found.settings["steps"] == 9


def test_mflux() -> None:
    record = {
        "mflux_version": "0.9",
        "model": "/home/me/secret/flux",
        "seed": 5,
        "steps": 4,
        "guidance": None,
        "prompt": "a fox",
    }
    found = read(with_comment("PNG", b"ASCII\0\0\0" + json.dumps(record).encode()))
    assert (found.tool, found.prompt, found.settings) == ("mflux", "a fox", {"seed": 5, "steps": 4})
    assert found.rest == {"model": "flux"}, "no absolute path is carried on"


def test_compressed_text_chunks() -> None:
    body = b"parameters\0\0" + zlib.compress(A1111.encode("latin-1"))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    plain = picture("png")
    assert read(plain[:33] + chunk + plain[33:]).settings["seed"] == 123


def test_a_bomb_in_a_text_chunk_stays_small() -> None:
    body = b"parameters\0\0" + zlib.compress(b"a" * 200_000_000, 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    plain = picture("png")
    assert len(containers.read_texts(plain[:33] + chunk + plain[33:])["parameters"]) <= containers.MAX_TEXT


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("new", [Metadata(), metadata.describe(JOB, ORIGIN, "full")], ids=["scrub", "put"])
def test_texts_are_replaced_and_pixels_are_not(format: str, new: Metadata) -> None:
    before = picture(format, metadata.describe(JOB, ORIGIN, "full"))
    for start in (before, picture(format)):
        after = containers.replace_texts(start, new)
        assert decoded(after) == decoded(before)
        texts = containers.read_texts(after)
        if new:
            assert read(after).record == json.loads(new.settings)
            assert containers.replace_texts(after, new) == after
        else:
            assert texts == {} and b"ddgen" not in after and b"a cat" not in after


def test_scrubbing_keeps_the_orientation_and_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "secret camera"
    exif.get_ifd(0x8825)[1] = "N"
    for format in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(PIXELS).save(
            buffer, format, exif=exif.tobytes(), comment=b"secret" if format == "JPEG" else None
        )
        after = containers.replace_texts(buffer.getvalue(), Metadata())
        assert b"secret" not in after
        with Image.open(io.BytesIO(after)) as image:
            kept = image.getexif()
            assert dict(kept) == {0x0112: 6} and not kept.get_ifd(0x8825)


def test_conversion_carries_over_what_is_known() -> None:
    for data in (png_with(prompt=json.dumps(COMFY)), png_with(parameters=A1111)):
        found = read(data)
        converted = containers.replace_texts(data, translate.texts_for(found, "both", {"unipc": "UniPC"}))
        again = read(converted)
        assert again.tool == "ddgen" and (again.prompt, again.negative, again.settings) == (
            found.prompt,
            found.negative,
            found.settings,
        )
        only = read(containers.replace_texts(data, translate.texts_for(found, "a1111", {"unipc": "UniPC"})))
        assert only.tool == "a1111" and only.settings["seed"] == found.settings["seed"]


def test_an_independent_reader_reads_our_a1111_text(tmp_path: Path) -> None:
    sd_parsers = pytest.importorskip("sd_parsers")
    job = Job(**{**vars(JOB), "prompt": "a cat, (red:1.2)"})
    for format in ("png", "jpeg"):
        path = tmp_path / f"a.{format}"
        path.write_bytes(picture(format, metadata.describe(job, ORIGIN, "full")))
        info = sd_parsers.ParserManager().parse(path)
        assert info is not None and "AUTOMATIC1111" in str(info.generator)
        assert [prompt.value for prompt in info.prompts] == ["a cat, (red:1.2)"]
        assert [prompt.value for prompt in info.negative_prompts] == ["blurry, bad"]
        sampler = info.samplers[0]
        assert (sampler.name, sampler.parameters["seed"], sampler.parameters["steps"]) == (
            "DPM++ 2M",
            "42",
            "20",
        )
        assert sampler.parameters["cfg_scale"] == "7.5"


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.sampled_from(FORMATS))
def test_any_prompt_comes_back(prompt: str, negative: str, format: str) -> None:
    job = Job(**{**vars(JOB), "prompt": prompt, "negative": negative})
    found = read(picture(format, metadata.describe(job, ORIGIN, "full")))
    assert (found.tool, found.prompt, found.negative) == ("ddgen", prompt, negative)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 5000), st.sampled_from(FORMATS))
def test_damaged_files_are_refused_never_a_crash(noise: bytes, at: int, format: str) -> None:
    data = bytearray(picture(format, metadata.describe(JOB, ORIGIN, "full")))
    data[at % len(data) : at % len(data) + len(noise)] = noise
    try:
        foreign.interpret(containers.read_texts(bytes(data)))
    except InputError:
        pass


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["ddgen", "prompt", "parameters", "UserComment", "invokeai_metadata", "sd-metadata"]),
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.integers(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(json.dumps),
    )
)
def test_any_json_is_survived(texts: dict[str, str]) -> None:
    foreign.interpret(texts)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DDGEN, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(cwd)},
    )


def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("png", metadata.describe(JOB, ORIGIN, "full")))
    (tmp_path / "b.png").write_bytes(png_with(prompt=json.dumps(COMFY)))
    (tmp_path / "c.jpg").write_bytes(picture("jpeg"))
    shown = run("meta", "show", "a.png", "b.png", "c.jpg", cwd=tmp_path)
    assert shown.returncode == 0 and "a.png: ddgen\n  prompt             a cat" in shown.stdout
    assert "b.png: comfyui" in shown.stdout and "c.jpg: says nothing that ddgen can read" in shown.stdout
    records = [
        json.loads(line) for line in run("meta", "json", "a.png", "c.jpg", cwd=tmp_path).stdout.splitlines()
    ]
    assert (
        records[0]["settings"]["seed"] == 42
        and "parameters" in records[0]["texts"]
        and records[1]["tool"] is None
    )
    refused = run("meta", "scrub", "a.png", cwd=tmp_path)
    assert refused.returncode == 2 and "give --output DIR, or --force" in refused.stderr
    assert run("meta", "scrub", "a.png", "-o", "clean", cwd=tmp_path).stdout == "clean/a.png\n"
    assert containers.read_texts((tmp_path / "clean/a.png").read_bytes()) == {}
    again = run("meta", "scrub", "a.png", "-o", "clean", cwd=tmp_path)
    assert again.returncode == 7 and "'clean/a.png' exists" in again.stderr
    alone = run("meta", "scrub", "a.png", "-o", "bare.png", cwd=tmp_path)
    assert alone.stdout == "bare.png\n" and (tmp_path / "bare.png").is_file()
    for words, line in (
        (("a.png", "b.png", "-o", "x.png"), "2 pictures do not fit into 'x.png'; give a directory, as in --output clean/"),
        (("a.png", "-o", "x.jpg"), "--output 'x.jpg': the picture stays a PNG file; name it so, as in --output x.png"),
    ):
        wrong = run("meta", "scrub", *words, cwd=tmp_path)
        assert (wrong.returncode, wrong.stderr) == (2, f"ddgen: error: {line}\n")
    assert run("meta", "convert", "b.png", "--to", "a1111", "-f", cwd=tmp_path).returncode == 0
    assert read((tmp_path / "b.png").read_bytes()).tool == "a1111"
    (tmp_path / "bad.png").write_bytes(picture("png")[:100])
    for name, words in (
        ("none.png", "no such file"),
        ("bad.png", "cut short or damaged"),
        (".", "not a file"),
    ):
        failed = run("meta", "show", name, cwd=tmp_path)
        assert failed.returncode == 4 and words in failed.stderr and len(failed.stderr.splitlines()) == 1
