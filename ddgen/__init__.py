"""ddgen: text to image by denoising diffusion.

The public names are loaded on first use (PEP 562), so that `import ddgen` costs nothing:

    from ddgen import Pipeline, Request, generate

    pipeline = Pipeline.load("sticker")
    images = generate(pipeline, Request(prompts=("a red apple",), seed=7))
    images[0].save("apple.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Pipeline": "ddgen.app.pipeline",
    "generate": "ddgen.app.pipeline",
    "Request": "ddgen.request",
    "DdgenError": "ddgen.errors",
}

__all__ = ["DdgenError", "Pipeline", "Request", "__version__", "generate"]

if TYPE_CHECKING:
    from ddgen.app.pipeline import Pipeline, generate
    from ddgen.errors import DdgenError
    from ddgen.request import Request


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ddgen' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
