"""The parts of the trainer: optimizers against closed forms and torch, the average, the data folder, the curve."""

import pytest
import torch
from PIL import Image
from torch import nn

from ddgen.app.dataset import Dataset, read_folder
from ddgen.app.optim import Average, Optimizer, orthogonal
from ddgen.app.runfiles import curve
from ddgen.errors import InputError


def test_orthogonal_is_nearly_so():
    torch.manual_seed(0)
    for shape in ((2, 8, 24), (2, 24, 8)):
        singular = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert singular.min() > 0.5 and singular.max() < 1.4


def test_adamw_equals_torchs():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    mine = Optimizer(ours, "adamw", lr=1e-2)
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.01},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99))
    for step in range(1, 6):
        x = torch.randn(4, 5)
        for module in (ours, theirs):
            module.zero_grad()
            module(x).square().mean().backward()
        mine.step(step, 1.0)
        reference.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6) and torch.allclose(
        ours.bias, theirs.bias, atol=1e-6
    )


def test_the_average_follows():
    module = nn.Linear(2, 1)
    average = Average(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(3.0)
    for step in range(1, 200):
        average.update(module, step)
    assert torch.allclose(average.state["weight"], torch.full((1, 2), 3.0), atol=1e-4)


def test_captions_beside_the_pictures(tmp_path):
    Image.new("RGBA", (32, 16), (0, 0, 0, 0)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfa fox\r\n")  # as some editors of Windows write it
    Image.new("RGB", (8, 8)).save(tmp_path / "without.png")
    examples = list(read_folder(tmp_path))
    assert [(example.path.name, example.captions) for example in examples] == [("b.png", {"a fox": 1.0})]
    assert (Dataset(tmp_path, 16, 16).pixels == 255).all()  # transparent is white, cut to a square


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "x"}', "line 1 is wrong"),
        ("{", "line 1 is wrong"),
        ('{"file_name": "../x.png", "text": "x"}', "out of the folder"),
        ('{"file_name": "x.png", "text": "x", "weight": -1}', "above 0"),
        ('{"file_name": "x.png", "text": "x", "weight": 1e308}', "at most 1e\\+30"),
        ('{"file_name": ' + "[" * 100_000, "line 1 is wrong"),
        ('{"file_name": "x.png", "text": "x"}', "cannot be read"),
        ("", "holds no pictures"),
    ],
)
def test_bad_data_is_named(tmp_path, line, said):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(InputError, match=said):
        Dataset(tmp_path, 16, 16)


def test_the_curve_is_drawn_from_the_log():
    assert "polyline" in curve(
        [{"step": 1, "loss": 1.0, "fixed": 0.5}, {"step": 2, "loss": 0.1, "fixed": 0.05}]
    )
    assert "polyline" not in curve([])
