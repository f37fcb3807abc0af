"""The GAN that bench.gan sets beside the model: what it is told matters, it learns, a saved one goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import gan
from ddgen.app.dataset import Dataset
from ddgen.app.pipeline import Pipeline


@pytest.fixture
def contest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gan.Contest:
    monkeypatch.setattr(gan, "WIDE", 16)
    monkeypatch.setattr(gan, "DEEP", 1)
    monkeypatch.setattr(gan, "R1", 0.01)
    rows = []
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 60, 220))):
        Image.new("RGB", (128, 128), colour).save(tmp_path / f"{name}.png")
        rows.append(json.dumps({"file_name": f"{name}.png", "text": f"a {name} square"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return gan.Contest(Pipeline.load("sticker", device="cpu", dtype="float32"), Dataset(tmp_path, 128, 128), tmp_path / "out", 5e-3)


def test_it_learns_saves_and_goes_on(contest: gan.Contest) -> None:
    contest.best_g.param_groups[0]["lr"] = 0.0  # against a generator that stands still the critic must win
    losses = [contest.advance(4) for _ in range(40)]
    assert np.isfinite(losses).all() and np.mean(losses[-8:], 0)[0] < 1.2, "chance is 2 ln 2"
    for network in (contest.generator, contest.critic):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    contest.best_g.param_groups[0]["lr"] = 5e-3
    contest.seconds = 5.0
    contest.save()
    weights = contest.generator.last.weight.clone()
    contest.advance(4)
    contest.resume()
    assert (contest.step, contest.seconds) == (40, 5.0) and torch.equal(contest.generator.last.weight, weights)


def test_text_and_noise_both_reach_the_picture_and_the_critic(contest: gan.Contest) -> None:
    z, text = torch.randn(2, gan.NOISE), gan.vectors(contest.captions, np.array([1, 2]))
    assert text.square().mean(1) == pytest.approx(torch.ones(2))
    with torch.no_grad():
        one = contest.generator(z[:1], text[:1])
        assert one.shape[1:] == contest.shapes[0]
        assert not torch.allclose(one, contest.generator(z[1:], text[:1]))
        assert not torch.allclose(one, contest.generator(z[:1], text[1:]))
        assert not torch.allclose(contest.critic(one, text[:1]), contest.critic(one, text[1:]))
