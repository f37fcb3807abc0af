"""What a picture says about itself: the settings that make it again, and that a machine made it.

    parameters            A1111's text, for people and sites: prompts, then "Steps: 25, Sampler: ..."
    ddgen                 canonical JSON (sorted keys, ASCII), the truth: `parse` reads it back exactly
    XML:com.adobe.xmp     IPTC DigitalSourceType trainedAlgorithmicMedia

PNG holds the three as text chunks before the pixels; JPEG and WebP hold the first as EXIF UserComment, the
others as one XMP packet. No time, host, path or duration is written, so that equal runs give equal bytes.
"""

import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from ddgen import __version__
from ddgen.errors import InputError, OutputError
from ddgen.request import Job

LEVELS = ("none", "min", "full")
SCHEMA = 1
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
NAMESPACE = "urn:ddgen:1:"
JPEG_LIMIT = 65_000  # bytes that fit into one APP1 segment

# What most pictures have nothing to say about is left out of theirs.
_PLAIN: dict[str, object] = {
    "tile": "", "transparent": False, "variation": 0.0, "variation_seed": 0, "toward": "", "toward_weight": 0.0, "edit": None, "controls": (),
}  # fmt: skip

A1111_SPACINGS = {
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "beta": "Beta",
    "ays": "Align Your Steps",
}


@dataclass(frozen=True)
class Origin:
    """What made a picture beside its Job: the same for every image of a run.

    sampler: A1111's name of the sampler.
    digests: sha256 of each weight file, by its short name; "model" is the main one.
    changes: what the run's flags changed about the model's rules: clip_skip, prediction, ema.
    torch:   major.minor of the library, the class of versions that round alike.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    sampler: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    torch: str = ""
    text_backend: str = "native"
    changes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """The three texts of one picture; an empty one is not written."""

    parameters: str = ""
    settings: str = ""
    xmp: str = ""

    def __bool__(self) -> bool:
        return bool(self.parameters or self.settings or self.xmp)


def describe(
    job: Job, origin: Origin, level: str = "full", id: str = "", score: float | None = None
) -> Metadata:
    """Return the texts for a picture: all of them, without the prompts (`min`), or none.

    id: of the job, in a batch. score: how well it shows the prompt, where the best of several were kept.
    """
    if level == "none":
        return Metadata()
    more: dict[str, object] = {"id": id} if id else {}
    if score is not None:
        more["score"] = score
    settings = canonical(settings_of(job, origin, level) | more)
    parameters = a1111(job, origin) if level == "full" else ""
    return Metadata(parameters, settings, xmp_packet(settings))


def settings_of(job: Job, origin: Origin, level: str = "full") -> dict[str, object]:
    """Return what the `ddgen` text holds, as plain data."""
    fields = {name: value for name, value in asdict(job).items() if _PLAIN.get(name, ...) != value}
    if level == "min":
        del fields["prompt"], fields["negative"]
    return {
        "schema": SCHEMA,
        "program": f"ddgen {__version__}",
        "job": fields,
        "weights": dict(origin.digests),
        "rng": "philox-cpu" if job.rng == "ddgen" else job.rng,
        "device": origin.device,
        "dtype": origin.dtype,
        "torch": origin.torch,
        "text_backend": origin.text_backend,
        **({"changes": dict(origin.changes)} if origin.changes else {}),
    }


def canonical(data: Mapping[str, object]) -> str:
    """Return JSON with one spelling for equal data: sorted keys, no spaces, ASCII."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def a1111(job: Job, origin: Origin) -> str:
    """Return the text that A1111, its relatives and many sites read; readers expect Steps first."""
    items: list[tuple[str, object]] = [
        ("Steps", job.steps),
        ("Sampler", origin.sampler or job.sampler),
        ("Schedule type", None if job.sigmas is not None else A1111_SPACINGS.get(job.spacing, job.spacing)),
        ("CFG scale", _number(job.guidance)),
        ("Seed", job.seed),
        ("Size", f"{job.width}x{job.height}"),
        ("Model hash", origin.digests.get("model", "")[:10] or None),
        ("Model", job.model),
        ("VAE hash", next((digest[:10] for _, digest in _added(origin, "vae")), None)),
        ("Clip skip", origin.changes.get("clip_skip")),
        ("RNG", "NV" if job.rng == "a1111" else "CPU"),
        ("Eta", _number(job.eta) if job.eta else None),
        ("CFG Rescale", _number(job.guidance_rescale) if job.guidance_rescale else None),
        ("Guidance interval", "-".join(map(_number, job.guidance_interval or ())) or None),
        ("Sigmas", ", ".join(map(_number, job.sigmas or ())) or None),
        ("Variation seed", job.variation_seed if job.variation else None),
        ("Variation seed strength", _number(job.variation) if job.variation else None),
        ("Tiling", True if job.tile else None),
        ("Denoising strength", _number(job.edit.strength) if job.edit and job.edit.strength is not None else None),
        ("Image CFG scale", _number(job.edit.image_guidance) if job.edit and job.edit.image_guidance is not None else None),
        ("Postprocess upscale by", job.scale if job.scale != 1 else None),
        ("Postprocess upscaler", "Lanczos" if job.scale != 1 else None),
        ("Lora hashes", _hashes(origin, "lora")),
        ("TI hashes", _hashes(origin, "embedding")),
        ("Version", f"ddgen {__version__}"),
    ]
    lines = [_one_block(job.prompt)]
    if job.negative:
        lines.append("Negative prompt: " + _one_block(job.negative))
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in items if value is not None))
    return "\n".join(lines)


def xmp_packet(settings: str) -> str:
    """Return an XMP packet with the mark of AI pictures and the `ddgen` text."""
    escaped = settings.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:ddgen="{NAMESPACE}">'
        f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
        f"<xmp:CreatorTool>ddgen {__version__}</xmp:CreatorTool>"
        f"<ddgen:settings>{escaped}</ddgen:settings>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def exif(text: str) -> bytes:
    """Return EXIF whose one field is UserComment, as UTF-16, high byte first."""
    comment = b"UNICODE\0" + text.encode("utf-16-be", "surrogatepass")
    first = struct.pack(">HHHLLL", 1, 0x8769, 4, 1, 26, 0)  # IFD0: where the Exif IFD lies
    second = struct.pack(">HHHLLL", 1, 0x9286, 7, len(comment), 44, 0)  # Exif IFD: UserComment
    return b"Exif\0\0MM\0*" + struct.pack(">L", 8) + first + second + comment


def jpeg_xmp(packet: str) -> bytes:
    """Return an XMP packet as the APP1 segment of a JPEG file."""
    body = b"http://ns.adobe.com/xap/1.0/\0" + packet.encode()
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def check_fits(metadata: Metadata, format: str) -> None:
    """Refuse texts that a format cannot hold, before a picture is made for them.

    Raises:
        OutputError: JPEG, which keeps each text in one segment of 64 KiB.
    """
    if format != "jpeg":
        return
    size = max(len(exif(metadata.parameters)), len(metadata.xmp.encode()))
    if size > JPEG_LIMIT:
        raise OutputError(
            f"the prompt needs {size} bytes of metadata, JPEG holds {JPEG_LIMIT}",
            "use --format png or --metadata min",
            id="output.metadata",
        )


def png_texts(data: bytes) -> dict[str, str]:
    """Return the text chunks of a PNG by keyword; the first of a name counts.

    Raises:
        InputError: no PNG, torn, or a checksum differs.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise InputError("not a PNG file", id="input.image")
    texts: dict[str, str] = {}
    at = 8
    while True:
        if at + 12 > len(data):
            raise InputError("the PNG file is cut short", id="input.image")
        (length,) = struct.unpack_from(">I", data, at)
        kind, body, end = data[at + 4 : at + 8], data[at + 8 : at + 8 + length], at + 12 + length
        if end > len(data) or zlib.crc32(kind + body) != struct.unpack_from(">I", data, end - 4)[0]:
            raise InputError("the PNG file is damaged", id="input.image")
        if kind == b"tEXt":
            key, _, value = body.partition(b"\0")
            texts.setdefault(key.decode("latin-1"), value.decode("latin-1"))
        elif kind == b"iTXt":
            key, _, rest = body.partition(b"\0")
            if rest[:1] == b"\0":  # not compressed, as ddgen writes it
                value = rest[2:].split(b"\0", 2)[2]
                texts.setdefault(key.decode("latin-1"), value.decode("utf-8", "replace"))
        elif kind == b"IEND":
            return texts
        at = end


def parse(text: str) -> dict[str, object]:
    """Return the plain data of a `ddgen` text.

    Raises:
        InputError: no JSON object of a schema that this version reads.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("the 'ddgen' metadata is not JSON", id="input.metadata") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError("the 'ddgen' metadata is of an unknown schema", id="input.metadata")
    return data


def _added(origin: Origin, kind: str) -> list[tuple[str, str]]:
    """Return (file name without suffix, sha256) of what the run put on its model; the labels are Addition's."""
    found = []
    for label, digest in origin.digests.items():
        head, _, name = label.partition(":")
        if head == kind and digest:
            name = name.rpartition(" x ")[0] or name if kind == "lora" else name
            found.append((name.rpartition(".")[0] or name, digest))
    return found


def _hashes(origin: Origin, kind: str) -> str | None:
    """Return "name: 0123456789, ..."; what would split a name in two for a reader becomes "_"."""
    named = ((re.sub(r"[,:\"\n]", "_", name), digest) for name, digest in _added(origin, kind))
    return ", ".join(f"{name}: {digest[:10]}" for name, digest in named) or None


def _number(value: float) -> str:
    return format(value, ".10g")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ',\n:"') else value


def _one_block(prompt: str) -> str:
    """Keep a prompt from posing as settings: its lines become one, and no NUL reaches a text chunk."""
    return " ".join(prompt.replace("\0", " ").split("\n")).strip()
