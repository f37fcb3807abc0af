"""Pictures and masks on their way to the network and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddgen.app import canvas
from ddgen.app.canvas import (
    REACH,
    Frame,
    crop_box,
    extended,
    feathered,
    fit,
    grown,
    joined,
    passes,
    paste,
    spread,
    work_size,
)
from ddgen.weights.arch import SD15
from ddgen.weights.spec import Spec


def block(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(("size", "ring"), [((75, 50), "xy"), ((75, 50), "x"), ((12, 9), "y"), ((45, 20), "xy")])
def test_where_ends_meet_a_resized_picture_looks_round_them(size: tuple[int, int], ring: str) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    width, height = size
    times = tuple(3 if axis in ring else 1 for axis in "yx")
    many = canvas.resize(np.tile(picture, (*times, 1)), width * times[1], height * times[0])
    down, across = (length if count == 3 else 0 for length, count in ((height, times[0]), (width, times[1])))
    expected = many[down : down + height, across : across + width]
    assert np.array_equal(canvas.resize(picture, width, height, ring), expected)
    assert not np.array_equal(canvas.resize(picture, width, height), expected), "without, the end is an edge"


def test_fitting() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40:] = 200
    assert np.array_equal(fit(picture, 80, 40, "crop"), picture)
    for how in canvas.FITS:
        assert fit(picture, 64, 64, how).shape == (64, 64, 3)
    padded = fit(picture, 80, 80, "pad")
    assert (
        (padded[:20] == 255).all() and (padded[60:] == 255).all() and np.array_equal(padded[20:60], picture)
    )
    cropped = fit(picture, 40, 40, "crop")
    assert np.array_equal(cropped, picture[:, 20:60])
    assert fit(picture, 40, 40, "stretch")[:, -8:].min() > 150


def test_masks_grow_and_shrink_with_a_square_brush() -> None:
    mask = block(20, 30, 5, 10, 9, 12)
    assert np.array_equal(grown(mask, 2), block(20, 30, 3, 8, 11, 14))
    assert np.array_equal(grown(grown(mask, 3), -3), mask) and np.array_equal(grown(mask, 0), mask)
    assert not grown(mask, -1).any()
    edge = block(8, 8, 0, 0, 8, 4)
    assert np.array_equal(grown(edge, -2), block(8, 8, 0, 0, 8, 2)), (
        "the picture's edge is no edge of the mask"
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_feathering_goes_inwards(seed: int, radius: int) -> None:
    mask = grown(np.random.default_rng(seed).random((24, 31)) > 0.97, 3)
    weight = feathered(mask, radius)
    assert ((weight > 0) == mask).all() and weight.max(initial=0) <= 1
    assert not mask.any() or weight.max() == 1, "something is seen in full"
    below, above = (
        np.random.default_rng(seed + i).integers(0, 256, (24, 31, 3), dtype=np.uint8) for i in (1, 2)
    )
    found = paste(below, above, weight)
    assert np.array_equal(found[~mask], below[~mask]) and np.array_equal(
        found[weight == 1], above[weight == 1]
    )


def test_a_frame_of_another_size_changes_only_the_mask() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    mask = block(75, 100, 30, 41, 33, 60)
    frame = Frame((20, 11, 83, 70), 64, 128)
    assert frame.cut(picture).shape == (128, 64, 3)
    assert frame.cut_mask(mask).any() and Frame((0, 0, 100, 75), 8, 8).cut_mask(mask).any(), (
        "small is not lost"
    )
    found = frame.put(picture, np.zeros((128, 64, 3), np.uint8), feathered(mask, 1))
    assert np.array_equal(found[~mask], picture[~mask]) and not found[mask].any()
    same = Frame((0, 0, 100, 75), 100, 75)
    assert np.array_equal(same.cut(picture), picture)


def test_the_surroundings_of_a_mask() -> None:
    left, top, right, bottom = crop_box(block(200, 300, 90, 100, 100, 180))
    assert (
        left == 60 and right == 220 and top <= 60 and bottom >= 130 and (right - left) <= 2 * (bottom - top)
    )
    assert crop_box(block(50, 50, 0, 0, 50, 50)) == (0, 0, 50, 50)
    assert crop_box(block(200, 300, 90, 100, 100, 180), 0) == (100, 75, 180, 115)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_passes_fill_a_canvas_each_beside_what_is_known(data: st.DataObject) -> None:
    draw = data.draw
    wide, high = draw(st.integers(10, 200)), draw(st.integers(10, 200))
    margins = [draw(st.sampled_from([0, 1, 17, 64, 230])) for _ in range(4)]
    width, height = wide + margins[0] + margins[2], high + margins[1] + margins[3]
    known = (margins[0], margins[1], margins[0] + wide, margins[1] + high)
    todo = ~block(height, width, known[1], known[0], known[3], known[2])
    alone = width <= 192 and height <= 128
    for box in passes(width, height, known, 128, 85) if todo.any() else ():
        left, top, right, bottom = box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left <= 128 and bottom - top <= 85) or (alone and box == (0, 0, width, height))
        part = todo[top:bottom, left:right]
        assert not part.all() and (alone or part.any())
        todo[top:bottom, left:right] = False
    assert not todo.any()


def test_a_larger_canvas() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    board, new = extended(picture, 1, 2, 3, 4)
    assert board.shape == (8, 6, 3) and np.array_equal(board[2:4, 1:3], picture) and new.sum() == 48 - 4
    assert (board[1, 0] == picture[0, 0]).all(), "diagonally beside one known place alone"
    assert (board >= picture.min((0, 1))).all() and (board <= picture.max((0, 1))).all()


def test_colours_meet_at_the_border_and_are_left_alone_far_away() -> None:
    below = np.full((40, 80, 3), 100, np.uint8)
    above = np.full((40, 80, 3), 200, np.uint8)
    mask = block(40, 80, 0, 30, 40, 80)
    found = joined(below, above, mask)
    assert abs(int(found[20, 30, 0]) - 100) <= 1 and found[20, 30 + REACH, 0] == 200
    assert np.array_equal(found[~mask], above[~mask]), "what is known is the paste's matter"
    rising = np.diff(found[20, 30:, 0].astype(int))
    assert (rising >= 0).all() and rising.max() <= 6, "no step anywhere on the way"


def test_what_is_new_keeps_its_own_detail_where_it_joins() -> None:
    rng = np.random.default_rng(2)
    detail = rng.integers(-9, 10, (40, 80, 3))
    below = np.full((40, 80, 3), 100, np.uint8)
    mask = block(40, 80, 0, 40, 40, 80)
    plain, rich = (
        joined(below, above.astype(np.uint8), mask).astype(int)
        for above in (np.full((40, 80, 3), 130), 130 + detail)
    )
    kept = (rich - plain)[:, 40 + REACH // 2 :]
    correlation = np.corrcoef(kept.ravel(), detail[:, 40 + REACH // 2 :].ravel())[0, 1]
    assert correlation > 0.9


def test_values_are_carried_outwards_ring_by_ring_and_levelled() -> None:
    seen = np.zeros((9, 9), bool)
    seen[3:6, 3:6] = True
    values = np.where(seen, 1.0, 0.0)[..., None] * np.array([2.0, 5.0])
    into = ~seen
    into[:, 8] = False
    found, rings = spread(values, seen, into)
    assert (found[into] == [2.0, 5.0]).all() and (found[:, 8] == 0).all()
    assert rings[4, 2] == 1 and rings[0, 0] == 3 and rings[4, 4] == 0 and rings[4, 8] == 0
    _, near = spread(values, seen, into, 2)
    assert near.max() == 2 and near[0, 0] == 0
    stripes = np.zeros((20, 40, 1))
    stripes[:, :4] = np.arange(20).reshape(20, 1, 1) % 2 * 100.0
    edge = block(20, 40, 0, 0, 20, 4)
    far, _ = spread(stripes, edge, ~edge)
    assert np.ptp(far[:, 5, 0]) > np.ptp(far[5:15, 20, 0]) and np.ptp(far[5:15, 20, 0]) < 10, "no streaks"


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 512), (512, 512)),
        ((640, 448), (640, 448)),
        ((4000, 3000), (592, 448)),
        ((100, 100), (512, 512)),
        ((511, 512), (512, 512)),
    ],
)
def test_the_size_at_which_the_network_sees_a_picture(size: tuple[int, int], seen: tuple[int, int]) -> None:
    found = work_size(Spec("sd", SD15), *size)
    assert found[0] % 64 == found[1] % 64 == 0
    assert abs(found[0] - seen[0]) <= 64 and abs(found[1] - seen[1]) <= 64


def test_digests_tell_shapes_apart() -> None:
    flat = np.zeros((2, 8, 3), np.uint8)
    assert canvas.digest(flat) != canvas.digest(flat.reshape(4, 4, 3))
