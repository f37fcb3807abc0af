"""The autoencoder against diffusers' on the same random weights, in float64; proof that each comparison can
fail; tiles and slices."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL as Referee
from referees import TOLERANCE, Record, distance, draw, redraw, vae_state
from torch import Tensor, nn
from torch.nn import functional as F

from ddgen.nets import vae
from ddgen.nets.config import KLConfig
from ddgen.nets.seamless import seamless
from ddgen.nets.tiling import Tiling, count_of, fades, fitted, in_tiles, spread
from ddgen.nets.vae import AutoencoderKL

SMALL = KLConfig(model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=2)
PLAYGROUND = replace(
    SMALL,
    scale_factor=0.5,
    latents_mean=(-1.6574, 1.886, -1.383, 2.5155),
    latents_std=(8.4927, 5.9022, 6.5498, 5.2299),
)
CONFIGS = {
    "sd": SMALL,
    "one block": replace(SMALL, num_res_blocks=1, channel_mult=(1, 2)),
    "wide latents": replace(SMALL, latent_channels=16, scale_factor=0.13025),
    "playground": PLAYGROUND,
}


def ours(config: KLConfig, seed: int = 0) -> AutoencoderKL:
    network = AutoencoderKL(config).double().eval()
    redraw(network, seed)
    return network


def theirs(network: AutoencoderKL) -> Referee:
    config = network.config
    levels = len(config.channel_mult)
    referee = Referee(
        block_out_channels=tuple(config.model_channels * m for m in config.channel_mult),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.num_res_blocks,
        latent_channels=config.latent_channels,
    ).double()
    referee.load_state_dict(vae_state(network, levels), strict=True)
    return referee.eval()


def scaled(config: KLConfig, z: Tensor) -> Tensor:
    """The latents that the published pipelines hand to the U-Net, one channel at a time."""
    mean = config.latents_mean or (0.0,) * config.latent_channels
    std = config.latents_std or (1.0,) * config.latent_channels
    return torch.stack([(z[:, c] - mean[c]) * config.scale_factor / std[c] for c in range(z.shape[1])], dim=1)


def differences(
    config: KLConfig, change: Callable[[AutoencoderKL], None] = lambda network: None
) -> dict[str, float]:
    """Return the largest difference from the referee of everything the autoencoder gives, after changing
    ours."""
    network = ours(config)
    referee = theirs(network)
    change(network)
    images = draw(2, 3, 40, 24, seed=1)
    side = (40 // config.factor, 24 // config.factor)
    noise = draw(2, config.latent_channels, *side, seed=2)
    latents = draw(2, config.latent_channels, *side, seed=3)
    with torch.inference_mode():
        posterior = referee.encode(images).latent_dist
        mean, logvar = network.moments(images)
        return {
            "mean": distance(mean, posterior.mean),
            "logvar": distance(logvar, posterior.logvar),
            "mode": distance(network.encode(images), scaled(config, posterior.mode())),
            "sample": distance(
                network.encode(images, noise), scaled(config, posterior.mean + posterior.std * noise)
            ),
            "decode": distance(network.decode(scaled(config, latents)), referee.decode(latents).sample),
        }


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_referee(name: str, record_property: Record) -> None:
    found = max(differences(CONFIGS[name]).values())
    record_property("autoencoder, against diffusers", found)
    assert found <= TOLERANCE


def norm_eps(network: AutoencoderKL) -> None:
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-5


def swap_q_and_v(network: AutoencoderKL) -> None:
    for part in (network.encoder, network.decoder):
        part.mid.attn_1.q, part.mid.attn_1.v = part.mid.attn_1.v, part.mid.attn_1.q


def pad_all_sides(self: vae.Downsample, x: Tensor) -> Tensor:
    return F.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=1)


def flat_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def bilinear(x: Tensor, scale_factor: float, mode: str) -> Tensor:
    return F.interpolate(x, scale_factor=scale_factor, mode="bilinear")


@pytest.mark.parametrize("change", [norm_eps, swap_q_and_v])
def test_a_changed_network_is_noticed(change: Callable[[AutoencoderKL], None]) -> None:
    found = differences(SMALL, change)
    assert min(found.values()) > TOLERANCE, found


@pytest.mark.parametrize(
    ("owner", "attribute", "value", "touched"),
    [
        (vae.Downsample, "forward", pad_all_sides, ["mean", "logvar", "mode", "sample"]),
        (vae, "scaled_dot_product_attention", flat_scale, ["mean", "decode"]),
        (vae, "silu", lambda x, inplace: F.gelu(x), ["mean", "decode"]),
        (vae, "interpolate", bilinear, ["decode"]),
        (AutoencoderKL, "_affine", lambda self, like: (0.0, 1.0), ["mode", "sample", "decode"]),
    ],
    ids=["downsample padding", "attention scale", "activation", "upsampling", "scale factor"],
)
def test_changed_mathematics_is_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: object, attribute: str, value: object, touched: list[str]
) -> None:
    monkeypatch.setattr(owner, attribute, value)
    found = differences(PLAYGROUND)
    assert all(found[name] > TOLERANCE for name in touched), found


def test_slices_change_nothing() -> None:
    network = ours(SMALL)
    images, latents = draw(3, 3, 16, 16, seed=1), draw(3, 4, 4, 4, seed=2)
    with torch.inference_mode():
        whole = network.encode(images), network.decode(latents)
        network.slicing = True
        sliced = network.encode(images), network.decode(latents)
    assert distance(sliced[0], whole[0]) <= 1e-12
    assert distance(sliced[1], whole[1]) <= 1e-12


@pytest.mark.parametrize("ring", ["", "x", "xy"])
@pytest.mark.parametrize("sides", [(64, 64), (65, 40), (20, 130), (33, 31)])
def test_tiles_are_no_larger_than_so_many_must_be(sides: tuple[int, int], ring: str) -> None:
    for tiling in (Tiling(32, 8, ring), Tiling(16, 8, ring), Tiling(64, 16, ring)):
        smaller = fitted(*sides, tiling)
        assert 2 * tiling.overlap <= smaller.size <= tiling.size and smaller.overlap == tiling.overlap
        assert smaller.size % 4 == 0 or smaller.size == tiling.size
        round_ = tiling.round_axes(*sides)
        assert smaller.round_axes(*sides) == round_
        for axis, length in zip("yx", sides, strict=True):
            assert count_of(length, smaller, ring=axis in round_) == count_of(length, tiling, ring=axis in round_)
    assert fitted(64, 64, Tiling(32, 8)).size == 28
    assert fitted(64, 64, Tiling(32, 8, "xy")).size == 32


@pytest.mark.parametrize("length", [*range(1, 70), 97, 128, 1000])
@pytest.mark.parametrize("tiling", [Tiling(16, 4), Tiling(8, 4), Tiling(5, 1)])
def test_tiles_cover_a_row_once(length: int, tiling: Tiling) -> None:
    """Starts stay inside, neighbours overlap as asked, and the weights of all tiles sum to 1 everywhere."""
    starts = spread(length, tiling)
    size = min(length, tiling.size)
    assert starts[0] == 0 and starts[-1] + size == length
    assert all(
        b - a <= tiling.size - tiling.overlap and b > a for a, b in zip(starts, starts[1:], strict=False)
    )
    total = torch.zeros(length)
    for start, weight in zip(starts, fades(starts, size, length, total), strict=True):
        total[start : start + size] += weight
    assert torch.allclose(total, torch.ones(length))


@pytest.mark.parametrize("length", [*range(1, 70), 97, 128, 1000])
@pytest.mark.parametrize("tiling", [Tiling(16, 4), Tiling(8, 4), Tiling(5, 1)])
def test_tiles_cover_a_ring_once(length: int, tiling: Tiling) -> None:
    starts, size = spread(length, tiling, ring=True), min(length, tiling.size)
    gaps = [(b - a) % length or length for a, b in zip(starts, starts[1:] + starts[:1], strict=True)]
    assert length <= tiling.size or all(0 < gap <= tiling.size - tiling.overlap for gap in gaps)
    total = torch.zeros(length)
    for start, weight in zip(starts, fades(starts, size, length, total, ring=True), strict=True):
        total[(start + torch.arange(size)) % length] += weight
    assert torch.allclose(total, torch.ones(length))


@pytest.mark.parametrize("ring", ["", "x", "y", "xy"])
@pytest.mark.parametrize("size", [(9, 30), (17, 16), (40, 5), (33, 64)])
def test_tiles_of_a_ring_are_blended_round_its_end(ring: str, size: tuple[int, int]) -> None:
    x = draw(2, 3, *size, seed=1)
    found = in_tiles(lambda t: F.interpolate(t, scale_factor=2.0, mode="nearest"), x, Tiling(8, 3, ring), cell_out=2)
    assert torch.allclose(found, F.interpolate(x, scale_factor=2.0, mode="nearest"), atol=1e-6)


def test_rolling_a_ring_rolls_what_its_tiles_make() -> None:
    """Four tiles of a function that looks everywhere in its tile and knows where its borders are."""
    x = draw(1, 2, 12, 48, seed=3)

    def made(field: Tensor, ring: str) -> Tensor:
        return in_tiles(lambda t: t * torch.linspace(0, 1, t.shape[-1]) + t.mean(), field, Tiling(16, 4, ring))

    def uneven(ring: str) -> float:
        return (made(x.roll(24, -1), ring) - made(x, ring).roll(24, -1)).abs().max().item()

    assert uneven("x") < 1e-6 and uneven("") > 0.1


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
@pytest.mark.parametrize("size", [(48, 48), (16, 48), (48, 12)])
def test_rolling_a_seamless_picture_rolls_what_its_tiles_make(axes: str, size: tuple[int, int]) -> None:
    """Four tiles round an axis, or one that runs round itself; the middle sees the whole field and runs round it."""
    network = ours(SMALL)
    latents = draw(1, 4, *size, seed=1)
    shifts = [12 if axis in axes else 0 for axis in "yx"]
    across = [4 * shift for shift in shifts]
    pixels = draw(1, 3, *(4 * side for side in size), seed=2)

    def uneven(ring: str) -> float:
        network.tiling = Tiling(16, 4, ring)
        with torch.inference_mode(), seamless([network], axes):
            apart = distance(network.decode(latents).roll(across, (2, 3)), network.decode(latents.roll(shifts, (2, 3))))
            means = (network.moments(pixels)[0], network.moments(pixels.roll(across, (2, 3)))[0])
            apart = max(apart, distance(means[0].roll(shifts, (2, 3)), means[1]))
        assert not any("forward" in vars(layer) for layer in network.modules())
        return apart

    assert uneven(axes) < 1e-9
    assert uneven("") > 1e-4 or not any(side > 16 for side, axis in zip(size, "yx", strict=True) if axis in axes)


def test_the_inner_of_two_seamless_decides() -> None:
    layer = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
    torch.nn.init.ones_(layer.weight)
    x = torch.arange(9.0).view(1, 1, 3, 3)
    plain = layer(x)
    with torch.inference_mode(), seamless([layer], "xy"):
        assert (layer(x) == 36).all()
        with seamless([layer], "x"):
            assert (layer(x) == layer(x)[..., :1]).all() and layer(x).unique().numel() == 3
        with seamless([layer], ""):
            assert torch.equal(layer(x), plain)
        assert (layer(x) == 36).all()
    kept = layer.forward = lambda x: x  # type: ignore[method-assign]
    with seamless([layer], ""):
        assert layer(x) is x, "what others put there stays"
    with seamless([layer], "x"):
        assert layer(x) is not x
    assert layer.forward is kept


def test_tiles_of_a_local_function_are_exact() -> None:
    """Where a tile needs nothing from its neighbours, tiling is the identity."""
    x = draw(2, 3, 23, 50, seed=1)
    grow = in_tiles(lambda t: F.interpolate(t, scale_factor=4.0, mode="nearest"), x, Tiling(8, 3), cell_out=4)
    assert torch.allclose(grow, F.interpolate(x, scale_factor=4.0, mode="nearest"), atol=1e-6)
    images = draw(1, 3, 88, 160, seed=2)
    shrink = in_tiles(lambda t: F.avg_pool2d(t, 8), images, Tiling(6, 2), cell_in=8)
    assert torch.allclose(shrink, F.avg_pool2d(images, 8), atol=1e-6)


def seam(network: AutoencoderKL, latents: Tensor) -> float:
    """Return how much steeper the tiling's error is where tiles end than elsewhere: 1 is a seam nobody can
    find."""
    with torch.inference_mode():
        tiled = network.decode(latents)
        tiling, network.tiling = network.tiling, None
        error = tiled - network.decode(latents)
    assert tiling is not None
    factor, width = network.factor, latents.shape[-1]
    jumps = error.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    starts = spread(width, tiling)
    ends = [start * factor - 1 for start in starts[1:]] + [
        (s + tiling.size) * factor - 1 for s in starts[:-1]
    ]
    return jumps[ends].max().item() / jumps.mean().item()


def test_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ours(SMALL)
    # A smooth picture whose left is unlike its right: edges would stand out, and group norms of two tiles see
    # different statistics.
    smooth = F.interpolate(draw(1, 4, 2, 6, seed=1), size=(12, 56), mode="bicubic")
    latents = smooth * torch.linspace(0.2, 3.0, 56, dtype=torch.float64)
    network.tiling = Tiling(24, 8)
    assert seam(network, latents) < 2.0
    # Without fading, the same tiles show their edges.
    monkeypatch.setattr(
        "ddgen.nets.tiling.fades",
        lambda starts, size, length, like, *, ring: [
            torch.tensor([1.0 if i + 1 == len(starts) or p < starts[i + 1] - s else 0.0 for p in range(size)])
            for i, s in enumerate(starts)
        ],
    )
    network.tiling = Tiling(24, 8)
    assert seam(network, latents) > 8.0


def test_tiles_keep_the_picture() -> None:
    """Tiled results stay near the whole ones (the difference that remains is the group norms' statistics)."""
    network = ours(SMALL)
    latents, images = draw(1, 4, 40, 40, seed=1), draw(1, 3, 160, 160, seed=2)
    with torch.inference_mode():
        whole = network.decode(latents), network.moments(images)[0]
        network.tiling = Tiling(20, 8)
        tiled = network.decode(latents), network.moments(images)[0]
    for a, b in zip(tiled, whole, strict=True):
        assert 0 < (a - b).std() / b.std() < 0.1


def test_patches_are_channels_of_a_plain_autoencoder() -> None:
    """With patch 2, three channels are the twelve of an autoencoder without, on a picture of half the size."""
    config = KLConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, patch=2)
    patched, plain = ours(config), ours(replace(config, in_channels=12, patch=1))
    plain.load_state_dict(patched.state_dict())
    images = draw(2, 3, 32, 24, seed=1)
    latents = patched.encode(images)
    assert latents.shape == (2, 4, 8, 6) and patched.factor == config.factor == 4
    assert distance(latents, plain.encode(F.pixel_unshuffle(images, 2))) == 0
    assert distance(patched.decode(latents), F.pixel_shuffle(plain.decode(latents), 2)) == 0
