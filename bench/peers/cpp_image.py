"""The same picture with stable-diffusion.cpp, through the package stable-diffusion-cpp-python.

    python cpp_image.py FILE SIDE STEPS
"""

import sys

from stable_diffusion_cpp import StableDiffusion

path, side, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
made = StableDiffusion(model_path=path, verbose=False).generate_image(
    prompt="a red apple",
    width=side,
    height=side,
    sample_method="euler",
    sample_steps=steps,
    cfg_scale=7.5,
    seed=7,
)
made[0].save("apple.png")
