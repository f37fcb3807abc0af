"""A training run's figures and sheets for TensorBoard, in DIR/tensorboard; needs the extra `tensorboard`."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddgen.errors import UsageError

if TYPE_CHECKING:
    from ddgen.app.train import Report

FOLDER = "tensorboard"


class Board:
    """step: what the log holds beyond it, from before a kill, is forgotten.

    Raises:
        UsageError: the package is not here.
    """

    def __init__(self, out: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "--tensorboard needs the package tensorboard",
                "pip install 'ddgen[tensorboard]'",
                id="usage.extra",
            ) from None
        self._writer = SummaryWriter(str(out / FOLDER), purge_step=step + 1)

    def add(self, report: "Report") -> None:
        """Write a report's figures."""
        figures = {
            "loss/train": report.loss,
            "loss/fixed": report.fixed,
            "gradient": report.gradient,
            "rate/learning": report.factor,
            "rate/pictures": report.rate,
        }
        for name, value in figures.items():
            self._writer.add_scalar(name, value, report.step)
        self._writer.flush()

    def show(self, png: bytes, step: int) -> None:
        """Write a sheet of pictures."""
        import io

        from PIL import Image

        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image("sheet", pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
