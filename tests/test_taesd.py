"""TAESD against diffusers' AutoencoderTiny on the same random weights, in float64, and proof that the
comparison can fail."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderTiny
from referees import TOLERANCE, Record, distance, draw, redraw
from torch import Tensor, nn

from ddgen.nets import taesd
from ddgen.nets.config import TinyConfig
from ddgen.nets.taesd import TinyAutoencoder


def their_name(name: str) -> str:
    """Our names are the published files'; diffusers leaves out the squashing at the decoder's index 0."""
    part, index, rest = name.split(".", 2)
    return f"{part}.layers.{int(index) - (part == 'decoder')}.{rest}"


def differences(channels: int) -> tuple[float, float]:
    network = TinyAutoencoder(TinyConfig(latent_channels=channels)).double().eval()
    redraw(network, seed=0)
    referee = AutoencoderTiny(latent_channels=channels).double().eval()
    referee.load_state_dict({their_name(k): v for k, v in network.state_dict().items()}, strict=True)
    images, latents = draw(2, 3, 24, 40, seed=1), 2 * draw(2, channels, 3, 5, seed=2)
    with torch.inference_mode():
        return (
            distance(network.encode(images), referee.encode(images).latents),
            distance(network.decode(latents), referee.decode(latents).sample),
        )


@pytest.mark.parametrize("channels", [4, 16])
def test_equals_the_referee(channels: int, record_property: Record) -> None:
    found = max(differences(channels))
    record_property("tiny autoencoder, against diffusers", found)
    assert found <= TOLERANCE


def block_without_last_relu(self: taesd.Block, x: Tensor) -> Tensor:
    return self.conv(x) + x


@pytest.mark.parametrize(
    ("owner", "attribute", "value", "encodes", "decodes"),
    [
        (taesd.Block, "forward", block_without_last_relu, True, True),
        (taesd.Squash, "forward", lambda self, x: torch.tanh(x), False, True),
        (TinyAutoencoder, "encode", lambda self, images: self.encoder(images), True, False),
        (TinyAutoencoder, "decode", lambda self, latents: self.decoder(latents), False, True),
    ],
    ids=["last relu", "squash", "image range in", "image range out"],
)
def test_changed_mathematics_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    attribute: str,
    value: Callable,
    encodes: bool,
    decodes: bool,
) -> None:
    monkeypatch.setattr(owner, attribute, value)
    found = differences(4)
    assert [d > TOLERANCE for d in found] == [encodes, decodes]


def test_size() -> None:
    """2,445,063 parameters in 134 tensors, as published."""
    network = TinyAutoencoder(TinyConfig())
    assert sum(p.numel() for p in network.parameters()) == 2_445_063
    assert len(network.state_dict()) == 134
    assert isinstance(network.decoder[0], taesd.Squash) and isinstance(network.decoder[1], nn.Conv2d)
