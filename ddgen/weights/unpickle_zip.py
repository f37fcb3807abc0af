"""A zip archive as torch writes it: entries stored as they are, distinct, apart and plainly named; anything
else is refused.

Nothing is extracted: the answer is where each entry's bytes lie. Standard library only, as
unpickle_records.py.
"""

import zipfile
from typing import BinaryIO

from ddgen.weights.unpickle_records import Refused, safe

MAX_ENTRIES = 65_536
MAX_NAME = 256


def entries(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Return name -> (start, bytes) of a zip archive whose entries are stored, distinct, apart and plainly
    named.
    """
    file.seek(max(0, size - 22))
    if file.read(4) != b"PK\x05\x06":
        raise Refused("is a zip archive cut short, or with something behind its end; download it again")
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise Refused(f"is a zip archive of {len(infos)} entries, over the limit of {MAX_ENTRIES}")
    found: dict[str, tuple[int, int]] = {}
    spans = []
    for info in infos:
        name = info.orig_filename
        parts = name.split("/")
        if (
            name.startswith("/")
            or "\\" in name
            or ".." in parts
            or not name.isprintable()
            or len(name) > MAX_NAME
        ):
            raise Refused("is a zip archive with a forbidden entry name; refused as unsafe")
        if name in found:
            raise Refused(f"is a zip archive that lists '{safe(name)}' twice; refused as unsafe")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused(
                f"is a zip archive with a compressed entry ('{safe(name)}'); "
                "refused, get the .safetensors version"
            )
        if info.flag_bits & 0x1:
            raise Refused("is an encrypted zip archive, not weights")
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise Refused("is a damaged zip archive; download it again")
        name_size, extra = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
        start = info.header_offset + 30 + name_size + extra
        if (
            file.read(name_size) != name.encode("utf-8")
            or int.from_bytes(local[8:10], "little") != zipfile.ZIP_STORED
        ):
            raise Refused("is a zip archive whose two lists of entries differ; refused as unsafe")
        found[name] = (start, info.file_size)
        spans.append((info.header_offset, start + info.file_size))
    spans.sort()
    if not spans or spans[0][0] != 0 or spans[-1][1] > size:
        raise Refused("is a zip archive with something before its start or past its end; refused as unsafe")
    if any(end > start for (_, end), (start, _) in zip(spans, spans[1:], strict=False)):
        raise Refused("is a zip archive whose entries overlap; refused as unsafe")
    return found
