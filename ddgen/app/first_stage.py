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
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from ddgen.app import runfiles
from ddgen.app.dataset import Dataset, Draw
from ddgen.app.pipeline import Pipeline
from ddgen.app.train import Trainer
from ddgen.errors import InputError
from ddgen.nets.config import KLConfig
from ddgen.nets.vae import AutoencoderKL
from ddgen.text.clip import TextEncoder

NOISE = 0.1  # of the latents' deviation
SQUARED = 0.3
SHRINK = 1e-4
MEASURED = 512  # pictures, at most, that the latents' mean and deviation are taken over


class WholeFirstStage:
    """The autoencoder, or its decoder alone, as a Subject.

    Raises:
        InputError: the model's first stage has no weights to train, or no encoder.
    """

    live = False

    def __init__(self, pipeline: Pipeline, data: Dataset, *, part: str, seed: int, scratch: bool) -> None:
        config, held = pipeline.spec.arch.first_stage, pipeline.first_stage
        if not isinstance(config, KLConfig) or not isinstance(held, AutoencoderKL):
            raise InputError(
                f"'{pipeline.spec.name}' has no KL autoencoder to train",
                "train its U-Net: leave --part away",
                id="input.first_stage",
            )
        self.facts: dict[str, object] = {}
        self._spec, self._data, self._part = pipeline.spec, data, part
        torch.manual_seed(seed)
        network = AutoencoderKL(config)
        if not scratch:
            network.load_state_dict(held.state_dict())
        if part == "decoder":
            network.encoder.load_state_dict(held.encoder.state_dict())
            network.quant_conv.load_state_dict(held.quant_conv.state_dict())
            network.encoder.requires_grad_(False)
            network.quant_conv.requires_grad_(False)
        self.network: nn.Module = network.to(pipeline.device).train()
        self.trained = self.network

    def text(self, state: Mapping[str, Tensor] | None = None) -> None:
        return None

    def averaged(self, state: Mapping[str, Tensor]) -> AutoencoderKL:
        with torch.device("meta"):
            network = AutoencoderKL(self.network.config)
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).eval()

    def write(self, out: Path, state: Mapping[str, Tensor]) -> Path:
        """Write the model with the autoencoder's latents brought to zero mean and unit deviation."""
        spec = self._spec
        if self._part == "first-stage":
            pictures = np.arange(0, len(self._data), 1 + len(self._data) // MEASURED)
            config = measured(self.averaged(state), self._data, pictures)
            spec = dataclasses.replace(spec, arch=dataclasses.replace(spec.arch, first_stage=config))
        return runfiles.write_model(out, spec, {"first_stage": state})


class FirstStageTrainer(Trainer):
    """One run in one directory, as Trainer; trains the autoencoder and leaves the U-Net as it is."""

    def _whole(self) -> WholeFirstStage:
        settings = self.settings
        return WholeFirstStage(
            self.pipeline, self.data, part=settings.part, seed=settings.seed, scratch=settings.scratch
        )

    def _encode(self) -> None:
        """Nothing is encoded before: encoding is what is trained."""

    def losses(self, network: nn.Module, draw: Draw, text: TextEncoder | None = None) -> Tensor:
        """Return the loss of each picture of a draw, (B,); its captions and noise levels play no part."""
        assert isinstance(network, AutoencoderKL)
        device = self.pipeline.device
        images = self.data.images(draw.pictures).to(device)
        with self.autocast():
            latents = network.encode(images)
            noise = torch.from_numpy(draw.eps).to(device)
            found = network.decode(latents + NOISE * noise)
            loss = (
                l1_loss(found, images, reduction="none").flatten(1).mean(1)
                + SQUARED * mse_loss(found, images, reduction="none").flatten(1).mean(1)
                + SHRINK * latents.square().flatten(1).mean(1)
            )
        return loss.float()

    def sampler(self) -> Pipeline:
        """Return a Pipeline that decodes with the averaged weights."""
        return dataclasses.replace(self.pipeline, first_stage=self.subject.averaged(self.average.state))


@torch.no_grad()
def measured(network: AutoencoderKL, data: Dataset, pictures: NDArray[np.int64]) -> KLConfig:
    """Return the autoencoder's config with the mean and deviation per channel of its latents of some pictures."""
    device = next(network.parameters()).device
    parts = [
        network.moments(data.images(pictures[i : i + 1]).to(device))[0].flatten(2).cpu()
        for i in range(len(pictures))
    ]
    latents = torch.cat(parts, dim=2).double()
    mean, std = latents.mean((0, 2)), latents.std((0, 2))
    return dataclasses.replace(
        network.config,
        scale_factor=1.0,
        latents_mean=tuple(round(value, 6) for value in mean.tolist()),
        latents_std=tuple(round(value, 6) for value in std.tolist()),
    )
