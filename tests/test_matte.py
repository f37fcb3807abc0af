"""Cutting out: what was laid on a plain ground comes back, whatever its own colours; wrong uses are named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ddgen.app import plan
from ddgen.app.stickers import laid_on
from ddgen.errors import ModelError, UsageError
from ddgen.io import images
from ddgen.io.matte import key_out
from ddgen.request import Request
from ddgen.weights import registry
from ddgen.weights.spec import spec_from_json, spec_to_json

MAGENTA = (255, 0, 255)
GROUND = {"kind": "key", "suffix": " on a magenta background", "red": 255, "green": 0, "blue": 255}


def disc(colour: tuple[int, int, int], side: int = 128) -> np.ndarray:
    """A disc with a soft rim and a hole, RGBA."""
    big = Image.new("RGBA", (4 * side, 4 * side), (*colour, 0))
    draw = ImageDraw.Draw(big)
    draw.ellipse((side // 2, side // 2, 7 * side // 2, 7 * side // 2), fill=(*colour, 255))
    draw.ellipse((7 * side // 4, 7 * side // 4, 9 * side // 4, 9 * side // 4), fill=(*colour, 0))
    return np.asarray(big.resize((side, side), Image.Resampling.BOX))


@pytest.mark.parametrize(
    "colour", [(255, 255, 255), (20, 20, 20), (220, 30, 30), (142, 36, 170), (244, 143, 177), (40, 160, 60)]
)
def test_what_lay_on_the_key_comes_back(colour):
    wanted = disc(colour)
    found = key_out(laid_on(wanted, MAGENTA), MAGENTA)
    inside, outside = wanted[..., 3] == 255, wanted[..., 3] == 0
    assert (found[outside] == 0).all()
    deep = np.asarray(Image.fromarray(inside).resize((32, 32), Image.Resampling.BOX)) == 1
    assert (found[..., 3][::4, ::4][deep & inside[::4, ::4]] >= 200).all()
    assert np.abs(found[64, 40].astype(int) - (*colour, 255)).max() <= 1  # four pixels and more from the ground
    rim = ~inside & ~outside
    assert np.abs(found[..., 3][rim].astype(int) - wanted[..., 3][rim]).mean() < 60
    visible = found[..., 3] > 60
    assert np.abs(found[visible][:, :3].astype(int) - colour).mean() < 25, "no rim of the key's colour"


@pytest.mark.parametrize("colour", [(255, 255, 255), (20, 140, 220), (142, 36, 170)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_thing_that_touches_the_edge_keeps_no_tint_there(colour, turns):
    """Drawn as the model draws: it runs out of the picture, and its last pixels have some of the ground's colour."""
    thing = np.roll(disc(colour), -40, axis=1)
    thing[:, 88:] = 0
    thing[:, 0:4, 3] = thing[:, 0:4, 3] * np.array([0.75, 0.8, 0.85, 0.9])
    found = np.rot90(key_out(np.rot90(laid_on(thing, MAGENTA), turns).copy(), MAGENTA), -turns)
    edge = np.concatenate([found[40:52, :6], found[76:88, :6]])  # above and below the hole
    tint = [part[..., [0, 2]].min(-1).astype(int) - part[..., 1] for part in (edge, np.array(colour))]
    assert (edge[..., 3] > 100).all() and tint[0].max() < max(0, int(tint[1])) + 12
    assert (found[40:52, 8:20, 3] == 255).all(), "what lies deeper is whole"


def test_a_picture_without_ground_stays_whole():
    pixels = np.full((64, 64, 3), (90, 140, 60), np.uint8)
    found = key_out(pixels, MAGENTA)
    assert (found[..., 3] == 255).all() and np.array_equal(found[..., :3], pixels)


def test_flat_lays_on_white_and_png_keeps_alpha(tmp_path):
    cut = key_out(laid_on(disc((220, 30, 30)), MAGENTA), MAGENTA)
    assert (images.flat(cut)[0, 0] == 255).all() and images.flat(cut).shape == (128, 128, 3)
    for format in ("png", "webp"):
        path = tmp_path / f"a.{format}"
        path.write_bytes(images.encode(cut, format, 100))
        with Image.open(path) as image:
            assert image.mode == "RGBA" and np.array_equal(np.asarray(image)[..., 3], cut[..., 3])
    assert images.contact_sheet([cut, cut], ["x"], ["1", "2"]).shape[-1] == 3


def test_a_model_without_a_ground_and_jpeg_are_refused():
    spec = replace(registry.find(None), ground=None)
    with pytest.raises(UsageError, match="draws no ground that can be cut out"):
        next(plan.plan(Request(("a fox",), transparent=True), spec))
    keyed = replace(spec, ground=GROUND)
    job = next(plan.plan(Request(("a fox",), seed=1, transparent=True), keyed))
    assert job.transparent
    with pytest.raises(UsageError, match="JPEG files have no alpha"):
        plan.check_alpha([job], "jpeg")
    plan.check_alpha([job], "png")


def test_the_ground_is_part_of_the_spec_and_checked(tmp_path):
    spec = replace(registry.find(None), ground=GROUND)
    path = tmp_path / "m.safetensors"
    assert spec_from_json(spec_to_json(spec), path).ground == GROUND
    for wrong in ({**GROUND, "red": 300}, {"kind": "key"}, {**GROUND, "green": 255}, {**GROUND, "suffix": 3}):
        text = json.loads(spec_to_json(spec)) | {"ground": wrong}
        with pytest.raises(ModelError, match="wrong 'ground'"):
            spec_from_json(json.dumps(text), path)
