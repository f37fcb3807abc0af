"""What a person would write with diffusers to draw one picture with a Stable Diffusion 1.x.

    python diffusers_image.py FOLDER SIDE STEPS

FOLDER is in diffusers' layout, as `ddgen models convert FILE FOLDER` writes it. Writes apple.png here.
"""

import sys

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

folder, side, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pipeline = StableDiffusionPipeline.from_pretrained(
    folder, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
)
pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
generator = torch.Generator().manual_seed(7)
made = pipeline(
    "a red apple",
    width=side,
    height=side,
    num_inference_steps=steps,
    guidance_scale=7.5,
    generator=generator,
)
made.images[0].save("apple.png")
