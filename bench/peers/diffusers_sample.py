"""What a person would write with diffusers and transformers to draw one picture with the embedded model.

    python diffusers_sample.py FOLDER PROMPT OUTPUT

FOLDER is what `ddgen models convert sticker FOLDER` wrote. The same network calls, the same sampler (DDIM in
the schedule's own time). The autoencoder works on 4 x 4 patches, which diffusers' reads as 48 channels.
"""

import json
import math
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

STEPS, GUIDANCE, PATCH = 25, 2.5, 4

folder, prompt, output = sys.argv[1:]
tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
text = CLIPTextModelWithProjection.from_pretrained(
    folder, subfolder="text_encoder", torch_dtype=torch.float32
)
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
config = json.loads((Path(folder) / "vae" / "config.json").read_text())
config |= {"in_channels": 3 * PATCH**2, "out_channels": 3 * PATCH**2}
vae = AutoencoderKL.from_config(config)
vae.load_state_dict(load_file(Path(folder) / "vae" / "diffusion_pytorch_model.safetensors"))
mean, std = (torch.tensor(config[f"latents_{name}"]).view(1, -1, 1, 1) for name in ("mean", "std"))


def signal_and_noise(u: float) -> tuple[float, float]:
    log_snr = -2 * math.log(math.tan(math.pi * u / 2))
    return (1 / (1 + math.exp(-log_snr))) ** 0.5, (1 / (1 + math.exp(log_snr))) ** 0.5


with torch.inference_mode():
    ids = tokenizer(
        [prompt, ""], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    states = text(ids)
    centres = (torch.arange(8) + 0.5) / 8 * 2 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    waves = [f(math.pi * k * axis) for k in (1, 2, 3) for axis in (x, y) for f in (torch.sin, torch.cos)]
    where = torch.stack([x, y, x * y, x * x + y * y, *waves]).expand(2, -1, -1, -1)
    x_t = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(7))
    grid = [0.999 + (0.001 - 0.999) * i / (STEPS - 1) for i in range(STEPS)]
    for i, u in enumerate(grid):
        batch = torch.cat([x_t.expand(2, -1, -1, -1), where], dim=1)
        time = torch.full((2,), 1000 * u)
        out = unet(batch, time, states.last_hidden_state, class_labels=states.text_embeds).sample
        v = out[1:] + GUIDANCE * (out[:1] - out[1:])
        alpha, sigma = signal_and_noise(u)
        x0 = alpha * x_t - sigma * v
        if i + 1 < STEPS:
            alpha_next, sigma_next = signal_and_noise(grid[i + 1])
            x_t = alpha_next * x0 + sigma_next * (x_t - alpha * x0) / sigma
    patches = vae.decode(x0 * std + mean).sample
    pixels = torch.nn.functional.pixel_shuffle(patches, PATCH)[0].clamp(-1, 1)
Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(output)
