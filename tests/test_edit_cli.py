"""The editing commands from their flags to their files, with a network that answers the mean of its text;
and bad input row by row."""

import inspect
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from program import Place
from test_edit import noisy_picture, pixel_pipeline

from ddgen.cli import console, editing, program, sample, sample_run
from ddgen.io import containers, foreign, metadata
from ddgen.request import Edit, Job

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ddgen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Return a caller of ddgen in an empty directory that holds p.png (128 x 128), its mask m.png, and a.png
    with alpha."""
    loaded = pixel_pipeline()
    loaded.digests, loaded.notes = {"model": "ab" * 32}, []
    monkeypatch.setattr(sample_run, "load", lambda spec, values: loaded)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    picture = noisy_picture(128, 128)
    Image.fromarray(picture).save("p.png")
    mask = np.zeros((128, 128), np.uint8)
    mask[32:64, 40:90] = 255
    Image.fromarray(mask).save("m.png")
    Image.fromarray(np.dstack([picture, 255 - mask])).save("a.png")

    def call(*arguments: str) -> tuple[int, str, str]:
        for name, value in vars(console.Manners()).items():
            monkeypatch.setattr(console.manners, name, value)
        monkeypatch.setattr(sys, "stdout", sys.stdout)
        code = program.run(list(arguments))
        out, err = capfd.readouterr()
        return code, out, err

    return call


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def said(path: str) -> dict[str, object]:
    found = foreign.interpret(containers.read_texts(Path(path).read_bytes()))
    assert found is not None
    return found.record["job"]


def test_edit(ddgen: Call) -> None:
    code, out, err = ddgen(
        "edit",
        "p.png",
        "cat",
        "--strength",
        "0.6",
        "--steps",
        "10",
        "-s",
        "1",
        "-o",
        "e.png",
    )
    assert (code, out) == (0, "e.png\n"), err
    assert (
        err.splitlines()[0]
        == "ddgen: sticker, 1 x 128x128, ddim 10 steps at strength 0.6, guidance 2.5, seed 1"
    )
    record = said("e.png")["edit"]
    assert record["strength"] == 0.6 and record["verb"] == "edit" and len(record["image"]) == 64
    assert "Denoising strength: 0.6" in containers.read_texts(Path("e.png").read_bytes())["parameters"]
    assert ddgen("edit", "p.png", "cat", "dog", "-n", "2", "--steps", "2", "-q", "-s", "1")[1].split() == [
        "cat-1.png", "cat-2.png", "dog-1.png", "dog-2.png"
    ]  # fmt: skip
    code, _, err = ddgen("replay", "e.png")
    assert code == 4 and "made from another one" in err


def test_a_picture_of_any_shape_is_fitted(ddgen: Call) -> None:
    Image.fromarray(noisy_picture(300, 600)).save("wide.jpg")
    code, out, _ = ddgen("edit", "wide.jpg", "cat", "--plan", "--json")
    record = json.loads(out)
    assert (record["width"], record["height"]) == (176, 96) and code == 0
    record = json.loads(
        ddgen(
            "edit",
            "wide.jpg",
            "cat",
            "--size",
            "64x128",
            "--fit",
            "pad",
            "--plan",
            "--json",
        )[1]
    )
    assert (record["width"], record["height"]) == (64, 128) and not Path("cat-1.png").exists()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "turned"])
def test_pictures_of_every_mode_are_read(ddgen: Call, mode: str) -> None:
    colours = Image.fromarray(noisy_picture(64, 96))
    if mode == "I;16":
        Image.fromarray(np.full((64, 96), 40000, np.uint16)).save("x.png")
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        colours.save("x.jpg", exif=exif)
    else:
        colours.convert(mode).save("x.jpg" if mode == "CMYK" else "x.png")
    name = "x.jpg" if mode in ("CMYK", "turned") else "x.png"
    code, out, err = ddgen("edit", name, "cat", "--plan", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["width"] > record["height"]) == (mode != "turned")


@pytest.mark.parametrize("where", [("--mask", "m.png"), ("--box", "40,32,50,32"), ("--mask", "alpha")])
def test_inpaint_keeps_what_is_outside(ddgen: Call, where: tuple[str, str]) -> None:
    name = "a.png" if where[1] == "alpha" else "p.png"
    code, _out, err = ddgen(
        "inpaint",
        name,
        "cat",
        *where,
        "--steps",
        "2",
        "-s",
        "1",
        "-o",
        "i.png",
        "--mask-crop",
    )
    assert code == 0, err
    before, after = read("p.png"), read("i.png")
    inside = np.zeros((128, 128), bool)
    inside[32:64, 40:90] = True
    assert np.array_equal(after[~inside], before[~inside]) or where[1] == "alpha"
    assert np.array_equal(after[~inside], read("a.png")[..., :3][~inside])
    assert (after[inside] != before[inside]).any(1).mean() > 0.9
    assert said("i.png")["edit"]["mask"] and "warning" not in err
    sizes = [
        json.loads(ddgen("inpaint", name, "cat", *where, "--mask-crop", *more, "--plan", "--json")[1])
        for more in ((), ("--mask-padding", "48"))
    ]
    assert [(size["width"], size["height"]) for size in sizes][0] != (sizes[1]["width"], sizes[1]["height"])


def test_masks_are_inverted_and_grown(ddgen: Call) -> None:
    assert (
        ddgen(
            "inpaint",
            "p.png",
            "cat",
            "--mask",
            "m.png",
            "--mask-invert",
            "--steps",
            "2",
            "-o",
            "i.png",
        )[0]
        == 0
    )
    before, after = read("p.png"), read("i.png")
    assert (
        np.array_equal(after[32:64, 40:90], before[32:64, 40:90])
        and (after[:32] != before[:32]).any(2).mean() > 0.9
    )
    ddgen(
        "inpaint",
        "p.png",
        "cat",
        "--mask",
        "m.png",
        "--mask-grow",
        "5",
        "--mask-blur",
        "0",
        "--steps",
        "2",
        "-o",
        "g.png",
    )
    changed = (read("g.png") != before).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (27, 68, 35, 94)
    code, _, err = ddgen(
        "inpaint",
        "p.png",
        "cat",
        "--mask",
        "m.png",
        "--mask-grow",
        "-40",
        "-o",
        "n.png",
    )
    assert code == 0 and "the mask is empty" in err and np.array_equal(read("n.png"), before)


def test_lossy_formats_and_alpha_are_told(ddgen: Call) -> None:
    err = ddgen("inpaint", "a.png", "cat", "--box", "0,0,64,64", "--steps", "1", "-o", "i.jpg")[2]
    assert "jpeg changes every pixel a little" in err and "transparent parts are laid on white" in err
    assert (
        "changes every pixel"
        not in ddgen("inpaint", "p.png", "cat", "--box", "0,0,64,64", "--plan", "-o", "i.png")[2]
    )


def test_outpaint(ddgen: Call) -> None:
    code, _out, err = ddgen(
        "outpaint",
        "p.png",
        "cat",
        "--by",
        "left20,up25%,right200",
        "--steps",
        "1",
        "-s",
        "1",
        "-o",
        "o.png",
        "-v",
    )
    assert code == 0 and "passes" in err, err
    plans = [
        json.loads(ddgen("outpaint", "p.png", "cat", "--by", "all25%", "--plan", "--json", *more)[1])
        for more in ((), ("--strength", "0.5"))
    ]
    assert [plan["edit"]["strength"] for plan in plans] == [0.6, 0.5]
    after = read("o.png")
    assert after.shape == (160, 348, 3) and np.array_equal(after[32:160, 20:148], read("p.png"))
    assert ddgen("outpaint", "p.png", "cat", "--to", "150x130", "--steps", "1", "-o", "t.png")[0] == 0
    assert np.array_equal(read("t.png")[1:129, 11:139], read("p.png"))


def test_vary_by_its_own_seed_or_by_the_picture(ddgen: Call) -> None:
    assert ddgen("sample", "cat", "-s", "7", "--steps", "3", "-o", "c.png")[0] == 0
    records = [
        json.loads(line)
        for line in ddgen("vary", "c.png", "-n", "2", "-s", "5", "--plan", "--json")[1].splitlines()
    ]
    assert [(r["prompt"], r["seed"], r["steps"], r["variation"], r["variation_seed"]) for r in records] == [
        ("cat", 7, 3, 0.6, 5), ("cat", 7, 3, 0.6, 6)
    ]  # fmt: skip
    said_of = [json.loads(ddgen("vary", "c.png", level, "--plan", "--json")[1]) for level in ("--subtle", "--strong")]
    assert [record["variation"] for record in said_of] == [0.3, 0.8]
    record = json.loads(ddgen("vary", "c.png", "--like", "picture", "-s", "4", "--plan", "--json")[1])
    assert (
        record["edit"]["strength"],
        record["variation"],
        record["seed"],
        record["prompt"],
    ) == (0.6, 0.0, 4, "cat")
    record = json.loads(ddgen("vary", "p.png", "--strong", "--plan", "--json")[1])
    assert record["edit"]["strength"] == 0.8 and record["prompt"] == ""
    assert ddgen("vary", "c.png", "-s", "5", "--steps", "2", "-q")[1] == "cat-7.png\n"
    again = said("cat-7.png")
    assert (again["variation"], again["variation_seed"]) == (
        0.6,
        5,
    ) and "edit" not in again
    first = Path("cat-7.png").read_bytes()
    assert ddgen("replay", "cat-7.png", "--plan")[0] == 0
    assert first == Path("cat-7.png").read_bytes()


def test_a_grid_of_variations_says_what_tells_them_apart(ddgen: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddgen.io import images

    shown: list[list[str]] = []
    draw = images.contact_sheet

    def seen(pictures: list[np.ndarray], rows: list[str], labels: list[str]) -> np.ndarray:
        shown.append(list(labels))
        return draw(pictures, rows, labels)

    monkeypatch.setattr(images, "contact_sheet", seen)
    assert ddgen("sample", "cat", "-s", "7", "-n", "2", "--steps", "1", "--grid", "-o", "s/")[0] == 0
    assert ddgen("vary", "s/cat-7.png", "-n", "3", "-s", "1", "--grid", "-o", "v/")[0] == 0
    assert shown == [["seed 7", "seed 8"], ["seed 7 toward 1", "seed 7 toward 2", "seed 7 toward 3"]]


def test_a_variation_has_the_model_of_its_picture(ddgen: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rules and adapters come back from what it says, and what is typed goes before them."""
    from ddgen.cli import vary

    assert ddgen("sample", "cat", "-s", "7", "--steps", "1", "-o", "c.png")[0] == 0
    made_by: list[object] = []
    monkeypatch.setattr(sample, "deliver", lambda context, values, spec, *rest: made_by.append(spec.clip_skip))
    found = foreign.interpret(containers.read_texts(Path("c.png").read_bytes()))
    assert found is not None
    monkeypatch.setattr(editing.Picture, "says", lambda picture: found)
    found.record["changes"] = {"clip_skip": 2}
    assert ddgen("vary", "c.png")[0] == 0 and ddgen("vary", "c.png", "--clip-skip", "3")[0] == 0
    assert made_by == [2, 3]
    found.record["weights"] = {"model": "ab" * 32, "lora:ink.pt x 0.8": "cd" * 32}
    code, _, err = ddgen("vary", "c.png")
    assert (code, err) == (
        5,
        "ddgen: error: image 'c.png': it was made with lora 'ink.pt'; give it with --lora ink.pt:0.8, or use --like picture\n",
    )
    assert ddgen("vary", "c.png", "--like", "picture")[0] == 0
    found.record["weights"], found.record["job"]["controls"] = {}, [{"kind": "canny"}]
    assert ddgen("vary", "c.png")[0] == 0, "what a control's picture made is varied by its pixels"
    assert vary.known_model(found, SimpleNamespace(params={"model": None}), {"weights_file": None}) is None


def test_upscale(ddgen: Call) -> None:
    Image.fromarray(noisy_picture(60, 100)).save("s.png")
    code, _, err = ddgen("upscale", "s.png", "--by", "1.5", "--steps", "4", "-s", "1", "-o", "u.png")
    assert code == 0 and read("u.png").shape == (90, 150, 3), err
    record = json.loads(ddgen("upscale", "p.png", "--by", "4", "--plan", "--json")[1])
    assert (record["width"], record["height"], record["edit"]["window"]) == (
        512,
        512,
        128,
    )


def test_an_enlarged_tile_stays_one(ddgen: Call) -> None:
    assert ddgen("sample", "cat", "--tile", "x", "-s", "1", "--steps", "1", "-o", "t.png")[0] == 0
    command = ("upscale", "t.png", "--by", "2", "--steps", "3", "-s", "1", "--window", "128")
    assert ddgen(*command, "-o", "u.png")[0] == 0 and said("u.png")["tile"] == "x"
    record = json.loads(ddgen("upscale", "p.png", "--tile", "xy", "--by", "4", "--plan", "--json")[1])
    assert (record["tile"], record["edit"]["window"]) == ("xy", 128)
    steer = ("--control", "tile:p.png", "--control-model", "c.safetensors")
    weights("c.safetensors", "input_hint_block.0.weight", "input_blocks.0.0.weight")
    weights("u.safetensors", "conv_first.weight")
    out = ddgen("upscale", "p.png", *steer, "--upscaler", "u.safetensors", "--plan", "--json")[1]
    assert [found["kind"] for found in json.loads(out)["controls"]] == ["tile", "upscaler"]


def test_morph(ddgen: Call) -> None:
    short = ("--steps", "1", "-s", "3", "--frames", "4", "-q")
    assert ddgen("morph", "cat", "dog", *short)[1] == "cat-to-dog-3.webp\n"
    with Image.open("cat-to-dog-3.webp") as film:
        assert 2 <= film.n_frames <= 4 and film.size == (128, 128), "equal frames are one, shown for longer"
    assert said("cat-to-dog-3.webp")["prompt"] == "dog"
    assert ddgen("morph", "cat", "dog", *short, "--bounce", "-o", "f.gif")[1] == "f.gif\n"
    with Image.open("f.gif") as film:
        assert 2 <= film.n_frames <= 6
    assert ddgen("morph", "cat", "dog", *short, "-o", "f.gif")[0] == 7
    assert ddgen("morph", "cat", "dog", *short, "-o", "frames/")[1].split() == [
        f"frames/000{i}.png" for i in (1, 2, 3, 4)
    ]
    assert ddgen("sample", "cat", "--steps", "1", "-s", "3", "-q", "-o", "end.png")[0] == 0
    assert np.array_equal(read("frames/0001.png"), read("end.png")), "the ends are what sample makes"
    assert said("frames/0002.png")["toward"] == "dog"


def test_controls_are_read_before_a_model_is_loaded(ddgen: Call) -> None:
    header = {
        name: {"dtype": "F16", "shape": [1], "data_offsets": [2 * i, 2 * i + 2]}
        for i, name in enumerate(("input_hint_block.0.weight", "input_blocks.0.0.weight"))
    }
    text = json.dumps(header).encode()
    Path("c.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert ddgen("sample", "cat", "-s", "7", "--steps", "1", "-o", "c.png")[0] == 0
    steer = ("--control", "canny:p.png:0.8:0:0.5", "--control-model", "c.safetensors", "--plan", "--json")
    masked = ("inpaint", "p.png", "cat", "--mask", "m.png")
    seen = []
    for command in (
        ("sample", "cat"), ("edit", "p.png", "cat"), masked, (*masked, "--mask-crop"), ("vary", "p.png"), ("vary", "c.png")
    ):  # fmt: skip
        code, out, err = ddgen(*command, *steer)
        assert code == 0, err
        (record,) = json.loads(out)["controls"]
        assert (record["kind"], record["weight"], record["start"], record["end"]) == ("canny", 0.8, 0.0, 0.5)
        assert len(record["image"]) == len(record["model"]) == 64
        seen.append(record["image"])
    assert len(set(seen[:3])) == 1 and seen[3] != seen[0], "what is cropped of the picture is cropped of its map"
    assert ddgen(*masked, "--control", "canny:p.png", "--plan")[0] == 2


def test_a_map_lies_over_the_picture_whatever_part_is_worked_on(ddgen: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddgen.app import control
    from ddgen.app.verbs import ControlFile

    weights("c.safetensors", "input_hint_block.0.weight", "input_blocks.0.0.weight")
    shown: list[ControlFile] = []

    def load(pipeline: object, file: ControlFile, **how: object) -> control.Control:
        shown.append(file)
        return control.Control(None, None, end=0.0)  # one that never acts

    monkeypatch.setattr(control, "load", load)
    place = np.zeros((256, 256), np.uint8)
    place[64:128, 80:180] = 255  # m.png twice as large
    Image.fromarray(place).save("map.png")
    command = ("inpaint", "p.png", "cat", "--mask", "m.png", "--mask-crop", "--mask-padding", "0", "--steps", "2", "-q", "-f", "-o", "i.png")
    steer = ("--control", "map:map.png", "--control-model", "c.safetensors")
    code, _, err = ddgen(*command, *steer)
    assert code == 0, err
    (file,) = shown
    assert file.picture.shape[:2] != (128, 128) and (file.picture > 127).mean() > 0.9, "what the network looks at"
    assert np.array_equal(read("i.png")[:32], read("p.png")[:32])


def test_the_windows_of_an_outpaint_see_their_parts_of_a_map(ddgen: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddgen.app import control
    from ddgen.app.verbs import ControlFile

    weights("c.safetensors", "input_hint_block.0.weight", "input_blocks.0.0.weight")
    shown: list[ControlFile] = []

    def load(pipeline: object, file: ControlFile, **how: object) -> control.Control:
        shown.append(file)
        return control.Control(None, None, end=0.0)

    monkeypatch.setattr(control, "load", load)
    place = np.zeros((128, 384, 3), np.uint8)
    place[:, :192] = (255, 0, 0)
    Image.fromarray(place).save("map.png")
    steer = ("--control", "map:map.png", "--control-model", "c.safetensors")
    code, _, err = ddgen("outpaint", "p.png", "dog", "--by", "right256", "--steps", "2", "-o", "o.png", *steer)
    assert code == 0, err
    red = [round(float(file.picture[..., 0].mean()) / 255, 2) for file in shown]
    assert red == [1.0, 0.5, 0.0, 0.0][: len(red)] and len(red) == 4, "each window of 128 goes on by 64"
    assert np.array_equal(read("o.png")[:, :128], read("p.png")) and len(said("o.png")["controls"]) == 1


def test_without_a_prompt_an_outpaint_goes_on_with_the_picture_alone(ddgen: Call) -> None:
    """Its own prompt names what stands there already, and would have it drawn again."""
    assert ddgen("sample", "cat", "-s", "7", "--steps", "1", "-o", "c.png")[0] == 0
    command = ("outpaint", "c.png", "--by", "all25%", "--plan", "--json")
    plain, worded, kept = (
        json.loads(ddgen(*command, *more)[1]) for more in ((), ("--negative", "dog"), ("--guidance", "4"))
    )
    assert (plain["prompt"], plain["guidance"]) == ("", 1.0)
    assert worded["guidance"] == 2.5 and kept["guidance"] == 4.0
    assert json.loads(ddgen("outpaint", "c.png", "a dog", *command[2:])[1])["guidance"] == 2.5
    quick = ("-s", "5", "--steps", "1", "-q")
    assert ddgen("outpaint", "c.png", "--by", "left8", *quick)[1] == "c-5.png\n"
    assert [ddgen(*verb, *quick)[1] for verb in (("vary", "p.png"), ("upscale", "p.png", "--by", "1.5"))] == [
        "p-5.png\n", "p-5-2.png\n"
    ], "what has no prompt is called after its picture"  # fmt: skip


def weights(path: str, *names: str, shape: tuple[int, ...] = (2, 2)) -> None:
    """Write a safetensors file of zeros."""
    each = int(np.prod(shape)) * 2
    header = {
        name: {"dtype": "F16", "shape": shape, "data_offsets": [each * i, each * i + each]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + bytes(each * len(names)))


def test_image_prompts_are_read_before_a_model_is_loaded(ddgen: Call) -> None:
    weights("ip.safetensors", "image_proj.proj.0.weight", "image_proj.proj.2.weight", "image_proj.proj.3.weight",
            "ip_adapter.1.to_k_ip.weight")  # fmt: skip
    shown = ("--image-prompt", "p.png:0.6", "--image-prompt", "a.png", "--image-prompt-model", "ip.safetensors")
    assert "no image encoder beside the IP-Adapter" in ddgen("sample", "cat", *shown, "--plan")[2]
    os.mkdir("image_encoder")
    Path("image_encoder/config.json").write_text("{}")
    weights("image_encoder/model.safetensors", "x")
    for command in (("sample", "cat"), ("edit", "p.png", "cat"), ("inpaint", "p.png", "cat", "--mask", "m.png")):
        code, out, err = ddgen(*command, *shown, "--plan", "--json")
        assert code == 0, err
        first, second = json.loads(out)["controls"]
        assert (first["kind"], first["weight"], second["weight"]) == ("image-prompt", 0.6, 1.0)
        assert first["image"] != second["image"] and first["model"] == second["model"]
    assert ddgen("sample", "cat", *shown, "--image-encoder", "none", "--plan")[0] == 5


def test_a_network_that_enlarges_is_said(ddgen: Call) -> None:
    weights("u.safetensors", "conv_first.weight")
    code, out, err = ddgen("upscale", "p.png", "--upscaler", "u.safetensors", "--plan", "--json")
    assert code == 0, err
    (record,) = json.loads(out)["controls"]
    assert record["kind"] == "upscaler" and len(record["image"]) == len(record["model"]) == 64
    assert "no architecture that spandrel knows" in ddgen("upscale", "p.png", "--upscaler", "u.safetensors")[2]
    assert ddgen("upscale", "p.png", "--upscaler", "p.png", "--plan")[0] == 5


def test_tiles_and_variations_are_settings_of_sample(ddgen: Call) -> None:
    record = json.loads(
        ddgen(
            "sample",
            "cat",
            "--tile",
            "x",
            "--variation",
            "0.3",
            "--variation-seed",
            "9",
            "--plan",
            "--json",
        )[1]
    )
    assert (record["tile"], record["variation"], record["variation_seed"]) == (
        "x",
        0.3,
        9,
    )
    assert ddgen("sample", "cat", "--tile", "z", "--plan")[0] == 2
    assert ddgen("sample", "cat", "--variation", "0.3", "--plan")[0] == 2
    assert (
        ddgen(
            "sample",
            "cat",
            "--tile",
            "xy",
            "--steps",
            "1",
            "-s",
            "1",
            "-q",
            "-o",
            "t.png",
        )[0]
        == 0
    )
    assert said("t.png")["tile"] == "xy"


def test_no_flag_of_sample_is_taken_and_forgotten() -> None:
    """A flag that is new to `sample` is either heeded by settle, words and deliver, or named in SAMPLE_ALONE."""
    heeded = """prompts negative prompt_syntax style styles_file expand wildcards strict_tokens num seed width height size
        best scorer ar scale tile steps guidance guidance_rescale guidance_interval sampler spacing sigmas eta rng variation
        variation_seed model weights_file lora embedding vae refiner refiner_start prediction clip_skip ema device dtype
        offload text_backend batch_size keep_alive offline output force format quality grid metadata plan json null progress
        preview color quiet verbose debug version context""".split()
    found = set(inspect.signature(sample.sample).parameters)
    assert found - set(editing.SAMPLE_ALONE) <= set(heeded)


def test_plain_pictures_say_nothing_of_edits() -> None:
    plain = Job("x", "", 7, 64, 64, 2, 1.0, 0.0, None, "euler", "linspace", None, None, 1, "m")
    assert not {"tile", "variation", "toward", "edit"} & set(
        metadata.settings_of(plain, metadata.Origin())["job"]
    )
    assert Edit("edit") != Edit("vary")


def big_black() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    return buffer.getvalue()


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "cut.png": lambda: Path("p.png").read_bytes()[:20000],
    "text.png": lambda: b"not a picture at all",
    "empty.png": lambda: b"",
    "big.png": big_black,
    "film.webp": animated,
}
ROWS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "missing": (("edit", "q.png", "x"), 4, "image 'q.png': no such file or directory; check the path"),
    "directory": (("edit", ".", "x"), 4, "image '.': is a directory; check the path"),
    "cut short": (
        ("edit", "cut.png", "x"),
        4,
        "image 'cut.png': cut short or damaged; get it from its source again",
    ),
    "no picture": (
        ("edit", "text.png", "x"),
        4,
        "image 'text.png': not a PNG, JPEG or WebP picture; convert it to PNG",
    ),
    "nothing": (
        ("vary", "empty.png"),
        4,
        "image 'empty.png': not a PNG, JPEG or WebP picture; convert it to PNG",
    ),
    "bomb": (("upscale", "big.png"), 4, "image 'big.png': over the 64 megapixel limit; scale it down"),
    "animated": (
        ("outpaint", "film.webp", "x", "--by", "all10%"),
        4,
        "image 'film.webp': is animated; save one of its frames as PNG",
    ),
    "no prompt": (
        ("edit", "p.png"),
        2,
        'no prompt is given, and the picture says none; write one, as in: ddgen edit IMAGE "a red penguin"',
    ),
    "strength 0": (
        ("edit", "p.png", "x", "--strength", "0"),
        2,
        "--strength 0 would change nothing; use 0.05 to 1",
    ),
    "strength 2": (
        ("edit", "p.png", "x", "--strength", "2"),
        2,
        "--strength 2 is out of range; use 0.05 to 1",
    ),
    "strength nan": (
        ("edit", "p.png", "x", "--strength", "nan"),
        2,
        "--strength nan is out of range; use 0.05 to 1",
    ),
    "strength word": (
        ("vary", "p.png", "--strength", "much"),
        2,
        "--strength 'much' is not a number; use one as 7.5",
    ),
    "fit": (("edit", "p.png", "x", "--fit", "corp"), 2, "unknown fit 'corp'; did you mean 'crop'?"),
    "image guidance": (
        ("edit", "p.png", "x", "--image-guidance", "1.5"),
        2,
        "model 'sticker' has no --image-guidance; drop it, or choose an InstructPix2Pix --model",
    ),
    "no mask": (
        ("inpaint", "p.png", "x"),
        2,
        "nothing says what to make anew; give one of --mask FILE, --mask alpha and --box X,Y,W,H",
    ),
    "two masks": (
        ("inpaint", "p.png", "x", "--mask", "m.png", "--box", "0,0,9,9"),
        2,
        "--mask and --box both say what to make anew; give one of --mask FILE, --mask alpha and --box X,Y,W,H",
    ),
    "mask of another size": (
        ("inpaint", "p.png", "x", "--mask", "s.png"),
        4,
        "mask 's.png' is 64x32, the picture is 128x128; give one of the picture's size",
    ),
    "mask missing": (
        ("inpaint", "p.png", "x", "--mask", "q.png"),
        4,
        "image 'q.png': no such file or directory; check the path",
    ),
    "no alpha": (
        ("inpaint", "p.png", "x", "--mask", "alpha"),
        4,
        "image 'p.png' has no alpha; give --mask FILE or --box X,Y,W,H",
    ),
    "box outside": (
        ("inpaint", "p.png", "x", "--box", "100,0,64,64"),
        2,
        "--box '100,0,64,64' is not inside the picture of 128x128; use X,Y,W,H in pixels",
    ),
    "box of words": (
        ("inpaint", "p.png", "x", "--box", "left"),
        2,
        "--box 'left' is not four numbers; use X,Y,W,H in pixels, as 64,40,48,48",
    ),
    "grow": (
        ("inpaint", "p.png", "x", "--box", "0,0,9,9", "--mask-grow", "999"),
        2,
        "--mask-grow 999 is out of range; use -512 to 512",
    ),
    "no way": (("outpaint", "p.png", "x"), 2, "nothing says how far; give one of --by all25% and --to WxH"),
    "by words": (
        ("outpaint", "p.png", "x", "--by", "far"),
        2,
        "--by 'far' cannot be read; use sides and pixels, as up32,left16 or all25%",
    ),
    "by nothing": (
        ("outpaint", "p.png", "x", "--by", "left0"),
        2,
        "the canvas is no larger than the picture; give more, as --by all25%",
    ),
    "to less": (
        ("outpaint", "p.png", "x", "--to", "64x64"),
        2,
        "--to '64x64' is smaller than the picture of 128x128; give more, as --by all25%",
    ),
    "to much": (
        ("outpaint", "p.png", "x", "--by", "all9999"),
        2,
        "20126x20126 is over the 64 megapixel limit of a result; go less far",
    ),
    "like seed": (
        ("vary", "p.png", "--like", "seed"),
        4,
        "image 'p.png' does not say how ddgen made it; use --like picture",
    ),
    "two levels": (
        ("vary", "p.png", "--subtle", "--strong"),
        2,
        "--subtle and --strong do not go together; drop one of them",
    ),
    "variation of pixels": (
        ("vary", "p.png", "--variation", "0.3"),
        2,
        "--variation moves a seed, and this varies the pixels; use --strength, which says how much of the picture may change",
    ),
    "upscale by": (("upscale", "p.png", "--by", "99"), 2, "--by 99 is out of range; use 1 to 16"),
    "upscale too far": (
        ("upscale", "p.png", "--by", "16", "--window", "3"),
        2,
        "--window 3 is out of range; use 0, or 64 to 4096",
    ),
    "one prompt": (
        ("morph", "cat"),
        2,
        'a morph needs two prompts; write both: ddgen morph "a red apple" "a penguin"',
    ),
    "three seeds": (
        ("morph", "cat", "dog", "-s", "1,2,3"),
        2,
        "3 seeds do not fit 2 prompts; give one --seed, or one a prompt",
    ),
    "frames": (("morph", "cat", "dog", "--frames", "1"), 2, "--frames 1 is out of range; use 2 to 1000"),
    "morph place": (
        ("morph", "a", "b", "-o", "x.png"),
        2,
        "--output 'x.png' is no place for a morph; use a .webp, a .gif or a directory",
    ),
    "control without its model": (
        ("sample", "x", "--control", "canny:p.png"),
        2,
        "1 --control and 0 --control-model are given; "
        "give one --control-model FILE for each --control, in the same order",
    ),
    "control of no kind": (
        ("sample", "x", "--control", "cany:p.png", "--control-model", "m.png"),
        2,
        "unknown control type 'cany'; did you mean 'canny'?",
    ),
    "image prompt without its model": (
        ("sample", "x", "--image-prompt", "p.png"),
        2,
        "1 --image-prompt and 0 --image-prompt-model are given; "
        "give one --image-prompt-model FILE for all, or one for each, in the same order",
    ),
    "image prompt weight": (
        ("sample", "x", "--image-prompt", "p.png:11", "--image-prompt-model", "m.png"),
        2,
        "--image-prompt weight 11 is out of range; use -10 to 10",
    ),
    "image prompt model": (
        ("sample", "x", "--image-prompt", "p.png", "--image-prompt-model", "none.bin"),
        5,
        "model 'none.bin' does not exist; check the path, or see 'ddgen models'",
    ),
    "encoder alone": (
        ("edit", "p.png", "x", "--image-encoder", "d"),
        2,
        "--image-encoder needs --image-prompt; add one",
    ),
    "padding without a crop": (
        ("inpaint", "p.png", "x", "--box", "0,0,64,64", "--mask-padding", "8"),
        2,
        "--mask-padding needs --mask-crop; add it",
    ),
    "standard input twice": (("edit", "-", "-"), 2, "standard input is named twice; give '-' once"),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(ddgen: Call, name: str) -> None:
    arguments, code, line = ROWS[name]
    Image.fromarray(noisy_picture(32, 64)).save("s.png")
    for file in arguments:
        if file in FILES:
            Path(file).write_bytes(FILES[file]())
    before = sorted(os.listdir("."))
    assert ddgen(*arguments) == (code, "", f"ddgen: error: {line}\n")
    assert sorted(os.listdir(".")) == before, "nothing is written"


def test_a_picture_from_a_pipe(tmp_path: Path) -> None:
    place = Place(tmp_path)
    done = place.shell(
        'ddgen sample "a penguin" -s 1 -q -o - | ddgen edit - "a red penguin" -s 2 -q -o - > red.png; ddgen edit - x </dev/null'
    )
    assert read(str(place.path / "red.png")).shape == (128, 128, 3), done.stderr
    assert done.returncode == 4 and b"not a PNG, JPEG or WebP picture" in done.stderr
