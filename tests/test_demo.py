"""The demo: its data, its judge, the run from nothing to a model, and what the terminal shows of it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddgen.app import demo, shapes
from ddgen.app.pipeline import Pipeline
from ddgen.cli import console, process
from ddgen.cli import demo as cli
from ddgen.cli.program import run


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few(monkeypatch):
    """Few pictures and steps: what is learnt is not the matter here."""
    monkeypatch.setattr(demo, "PICTURES", 40)
    monkeypatch.setattr(demo, "SETTINGS", replace(demo.SETTINGS, steps=2, report_every=1, batch=2))
    monkeypatch.setattr(demo, "SEEDS", (0,))


def test_the_judge_sees_what_was_drawn():
    found = list(shapes.scenes(300, seed=3))
    judged = [shapes.judged(shapes.draw(scene.shapes), scene.relation) for scene in found]
    right = sum(
        seen == [(shape.colour, shape.kind) for shape in scene.shapes]
        for scene, seen in zip(found, judged, strict=True)
    )
    assert right >= 297
    assert {scene.relation for scene in found} == {"", "left of", "above"}


def test_the_judge_sees_held_out_pairings_and_nothing_in_nothing():
    for colour, kind in shapes.HELD_OUT:
        assert shapes.judge(shapes.draw([shapes.Shape(colour, kind, 15.3, 16.8, 10)])) == (colour, kind)
    assert shapes.judge(np.full((32, 32, 3), 255, np.uint8)) == ("", "")


def test_held_out_pairings_are_never_drawn_but_all_their_words_are():
    found = [shape for scene in shapes.scenes(2000) for shape in scene.shapes]
    pairings = {(shape.colour, shape.kind) for shape in found}
    assert not pairings & set(shapes.HELD_OUT)
    assert len(pairings) == len(shapes.COLOURS) * len(shapes.SHAPES) - len(shapes.HELD_OUT)


def test_captions_say_what_is_where():
    red, blue = shapes.Shape("red", "square", 8, 16, 6), shapes.Shape("orange", "circle", 24, 16, 6)
    assert shapes.Scene((red, blue), "left of").caption == "a red square left of an orange circle"
    picture = shapes.draw([red, blue]).astype(int)
    assert (picture[16, 8] == shapes.COLOURS["red"]).all() and (picture[16, 24] == shapes.COLOURS["orange"]).all()
    for scene in shapes.scenes(200):
        if scene.relation:
            first, second = scene.shapes
            assert (first.x < second.x - 12) if scene.relation == "left of" else (first.y < second.y - 12)


def test_a_run_from_nothing(few, tmp_path):
    trainer = demo.prepare(tmp_path, demo.SETTINGS, "cpu")
    texts = [json.loads(line)["text"] for line in (tmp_path / "shapes/metadata.jsonl").read_text().splitlines()]
    assert len(texts) == 40
    assert not [text for text in texts for pairing in shapes.HELD_OUT if " ".join(pairing) in text]
    assert len(list(trainer.run())) == 2
    verdicts = demo.examine(trainer.sampler(), tmp_path)
    assert [verdict.asked for verdict in verdicts] == [1] * 5
    assert all(0 <= verdict.right <= verdict.asked for verdict in verdicts)
    assert (tmp_path / "samples" / demo.HELD_OUT).is_file()
    loaded = Pipeline.load(str(tmp_path / "model.safetensors"), device="cpu")
    assert loaded.spec.defaults.width == shapes.SIZE
    start = Pipeline.load(str(tmp_path / demo.START), device="cpu")
    assert loaded.text.encode(["a red square"]).context.equal(start.text.encode(["a red square"]).context)
    assert len(demo.grow(start)) == len(demo.prompts()) == 8


def test_the_command(few, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "_output", 1)
    assert run(["train", "--demo", "--device", "cpu"]) == 0
    said = capfd.readouterr()
    assert said.out == "demo/model.safetensors\n"
    assert len(re.findall(r"^  an? \w+ \w+: [01] of 1$", said.err, re.M)) == 5
    assert Path("demo/samples/shown.png").is_file()
    # What it says to type works, at 32 pixels.
    assert run(["sample", "a yellow circle", "--model", "demo/model.safetensors", "--seed", "1", "-q"]) == 0
    assert Path("a-yellow-circle-1.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo", "--lr", "1e-3"], "--demo does not go with --lr; leave one of them out"),
        (["data", "--demo"], "--demo does not go with DATA; leave one of them out"),
        (["--demo", "--minutes", "0"], "--minutes 0.0: must be above 0; give a positive number"),
        (["data"], "--out is missing; give 'ddgen train DATA --out DIR', or --demo"),
        (["--out", "x"], "DATA is missing; give 'ddgen train DATA --out DIR', or --demo"),
    ],
)
def test_what_does_not_go_together(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(["train", *arguments]) == 2
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_sparkline_falls_with_the_loss():
    line = cli.sparkline([math.exp(-i / 10) for i in range(300)], 60)
    assert len(line) == 60 and line[0] == cli.BARS[-1] and line[-1] == cli.BARS[0]
    assert [cli.BARS.index(bar) for bar in line] == sorted((cli.BARS.index(bar) for bar in line), reverse=True)
    assert cli.sparkline([], 60) == "" and len(cli.sparkline([0.5], 60)) == 1


def test_the_screen_stays_in_its_place(monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(process, "write_error", written.append)
    monkeypatch.setattr(process, "_last_words", [])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    half = np.zeros((32, 32, 3), np.uint8)
    half[:16] = (255, 0, 0)
    screen = cli.Screen(["a red square left of a blue circle"] * 8, 100)
    try:
        screen.tell(10, 0.5, 5.0, [half] * 8)
        first = "".join(written)
        assert "step 10 of 100, loss 0.500, 45 s left" in first
        lines = first.rstrip("\n").split("\n")
        plain = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in lines]
        assert len(lines) <= 23 and max(map(len, plain)) <= 80
        assert lines[2].count("38;2;255;0;0") > 0 and plain[2].count("▀") % 4 == 0
        written.clear()
        screen.tell(20, 0.4, 10.0, None)
        assert written[0].startswith(f"\x1b[{len(lines)}A\r\x1b[J")  # up to where it began, and clear
        assert "38;2;255;0;0" in "".join(written)  # the pictures stay
    finally:
        screen.leave()
        console.keep_live(None)
