"""`ddgen eval`: things found on grounds, the evaluator on shapes it has not seen, verdicts, the suite, the report."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddgen.app import evaluate, judge, keying, report, suite, verdicts
from ddgen.app.concepts import BACKGROUNDS, COLOURS, STYLES, concepts, held_out
from ddgen.app.emoji import SEEN, UNSEEN, Emoji, Label
from ddgen.app.scenes import Scene
from ddgen.errors import InputError, ModelError
from ddgen.weights.checkpoint import save_tensors

DDGEN = str(Path(sys.executable).with_name("ddgen"))
SHAPES = ("disc", "square", "cross", "wedge")
FOLDER = Path(__file__).resolve().parents[1] / "prompts" / "eval"


def shape(name: str, colour: tuple[int, int, int] = (220, 40, 40), size: float = 0.8, side: int = 64) -> np.ndarray:
    """An RGBA drawing."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    x, y = x / size, y / size
    masks = {
        "disc": x * x + y * y < 1,
        "square": np.maximum(abs(x), abs(y)) < 1,
        "cross": (np.minimum(abs(x), abs(y)) < 0.33) & (np.maximum(abs(x), abs(y)) < 1),
        "wedge": (abs(y) < 1) & (abs(x) < (y + 1) / 2),
    }
    return np.dstack([np.broadcast_to(np.uint8(colour), (side, side, 3)), np.uint8(255) * masks[name]])


@pytest.fixture(scope="module")
def shapes() -> Emoji:
    rng, styles = np.random.default_rng(0), (*SEEN, *UNSEEN)
    pixels = [
        shape(name, tuple(rng.integers(20, 200, 3)), 0.7 + 0.25 * rng.random()) for _ in styles for name in SHAPES
    ]
    labels = tuple(Label(name, name, ()) for name in SHAPES)
    return Emoji(labels, styles, np.stack(pixels), np.tile(np.arange(4), len(styles)), np.repeat(np.arange(len(styles)), 4))


@pytest.fixture(scope="module")
def court(shapes: Emoji) -> verdicts.Court:
    real = {(SHAPES[c], shapes.styles[s]): keying.fitted(raw) for raw, c, s in zip(shapes.pixels, shapes.concept, shapes.style)}
    return verdicts.Court(judge.fit(shapes, SHAPES), SHAPES, {place: cut for place, cut in real.items() if place[1] in SEEN})


def on(ground: tuple[int, int, int], *parts: tuple[np.ndarray, int, int], side: int = 128) -> np.ndarray:
    canvas = Image.new("RGBA", (side, side), (*ground, 255))
    for raw, left, top in parts:
        canvas.alpha_composite(Image.fromarray(raw), (left, top))
    return np.asarray(canvas.convert("RGB"))


def test_things_are_found_on_any_ground() -> None:
    for name, ground in {**BACKGROUNDS, "white": (255, 255, 255)}.items():
        other = (250, 250, 90) if name != "yellow" else (20, 20, 120)
        keyed = keying.key(on(ground, (shape("disc", other), 10, 30), (shape("cross", other), 60, 60)))
        assert len(keyed.things) in (1, 2) and keyed.ground == ground
        if name != "magenta":
            assert keying.background(keyed.ground) == name


def test_holes_belong_to_the_thing_and_crumbs_do_not_count() -> None:
    ring = shape("disc", (200, 30, 30))
    ring[24:40, 24:40, :3] = 255  # white inside
    dot = shape("disc", (0, 0, 0), 0.1)
    keyed = keying.key(on((255, 255, 255), (ring, 0, 0), (dot, 64, 64)))
    assert len(keyed.things) == 1
    assert keyed.things[0].sum() == pytest.approx(np.pi * (0.8 * 16) ** 2, rel=0.05), "in pixels of the half-size picture"
    assert keying.key(on((10, 200, 10))).things == ()


def test_parts_hang_together_by_sides() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:2, :2] = mask[2:4, 2:4] = mask[40:50, 40:60] = True
    assert [int(part.sum()) for part in keying.components(mask)] == [200, 4, 4]


def test_colours_are_named_by_hue() -> None:
    import colorsys

    for name, (hue, _, _) in COLOURS.items():
        rgb = tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue / 360, 0.9, 0.9))
        assert keying.colour(shape("disc", rgb)) == name


def test_a_cut_out_is_fitted_whatever_its_size_and_place() -> None:
    small = keying.key(on((255, 255, 255), (shape("cross", size=0.5), 5, 60)))
    large = keying.key(on((66, 133, 244), (shape("cross", size=0.95), 60, 2)))
    a, b = (judge.whole(keyed) for keyed in (small, large))
    assert np.abs(a[..., 3].astype(int) - b[..., 3]).mean() < 30
    rows = np.flatnonzero((a[..., 3] > 128).any(1))
    assert rows[-1] - rows[0] + 1 == pytest.approx(61, abs=5)


def test_the_evaluator_knows_what_it_was_not_shown(court: verdicts.Court, shapes: Emoji) -> None:
    part = shapes.of(list(SEEN))
    names = court.judge.name([keying.fitted(raw) for raw in part.pixels], SHAPES)
    assert names == [SHAPES[i] for i in part.concept]
    assert court.judge.name([keying.fitted(part.pixels[1])], ("wedge", "square", "unheard-of")) == ["square"]
    assert court.judge.name([], SHAPES) == []


def test_a_judge_is_written_and_read(court: verdicts.Court, tmp_path: Path) -> None:
    judge.save(court.judge, tmp_path / "j.safetensors")
    again = judge.load(tmp_path / "j.safetensors")
    cuts = list(court.real.values())
    assert again.name(cuts, SHAPES) == court.judge.name(cuts, SHAPES)
    save_tensors(tmp_path / "x.safetensors", {"a": again.mean}, {})
    with pytest.raises(ModelError, match="no evaluator"):
        judge.load(tmp_path / "x.safetensors")


ROWS = [
    suite.Row("a disc", "concept", ("disc",)),
    suite.Row("a blue cross", "colour", ("cross",), colour="blue"),
    suite.Row("a square on a yellow background", "background", ("square",), background="yellow"),
    suite.Row("three discs", "count", ("disc",), count=3),
    suite.Row("a cross and a disc", "pair", ("cross", "disc")),
    suite.Row("a disc left of a wedge", "position", ("disc", "wedge"), relation="left of"),
    suite.Row("a wedge above a square", "position", ("wedge", "square"), relation="above"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.prompt)
def test_a_right_picture_is_right_and_a_wrong_one_wrong(row: suite.Row, court: verdicts.Court) -> None:
    made = verdicts.staged(row, court.real, "noto")
    assert made is not None and court.seen(row, made) == verdicts.wanted(row)
    assert not court.right(row, on((255, 255, 255)))
    turned = {"left of": made[:, ::-1], "above": made[::-1]}
    if row.relation:
        assert not court.right(row, turned[row.relation]), "the other order is wrong"
    if row.colour:
        assert not court.right(suite.Row(row.prompt, row.kind, row.concepts, colour="red"), made)
    if row.count:
        assert not court.right(suite.Row(row.prompt, row.kind, row.concepts, count=2), made)
    if row.background:
        assert not court.right(suite.Row(row.prompt, row.kind, row.concepts, background="blue"), made)


def test_no_accuracy_where_the_evaluator_errs() -> None:
    figures = evaluate.Figures("m", right={"concept": (8, 10), "count": (5, 10)})
    checked = {"concept": (95, 100), "count": (80, 100)}
    found = figures.plain(checked)["follows"]
    assert found["concept"]["accuracy"] == 0.8 and found["count"]["accuracy"] is None
    assert figures.plain({"concept": (80, 100), "count": (100, 100)})["follows"]["count"]["accuracy"] is None
    assert not evaluate.trusted({}, "concept")
    text = report.page([figures], checked).decode()
    assert "80% of 10" in text and text.count("no accuracy reported") == 1


def test_held_out_and_trained_are_one_question_to_the_evaluator(court: verdicts.Court) -> None:
    rows = [suite.Row("a", "background", ("square",), background="yellow"), suite.Row("b", "held-out-background", ("disc",), background="blue")]
    checked = evaluate.check(court, rows)
    assert checked["background"][1] == checked["ground"][1] == 2 * len(STYLES) and checked["ground"][0] == 2 * len(STYLES)
    known = checked | {"concept": (10, 10), "background": (9, 10)}
    assert evaluate.trusted(known, "held-out-background") and not evaluate.trusted(known, "colour")


def test_the_ground_alone_needs_nobody_who_knows_the_thing(court: verdicts.Court) -> None:
    row = suite.Row("a disc on a yellow background", "background", ("disc",), background="yellow")
    cross = verdicts.staged(suite.Row("", "background", ("cross",), background="yellow"), court.real, "noto")
    assert verdicts.answers(row, court.seen(row, cross)) == {"background": False, "ground": True}
    white = verdicts.staged(suite.Row("", "concept", ("disc",)), court.real, "noto")
    assert verdicts.answers(row, court.seen(row, white)) == {"background": False, "ground": False}
    assert evaluate.trusted({"ground": (9, 10)}, "ground"), "though the evaluator knows no thing"
    assert not evaluate.trusted({"ground": (8, 10)}, "ground")


def test_a_real_picture_of_a_style_is_not_the_one_it_is_compared_with(court: verdicts.Court) -> None:
    plain = verdicts.staged(suite.Row("", "concept", ("cross",)), court.real, "noto")
    worn = verdicts.staged(suite.Row("", "style", ("cross",), style="noto"), court.real, "twemoji")
    assert 2 < np.abs(plain.astype(int) - worn).mean() < 60


def test_two_models_stand_side_by_side() -> None:
    row, white = suite.Row("a disc", "concept", ("disc",)), on((255, 255, 255))
    one = evaluate.Figures("one", right={"concept": (8, 10)}, shown=[(row, [white], ["disc"], None)])
    two = evaluate.Figures("two", right={"concept": (3, 10)}, shown=[(row, [white], ["cross"], None)], intra=0.25)
    for item, made in ((one, 2.5), (two, 1.25)):
        item.variety["a disc"] = made, 2.0, 16
    checked = {"concept": (95, 100)}
    table = list(report.lines([one, two], checked))
    heading, first = (re.split(" {2,}", line.strip()) for line in table[:2])
    assert heading == ["asked for", "evaluator on real pictures", "one", "two"]
    assert first == ["concept", "95% of 100", "80% of 10 (49% to 94%)", "30% of 10 (11% to 60%)"]
    assert ["Vendi score, 16 seeds: a disc", "2.00", "2.50", "1.25"] in [re.split(" {2,}", line) for line in table]
    inside = ["distance inside a prompt, or a thing", "0.000", "-", "0.250"]  # one seed has no distance
    assert inside in [re.split(" {2,}", line) for line in table]
    assert one.plain(checked)["intra_prompt_distance"] is None and two.plain(checked)["intra_prompt_distance"] == 0.25
    page = report.page([one, two], checked).decode()
    assert page.count("a disc<br><span class=dim>one") == page.count("a disc<br><span class=dim>two") == 1
    assert page.index("class=right") < page.index("class=wrong")


def test_the_page_runs_nothing_and_shows_words_as_words() -> None:
    row = suite.Row("<script>alert(1)</script>", "concept", ("disc",))
    shown = [(row, [on((255, 255, 255))], ["<b>"], None)]
    text = report.page([evaluate.Figures("<i>m", shown=shown)], {}).decode()
    assert "<script" not in text and "<b>" not in text and "<i>" not in text and "&lt;script&gt;" in text
    assert "default-src 'none'" in text and not re.search(r"https?://", text)


def test_the_suite_follows_the_list_and_keeps_the_held_out_apart() -> None:
    rows, icons = suite.build(), {concept.icon for concept in concepts()}
    assert {row.kind for row in rows} == set(suite.KINDS)
    assert all(set(row.concepts) <= icons for row in rows)
    assert len({(row.prompt, row.kind) for row in rows}) == len(rows)
    for row in rows:
        kind, word = ("thing", row.colour) if row.colour else ("background", row.background)
        if word:
            assert held_out(row.concepts[0], word, kind) == row.kind.startswith("held-out")
    known = {concept.icon: concept for concept in concepts()}
    for row in rows:
        if row.kind in ("count", "pair", "position"):
            scene = Scene(tuple(known[icon] for icon in row.concepts), row.relation, row.count)
            assert scene.held_out
    names = {name.rstrip("!") for concept in concepts() for name in concept.names + concept.also}
    assert not names & {word for icon, word in suite.UNSEEN.items() if f"a {word}" in {row.prompt for row in rows if row.kind == "unseen"}}
    assert suite.build(list(concepts())[:20])


def test_the_committed_suite_can_be_read() -> None:
    icons = {concept.icon for concept in concepts()}
    rows = list(suite.read(sorted(FOLDER.glob("*.jsonl"))))
    assert {row.kind for row in rows} == set(suite.KINDS)
    assert all(set(row.concepts) <= icons for row in rows), "write it again: python -m bench.suite"


def test_rows_go_to_lines_and_back(tmp_path: Path) -> None:
    rows = suite.build()
    (tmp_path / "a.jsonl").write_text("\n".join(map(suite.line, rows)))
    assert list(suite.read([tmp_path / "a.jsonl"])) == rows
    for wrong in ('{"prompt": "x"}', "[]", '{"prompt": "x", "kind": "count", "concepts": ["fox"]}', "{", '{"prompt": "x", "kind": "odd", "concepts": ["fox"]}',
                  '{"prompt": "x", "kind": "pair", "concepts": ["fox"]}'):  # fmt: skip
        (tmp_path / "b.jsonl").write_text(wrong)
        with pytest.raises(InputError, match="line 1 is wrong"):
            list(suite.read([tmp_path / "b.jsonl"]))
    with pytest.raises(InputError, match="cannot be read"):
        list(suite.read([tmp_path / "none.jsonl"]))
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(InputError, match="has no rows"):
        list(suite.read([tmp_path / "b.jsonl"]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"kind": "colour", "colour": "mauve"}, "colour 'mauve' is none of red"),
        ({"kind": "background", "background": "mauve"}, "background 'mauve' is none of"),
        ({"kind": "style", "style": "oil"}, "style 'oil' is none of noto"),
        ({"kind": "count", "count": "two"}, 'count "two"'),
        ({"kind": "count", "count": 7}, "count 7 is not 1 to 4"),
        ({"kind": "count", "count": True}, "count true"),
        ({"kind": "count"}, "kind 'count' needs count"),
        ({"prompt": 7}, "prompt 7"),
        ({"prompt": ""}, "no prompt"),
        ({"concepts": "fox"}, 'concepts "fox"'),
        ({"concepts": ["fox", "owl"]}, "kind 'concept' has not 2 concepts"),
        ({"concepts": [3]}, "concepts are words"),
        ({"hue": "red"}, 'hue "red"'),
    ],
)
def test_a_row_that_nothing_can_answer_is_named(more: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a fox", "kind": "concept", "concepts": ["fox"]} | more))
    with pytest.raises(InputError, match="line 1 is wrong") as told:
        list(suite.read([tmp_path / "a.jsonl"]))
    assert said in str(told.value)


@pytest.mark.parametrize("line", ["[]", "7", '{"file_name": "1.png"}', "{"])
def test_data_of_another_kind_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="not the stickers' data set"):
        evaluate.read_real(tmp_path)


def test_the_command_measures_and_writes_a_page(tmp_path: Path) -> None:
    (tmp_path / "data" / "noto").mkdir(parents=True)
    lines = []
    for icon, name in (("red-apple", "disc"), ("fox", "wedge"), ("penguin", "cross"), ("house", "square")):
        for style in STYLES:
            (tmp_path / "data" / style).mkdir(exist_ok=True)
            buffer = io.BytesIO()
            Image.fromarray(on((255, 255, 255), (shape(name), 32, 32))).save(buffer, "PNG")
            (tmp_path / "data" / style / f"{icon}.png").write_bytes(buffer.getvalue())
            lines.append(json.dumps({"file_name": f"{style}/{icon}.png", "icon": icon, "style": style}))
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "s.jsonl").write_text('{"prompt": "a red apple", "kind": "concept", "concepts": ["red-apple"]}\n'
                                      '{"prompt": "a cat", "kind": "concept", "concepts": ["cat-face"]}\n')
    command = [DDGEN, "eval", "sticker", "--data", "data", "--suite", "s.jsonl", "-o", "out", "--seed", "0-1", "--variety", "2", "--json", "--steps", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 of 2 rows are about things that the data set does not have" in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["models"][0]["model"] == "sticker" and found["models"][0]["follows"]["concept"]["of"] == 2
    assert found["models"][0]["vendi"]["a red apple"]["seeds"] == 2
    assert found["models"][0]["intra_prompt_distance"] >= 0
    assert found["models"][0]["settings"] == {"steps": 2, "guidance": 2.5, "sampler": "ddim", "spacing": "linspace"}
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["models"] == found["models"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/webp") == 3 and "a red apple" in page
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 7 and "--force" in again.stderr


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    base = [DDGEN, "eval", "sticker", "-o", str(tmp_path / "o"), "--data"]
    for more, code, words in (
        ([str(tmp_path)], 4, "ddgen data build stickers"),
        ([str(tmp_path), "--variety", "1"], 2, "--variety 1"),
        ([str(tmp_path), "--steps", "0"], 2, "--steps 0"),
        ([str(tmp_path), "--sampler", "eular"], 2, "euler"),
        ([str(tmp_path), "--suite", str(tmp_path / "no")], 4, "cannot be read"),
    ):
        done = subprocess.run([*base, *more], capture_output=True, text=True, timeout=120)
        assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, done.stderr
