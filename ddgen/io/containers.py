"""The texts inside PNG, JPEG and WebP files: read out, taken out, put in, without touching a pixel.
Torch-free.

    PNG   tEXt, zTXt, iTXt chunks by keyword; eXIf
    JPEG  APP1 EXIF and XMP, COM
    WebP  EXIF and XMP chunks

Texts come back as {name: text}: PNG keywords as they are, and UserComment, ImageDescription, Make, Model,
COM, XML:com.adobe.xmp. What is read is data from a stranger: bounded, never a crash, never a path.
"""

import io
import struct
import zlib
from collections.abc import Iterator

from ddgen.errors import InputError
from ddgen.io.metadata import Metadata

MAX_TEXT = 16 * 2**20
"""Bytes that one text may have, unpacked."""

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME")
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF_HEAD = b"Exif\0\0"
_XMP = "XML:com.adobe.xmp"
_USER_COMMENT, _EXIF_IFD, _ORIENTATION = 0x9286, 0x8769, 0x0112
_PLAIN_TAGS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software"}


def kind_of(data: bytes) -> str:
    """Return "png", "jpeg" or "webp".

    Raises:
        InputError: another format.
    """
    if data.startswith(_PNG):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise InputError("not a PNG, JPEG or WebP picture", "convert it to PNG", id="input.image-format")


def read_texts(data: bytes) -> dict[str, str]:
    """Return every text of a picture file by name; the first of a name counts.

    Raises:
        InputError: another format, or a file that is cut short.
    """
    texts: dict[str, str] = {}
    kind = kind_of(data)
    for name, body in _READERS[kind](data):
        if name == "exif":
            for tag, text in _exif_texts(body):
                texts.setdefault(tag, text)
        elif isinstance(body, bytes):
            texts.setdefault(name, body.decode("utf-8", "replace"))
    return texts


def replace_texts(data: bytes, metadata: Metadata) -> bytes:
    """Return the file with these texts in place of all it had; the pixels' bytes, colour profile and
    orientation stay.

    Raises:
        InputError: another format, or a file that is cut short.
    """
    kind = kind_of(data)
    if kind == "png":
        return _rewrite_png(data, metadata)
    return _rewrite_jpeg(data, metadata) if kind == "jpeg" else _rewrite_webp(data, metadata)


def _cut_short() -> InputError:
    return InputError("cut short or damaged", "get it from its source again", id="input.image-damaged")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start of the chunk, its end)."""
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        yield data[at + 4 : at + 8], at, end
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise _cut_short()


def _png_texts(data: bytes) -> Iterator[tuple[str, bytes]]:
    for kind, start, end in _png_chunks(data):
        body = data[start + 8 : end - 4]
        name, _, rest = body.partition(b"\0")
        key = name.decode("latin-1")
        if kind == b"tEXt":
            yield key, rest.decode("latin-1").encode()
        elif kind == b"zTXt" and rest[:1] == b"\0":
            yield key, _inflate(rest[1:]).decode("latin-1").encode()
        elif kind == b"iTXt" and len(rest) >= 2 and rest.count(b"\0", 2) >= 2:
            text = rest[2:].split(b"\0", 2)[2]
            yield key, _inflate(text) if rest[0] else text
        elif kind == b"eXIf":
            yield "exif", body


def _inflate(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MAX_TEXT)
    except zlib.error:
        return b""


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start of the segment, its end) up to the first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        if length < 2 or end > len(data):
            break
        yield marker, at, end
        at = end
    raise _cut_short()


def _jpeg_texts(data: bytes) -> Iterator[tuple[str, bytes]]:
    for marker, start, end in _jpeg_segments(data):
        body = data[start + 4 : end]
        if marker == 0xE1 and body.startswith(_EXIF_HEAD):
            yield "exif", body[len(_EXIF_HEAD) :]
        elif marker == 0xE1 and body.startswith(_XMP_HEAD):
            yield _XMP, body[len(_XMP_HEAD) :]
        elif marker == 0xFE:
            yield "COM", body


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        end = at + 8 + length
        if end > len(data):
            raise _cut_short()
        yield data[at : at + 4], at + 8, end
        at = end + length % 2


def _webp_texts(data: bytes) -> Iterator[tuple[str, bytes]]:
    for kind, start, end in _webp_chunks(data):
        if kind == b"EXIF":
            yield "exif", data[start:end].removeprefix(_EXIF_HEAD)
        elif kind == b"XMP ":
            yield _XMP, data[start:end]


_READERS = {"png": _png_texts, "jpeg": _jpeg_texts, "webp": _webp_texts}


def _exif(body: bytes) -> dict[int, object]:
    """Return the tags of an EXIF block that matter here; {} where it cannot be read."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(_EXIF_HEAD + body)
        found: dict[int, object] = dict(exif)
        found |= dict(exif.get_ifd(_EXIF_IFD))
    except Exception:  # Pillow's parser leaks many kinds on damaged blocks
        return {}
    return found


def _exif_texts(body: bytes) -> Iterator[tuple[str, str]]:
    for tag, value in _exif(body).items():
        if tag == _USER_COMMENT and isinstance(value, bytes):
            yield "UserComment", _comment(value)
        elif tag in _PLAIN_TAGS or 0x0100 <= tag < 0x0110:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if isinstance(text, str):
                yield _PLAIN_TAGS.get(tag, f"Tag{tag:04x}"), text.rstrip("\0")


def _comment(value: bytes) -> str:
    """Decode a UserComment: UTF-16 of either byte order, ASCII, or UTF-8 without a mark."""
    head, rest = value[:8], value[8:]
    if head == b"UNICODE\0":
        if rest.startswith((b"\xff\xfe", b"\xfe\xff")):
            return rest.decode("utf-16", "replace")
        little = rest[1::2].count(0) > rest[::2].count(0)
        return rest.decode("utf-16-le" if little else "utf-16-be", "replace").rstrip("\0")
    if head in (b"ASCII\0\0\0", b"\0" * 8):
        return rest.decode("utf-8", "replace").rstrip("\0")
    return value.decode("utf-8", "replace").rstrip("\0")


def _user_comment(text: str) -> bytes:
    return b"UNICODE\0" + text.encode("utf-16-be", "surrogatepass")


def _new_exif(metadata: Metadata, orientation: object) -> bytes:
    """Return an EXIF block with the A1111 text and the old orientation; b"" when there is nothing to say."""
    from PIL import Image

    exif = Image.Exif()
    if isinstance(orientation, int) and 2 <= orientation <= 8:
        exif[_ORIENTATION] = orientation
    if metadata.parameters:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _user_comment(metadata.parameters)
    if not metadata.parameters and _ORIENTATION not in exif:
        return b""
    return exif.tobytes().removeprefix(_EXIF_HEAD)


def _rewrite_png(data: bytes, metadata: Metadata) -> bytes:
    from ddgen.io.images import png_info

    kept, orientation = [], None
    for kind, start, end in _png_chunks(data):
        if kind == b"eXIf":
            orientation = _exif(data[start + 8 : end - 4]).get(_ORIENTATION)
        if kind not in _TEXT_CHUNKS:
            kept.append((kind, data[start:end]))
    texts = b"".join(_png_chunk(kind, body) for kind, body, *_ in png_info(metadata).chunks)
    exif = _new_exif(Metadata(), orientation)
    texts += _png_chunk(b"eXIf", exif) if exif else b""
    first = next((index for index, (kind, _) in enumerate(kept) if kind == b"IDAT"), 1)
    return _PNG + b"".join(
        [chunk for _, chunk in kept[:first]] + [texts] + [chunk for _, chunk in kept[first:]]
    )


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _rewrite_jpeg(data: bytes, metadata: Metadata) -> bytes:
    front, kept, orientation, at = [b"\xff\xd8"], [], None, 2
    for marker, start, end in _jpeg_segments(data):
        body = data[start + 4 : end]
        at = end
        if marker == 0xE1 and body.startswith(_EXIF_HEAD):
            orientation = _exif(body[len(_EXIF_HEAD) :]).get(_ORIENTATION)
        if marker == 0xE0:
            front.append(data[start:end])
        elif marker not in (0xE1, 0xEB, 0xED, 0xFE):  # EXIF and XMP, C2PA, IPTC, comment
            kept.append(data[start:end])
    exif = _new_exif(metadata, orientation)
    if exif:
        front.append(_jpeg_segment(_EXIF_HEAD + exif))
    if metadata.xmp:
        front.append(_jpeg_segment(_XMP_HEAD + metadata.xmp.encode()))
    return b"".join([*front, *kept, data[at:]])


def _jpeg_segment(body: bytes) -> bytes:
    if len(body) > 65_533:
        raise InputError(
            "too much metadata for a JPEG", "convert the picture to PNG", id="input.metadata-size"
        )
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _rewrite_webp(data: bytes, metadata: Metadata) -> bytes:
    chunks = [(kind, data[start:end]) for kind, start, end in _webp_chunks(data)]
    old = next((_exif(body.removeprefix(_EXIF_HEAD)) for kind, body in chunks if kind == b"EXIF"), {})
    exif, xmp = _new_exif(metadata, old.get(_ORIENTATION)), metadata.xmp.encode()
    kept = [(kind, body) for kind, body in chunks if kind not in (b"EXIF", b"XMP ")]
    if kept and kept[0][0] != b"VP8X" and (exif or xmp):
        kept.insert(0, (b"VP8X", _webp_header(kept[0], data)))
    if kept and kept[0][0] == b"VP8X":
        flags = (kept[0][1][0] & ~0x0C) | (0x08 if exif else 0) | (0x04 if xmp else 0)
        kept[0] = (b"VP8X", bytes([flags]) + kept[0][1][1:])
    kept += [(b"EXIF", exif)] if exif else []
    kept += [(b"XMP ", xmp)] if xmp else []
    body = b"".join(
        kind + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for kind, part in kept
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_header(first: tuple[bytes, bytes], data: bytes) -> bytes:
    """Return the body of a VP8X chunk for a file that had none: flags (alpha), width - 1, height - 1."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        width, height = image.size
        alpha = image.mode == "RGBA"
    flags = struct.pack("<I", 0x10 if alpha else 0)
    return flags + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
