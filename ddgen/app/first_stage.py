"""Train a model's first stage: the autoencoder that makes latents of pictures, and pictures of latents.

    z = E(picture) + 0.1 s noise,   loss = |D(z) - picture| + 0.3 |D(z) - picture|^2 + 1e-4 |E(picture)|^2

with s the latents' deviation per channel. The noise makes near latents mean near pictures, which is what the
U-Net needs: it takes the place of the learned variance of a KL autoencoder. The mean and deviation per channel
that bring latents to zero mean and unit variance are measured when the model is saved and go into its Spec.
The part "decoder" leaves the encoder as it is: latents keep their meaning, so a U-Net that was trained on them
stays right, and its pictures gain.

The loop, the files and resuming are those of `train.Trainer`.

Ref: Rombach et al. 2022, arXiv 2112.10752, section 3.1.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from ddgen.app import runfiles
from ddgen.app.dataset import Draw
from ddgen.app.pipeline import Pipeline
from ddgen.app.train import Trainer
from ddgen.errors import InputError
from ddgen.nets.config import KLConfig
from ddgen.nets.vae import AutoencoderKL

NOISE = 0.1  # of the latents' deviation
SQUARED = 0.3
SHRINK = 1e-4
MEASURED = 512  # pictures, at most, that the latents' mean and deviation are taken over


class FirstStageTrainer(Trainer):
    """One run in one directory, as Trainer; trains the autoencoder and leaves the U-Net as it is.

    Raises:
        InputError: the model's first stage has no weights to train, or no encoder.
    """

    network: AutoencoderKL

    def _trainable(self) -> AutoencoderKL:
        config = self.pipeline.spec.arch.first_stage
        held = self.pipeline.first_stage
        if not isinstance(config, KLConfig) or not isinstance(held, AutoencoderKL):
            raise InputError(
                f"'{self.pipeline.spec.name}' has no KL autoencoder to train",
                "train its U-Net: leave --part away",
                id="input.first_stage",
            )
        torch.manual_seed(self.settings.seed)
        network = AutoencoderKL(config)
        if not self.settings.scratch:
            network.load_state_dict(held.state_dict())
        if self.settings.part == "decoder":
            network.encoder.requires_grad_(False)
            network.quant_conv.requires_grad_(False)
        return network.to(self.pipeline.device).train()

    def _encode(self) -> None:
        """Nothing is encoded before: encoding is what is trained."""

    def losses(self, network: nn.Module, draw: Draw) -> Tensor:
        """Return the loss of each picture of a draw, (B,); its captions and noise levels play no part."""
        assert isinstance(network, AutoencoderKL)
        device = self.pipeline.device
        images = self.data.images(draw.pictures).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16):
            latents = network.encode(images)
            noise = torch.from_numpy(draw.eps).to(device)
            found = network.decode(latents + NOISE * noise)
            loss = (
                l1_loss(found, images, reduction="none").flatten(1).mean(1)
                + SQUARED * mse_loss(found, images, reduction="none").flatten(1).mean(1)
                + SHRINK * latents.square().flatten(1).mean(1)
            )
        return loss.float()

    def averaged(self) -> AutoencoderKL:  # type: ignore[override]
        """Return an autoencoder with the averaged weights (they are shared, not copied)."""
        with torch.device("meta"):
            network = AutoencoderKL(self.network.config)
        network.load_state_dict(self.average.state, assign=True)
        return network.requires_grad_(False).eval()

    def sampler(self) -> Pipeline:
        """Return a Pipeline that decodes with the averaged weights."""
        return dataclasses.replace(self.pipeline, first_stage=self.averaged())

    def _save_model(self) -> None:
        """Write the model with the autoencoder's latents brought to zero mean and unit deviation."""
        spec = self.pipeline.spec
        if self.settings.part == "first-stage":
            config = measured(self.averaged(), self.data.pixels[:: 1 + len(self.data) // MEASURED])
            spec = dataclasses.replace(spec, arch=dataclasses.replace(spec.arch, first_stage=config))
        runfiles.write_model(self.out, spec, {"first_stage": self.average.state})


@torch.no_grad()
def measured(network: AutoencoderKL, pixels: Tensor, batch: int = 16) -> KLConfig:
    """Return the autoencoder's config with the mean and deviation per channel of its latents of some pictures.

    pixels: (N, 3, H, W) uint8.
    """
    device = next(network.parameters()).device
    parts = [network.moments(part.to(device).float() / 127.5 - 1)[0].cpu() for part in pixels.split(batch)]
    latents = torch.cat(parts).double()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return dataclasses.replace(
        network.config,
        scale_factor=1.0,
        latents_mean=tuple(round(value, 6) for value in mean.tolist()),
        latents_std=tuple(round(value, 6) for value in std.tolist()),
    )
