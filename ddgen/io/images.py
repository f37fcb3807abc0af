"""Pictures: tensor <-> uint8 array <-> PNG, JPEG, WebP; enlarging; the contact sheet; reading others' files.

An array is (H, W, 3) uint8. A tensor is (3, H, W) in [-1, 1]; only its methods are used, so nothing here
imports torch. What is read is data from a stranger: three formats, 64 megapixels, one frame, all of it there.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from ddgen.errors import InputError, NumericsError
from ddgen.io.metadata import Metadata, exif, jpeg_xmp

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

MAX_READ_PIXELS = 64 * 2**20
READABLE = ("PNG", "JPEG", "WEBP")
ORIENTATION = 0x0112  # the EXIF tag
QUALITY = 92


def to_uint8(image: torch.Tensor) -> Pixels:
    """Return an image (3, H, W) in [-1, 1] as an array.

    Raises:
        NumericsError: a value is not finite; it would become a black pixel.
    """
    whole = image.detach().float()
    if not bool(whole.isfinite().all()):
        raise NumericsError(
            "the picture holds non-finite values", "run with --dtype float32", id="numerics.pixels"
        )
    scaled = ((whole.clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(1, 2, 0).cpu().numpy().astype(np.uint8)


def to_pillow(pixels: Pixels) -> Image.Image:
    """Return an array as a Pillow image."""
    return Image.fromarray(pixels)


def flat(pixels: Pixels) -> Pixels:
    """Return an array (H, W, 3), or (H, W, 4) laid on white, as (H, W, 3)."""
    return _layers(Image.fromarray(pixels))[0] if pixels.shape[-1] == 4 else pixels


def to_unit(pixels: Pixels) -> NDArray[np.float32]:
    """Return an array (H, W, 3) as float32 (1, 3, H, W) in [-1, 1], ready for torch.from_numpy."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32) / 127.5 - 1


def enlarge(pixels: Pixels, times: int) -> Pixels:
    """Return the picture `times` as wide and high (Lanczos)."""
    if times == 1:
        return pixels
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width * times, height * times), Image.Resampling.LANCZOS))


def encode(
    pixels: Pixels, format: str = "png", quality: int = QUALITY, metadata: Metadata | None = None
) -> bytes:
    """Return the picture as the bytes of a file: "png", "jpeg" or "webp" (quality 100 is lossless WebP)."""
    texts = metadata if metadata is not None else Metadata()
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, "PNG", pnginfo=png_info(texts))
    elif format in ("jpeg", "webp"):
        extra: dict[str, object] = {}
        if texts.parameters:
            extra["exif"] = exif(texts.parameters)
        if format == "jpeg":
            if texts.xmp:
                extra["extra"] = jpeg_xmp(texts.xmp)
            image.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, **extra)
        else:
            if texts.xmp:
                extra["xmp"] = texts.xmp.encode()
            image.save(buffer, "WEBP", quality=quality, lossless=quality == 100, method=4, **extra)
    else:
        raise AssertionError(f"unknown format {format!r}")
    return buffer.getvalue()


def read_image(path: str | Path, data: bytes | None = None) -> Pixels:
    """Return a picture file (or its bytes, `path` being their name) upright, as RGB on white.

    Raises:
        InputError: missing, of another format, too large, animated, cut short or damaged.
    """
    return read_layers(path, data)[0]


def read_layers(path: str | Path, data: bytes | None = None) -> tuple[Pixels, Pixels | None]:
    """Return a picture as `read_image` does, and its alpha (H, W) if it has one, 0 = transparent.

    Raises:
        InputError: as `read_image`.
    """
    name = f"image '{path}'"
    try:
        source = io.BytesIO(Path(path).read_bytes() if data is None else data)
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise InputError(f"{name}: {words}", "check the path", id="input.image-missing") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(source, formats=READABLE) as image:
                _refuse_by_header(name, image)
                image.load()
                return _layers(image)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{name}: not a PNG, JPEG or WebP picture", "convert it to PNG", id="input.image-format"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name}: over the 64 megapixel limit", "scale it down", id="input.image-size"
        ) from error
    except (
        Exception
    ) as error:  # Pillow's decoders leak SyntaxError, struct.error, ValueError, OSError and more
        raise InputError(
            f"{name}: cut short or damaged", "get it from its source again", id="input.image-damaged"
        ) from error


def animate(
    frames: Sequence[Pixels], format: str, pauses: Sequence[int], metadata: Metadata | None = None, quality: int = QUALITY
) -> bytes:
    """Return pictures of one size as the bytes of an endless animation: "webp", or "gif", which holds no texts.

    pauses: milliseconds, a frame each.
    """
    first, *rest = [Image.fromarray(frame) for frame in frames]
    shared = {"save_all": True, "append_images": rest, "duration": list(pauses), "loop": 0}
    buffer = io.BytesIO()
    if format == "gif":
        first.save(buffer, "GIF", **shared)
        return buffer.getvalue()
    texts = metadata if metadata is not None else Metadata()
    extra: dict[str, object] = {"exif": exif(texts.parameters)} if texts.parameters else {}
    if texts.xmp:
        extra["xmp"] = texts.xmp.encode()
    first.save(buffer, "WEBP", quality=quality, lossless=quality == 100, **shared, **extra)
    return buffer.getvalue()


def contact_sheet(pictures: Sequence[Pixels], rows: Sequence[str], columns: Sequence[str]) -> Pixels:
    """Return one picture of many, row by row, with a line of text above each row and below each picture.

    pictures: len(rows) * per_row of them, all of one size; the last row may be short.
    rows:     the prompt of each row ("" for none); columns: the label of each picture (its seed).
    """
    per_row = math.ceil(len(pictures) / len(rows))
    side = max(1, int(math.sqrt(MAX_READ_PIXELS / 2 / len(pictures))))
    thumbs = [_thumb(flat(picture), side) for picture in pictures]
    height, width = thumbs[0].shape[:2]
    size = max(11, min(32, width // 12))
    gap, line = max(4, size // 2), size + size // 2
    cell_height = height + line + gap
    row_height = [(line + gap if text else 0) + cell_height for text in rows]
    sheet = Image.new("RGB", (per_row * (width + gap) + gap, sum(row_height) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size)
    y = gap
    for row, text in enumerate(rows):
        if text:
            draw.text((gap, y), _fit(draw, text, font, sheet.width - 2 * gap), fill="black", font=font)
            y += line + gap
        for column in range(per_row):
            index = row * per_row + column
            if index < len(thumbs):
                x = gap + column * (width + gap)
                sheet.paste(Image.fromarray(thumbs[index]), (x, y))
                draw.text(
                    (x, y + height + 2), _fit(draw, columns[index], font, width), fill="#555555", font=font
                )
        y += cell_height
    return np.asarray(sheet)


def png_info(texts: Metadata) -> PngInfo:
    info = PngInfo()
    if texts.parameters:
        info.add_text("parameters", texts.parameters)  # Latin-1 where it can be, else Pillow writes iTXt
    if texts.settings:
        info.add_itxt("ddgen", texts.settings)
    if texts.xmp:
        info.add_itxt("XML:com.adobe.xmp", texts.xmp)
    return info


def _refuse_by_header(name: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_READ_PIXELS:
        raise InputError(
            f"{name}: {width}x{height} is over the 64 megapixel limit", "scale it down", id="input.image-size"
        )
    if getattr(image, "n_frames", 1) != 1:
        raise InputError(f"{name}: is animated", "save one of its frames as PNG", id="input.image-animated")


def upright(image: Image.Image) -> Image.Image:
    """Return a picture as it is to be seen: turned as its camera says, 16 bits of grey brought to 8."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16") or turned.mode == "I":
        wide = np.asarray(turned).astype(np.float64)
        turned = Image.fromarray((wide / 257).round().clip(0, 255).astype(np.uint8))
    return turned


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of a picture as it is to be seen, without decoding it."""
    width, height = image.size
    said = image.format != "PNG" or "exif" in image.info  # a PNG would be decoded to look for it
    lying = said and image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (height, width) if lying else (width, height)


def _layers(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    turned = upright(image)
    if turned.has_transparency_data:
        layer = turned.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        on_white = Image.alpha_composite(ground, layer).convert("RGB")
        return np.asarray(on_white), np.asarray(layer.getchannel("A"))
    return np.asarray(turned.convert("RGB")), None


def _thumb(picture: Pixels, side: int) -> Pixels:
    height, width = picture.shape[:2]
    if max(height, width) <= side:
        return picture
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _fit(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """Cut a text to a width in pixels, with an ellipsis."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text[:500]).split())
    if draw.textlength(shown, font=font) <= width:
        return shown
    while shown and draw.textlength(shown + "...", font=font) > width:
        shown = shown[:-1]
    return shown + "..."
