"""Winograd's way of a 3 x 3 convolution against the plain sum: exact in float64, as close as float32 allows, and used only
where it is meant to be."""

import pytest
import torch
from torch.nn import functional as F

from ddgen.nets import winograd
from ddgen.nets.winograd import Conv3x3, convolved, pays
from ddgen.nets.seamless import seamless


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 20), (36, 12), (64, 128)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_sum(height: int, width: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "STRIP", 24)  # several strips, the last a short one
    monkeypatch.setattr(winograd, "WEIGHTS", 2 * 36 * 3 * 8)  # two channels at a time, the last alone
    x, weight = drawn(2, 3, height, width), drawn(5, 3, 3, 3)
    offset = drawn(5) if bias else None
    torch.testing.assert_close(convolved(x, weight, offset), F.conv2d(x, weight, offset, padding=1), rtol=0, atol=1e-12)


def test_in_float32_as_close_as_a_few_roundings() -> None:
    x, weight = drawn(1, 128, 32, 32), drawn(64, 128, 3, 3) / (9 * 128) ** 0.5
    exact = F.conv2d(x, weight, padding=1)
    error = convolved(x.float(), weight.float(), None).double() - exact
    assert error.square().mean().sqrt() < 3e-6 * exact.std()


def layer(channels: int = 128, dtype: torch.dtype = torch.float32) -> Conv3x3:
    made = Conv3x3(channels, 128).to(dtype)
    made.load_state_dict({"weight": drawn(128, channels, 3, 3, dtype=dtype) / 34, "bias": drawn(128, dtype=dtype)})
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(winograd, "QUICK", True)

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        found.append(len(x))
        return convolved(x, weight, bias)

    monkeypatch.setattr(winograd, "convolved", noted)
    return found


def test_a_picture_does_not_depend_on_its_neighbours(calls: list[int]) -> None:
    x, conv = drawn(3, 128, 32, 40, dtype=torch.float32), layer()
    with torch.inference_mode():
        together = conv(x)
        assert all(torch.equal(together[i : i + 1], conv(x[i : i + 1])) for i in range(3))
    assert calls == [3, 1, 1, 1]


def test_where_it_is_not_meant_to_be(calls: list[int]) -> None:
    conv, big = layer(), drawn(1, 128, 32, 32, dtype=torch.float32)
    with torch.inference_mode():
        for height, width in ((32, 34), (34, 32), (16, 16)):
            conv(drawn(1, 128, height, width, dtype=torch.float32))
        layer(dtype=torch.float64)(big.double())
        layer(channels=8)(big[:, :8])
        with seamless([conv], "x"):
            rolled = conv(big.roll(5, -1))
            torch.testing.assert_close(rolled, conv(big).roll(5, -1))
    conv(big)  # something may be trained
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        conv(big)
    assert calls == []
    with torch.no_grad():
        conv(big)
    assert calls == [1]
    few = torch.empty(64, 128, 3, 3)
    assert pays(big, few.repeat(2, 1, 1, 1)) and not pays(big, few)
