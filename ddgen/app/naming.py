"""Where pictures go: what `--output` means, and the name of each file. Torch-free.

    nothing       a-red-apple-1234567.png in the current directory ("-2", "-3", ... when taken)
    dir/, dir     the same in that directory
    a.png         one file
    {seed}.png    a template
    -             the bytes of one picture on standard output

A field of a template becomes one path component, whatever it holds.
"""

import re
import string
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path

from ddgen.errors import OutputError, UsageError, nearest
from ddgen.io import files
from ddgen.io.metadata import canonical
from ddgen.request import Job

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
FIELDS = ("index", "seed", "prompt", "model", "width", "height", "steps", "sampler", "guidance", "hash")
MAX_SLUG = 40  # bytes
MAX_COMPONENT = 200  # bytes
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')


@dataclass(frozen=True)
class Target:
    """What `--output` asks for.

    kind:   "directory", "file", "template" or "stdout".
    root:   the directory that must be writable.
    name:   the file's name, or the template below root.
    format: "png", "jpeg" or "webp".
    """

    kind: str
    root: Path
    name: str
    format: str


def parse_output(output: str | None, format: str | None = None) -> Target:
    """Read `--output` and `--format`.

    Raises:
        UsageError: an unknown or contradicting format, a wrong template.
    """
    chosen = format if format is not None else "png"
    if output == "":
        raise UsageError(
            "--output is empty",
            "use a file, a directory as out/, or '-' for standard output",
            id="usage.output",
        )
    if output == "-":
        return Target("stdout", Path(), "-", chosen)
    if output is None:
        return Target("directory", Path(), "", chosen)
    if "{" in output or "}" in output:
        return _parse_template(output, format)
    path = Path(output)
    if output.endswith("/") or path.is_dir() or not path.suffix:
        return Target("directory", path, "", chosen)
    return Target("file", path.parent, path.name, _format_of(output, path.suffix, format))


class Names:
    """Names for the pictures of one run, none given twice. unnamed: what one without a prompt is called after."""

    def __init__(self, target: Target, *, force: bool = False, unnamed: str = "") -> None:
        self.target = target
        self.force = force
        self._unnamed = unnamed
        self._given: set[Path] = set()

    def check(self, images: int, *, look_only: bool = False) -> None:
        """Find what stands against a run of so many images, before it begins; nothing stays written.

        look_only: do not even try to write.

        Raises:
            UsageError: several images for one file.
            OutputError: the file exists, or the place cannot be written.
        """
        target = self.target
        if target.kind in ("file", "stdout") and images > 1:
            place = "standard output" if target.kind == "stdout" else f"'{target.root / target.name}'"
            raise UsageError(
                f"{images} images do not fit into {place}",
                "give a directory, as in --output out/",
                id="usage.output-several",
            )
        if target.kind == "file":
            path = target.root / target.name
            files.refuse_special(path)
            if files.exists(path) and not self.force:
                raise taken(path)
        if target.kind != "stdout" and not look_only:
            files.probe_directory(target.root)

    def path(self, job: Job, index: int) -> Path:
        """Return a free name for image `index` (from 1) of the run."""
        target = self.target
        if target.kind == "file":
            return target.root / target.name
        suffix = SUFFIXES[target.format]
        if target.kind == "directory":
            return self._free(target.root / f"{self._slug(job)}-{job.seed}{suffix}")
        return self._free(target.root / fill(target.name, job, index))

    def sheet(self, job: Job) -> Path:
        """Return a free name for the contact sheet of a run that begins with `job`."""
        below = "" if self.target.kind == "directory" else "grid-"
        return self._free(
            self.target.root / f"{below}{self._slug(job)}-{job.seed}-grid{SUFFIXES[self.target.format]}"
        )

    def _slug(self, job: Job) -> str:
        return slug(job.prompt or self._unnamed)

    def _free(self, wanted: Path) -> Path:
        path, number = wanted, 1
        while path in self._given or (not self.force and files.exists(path)):
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        self._given.add(path)
        return path


def taken(path: Path) -> OutputError:
    """Return the error for a name that somebody else holds."""
    return OutputError(
        f"'{path}' exists", "use --force to replace it, or another --output", id="output.exists"
    )


def slug(text: str) -> str:
    """Return a prompt as a short file name: letters and digits of any script, at most 40 bytes."""
    folded = unicodedata.normalize("NFC", text.casefold())
    words = "-".join(re.findall(r"[^\W_]+", folded))
    return _cut(words, MAX_SLUG).strip("-") or "image"


def job_hash(job: Job) -> str:
    """Return 12 hex digits that differ between jobs."""
    from hashlib import sha256  # 4 ms that most runs need not pay

    return sha256(canonical(asdict(job)).encode()).hexdigest()[:12]


def fill(template: str, job: Job, index: int) -> str:
    """Return the path below the root that a template gives for a job; no field leaves its path component."""
    values = {name: getattr(job, name) for name in FIELDS if name not in ("index", "hash")}
    values |= {"index": index, "hash": job_hash(job)}
    filled = "".join(
        literal + (_safe_value(format(values[name], spec or "")) if name is not None else "")
        for literal, name, spec, _ in string.Formatter().parse(template)
    )
    return "/".join(_component(part, job) for part in filled.split("/"))


def _parse_template(output: str, format: str | None) -> Target:
    try:
        parts = list(string.Formatter().parse(output))
    except ValueError as error:
        raise UsageError(
            f"--output '{output}' has a stray brace", "write '{{' for a brace", id="usage.template"
        ) from error
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in FIELDS:
            close = nearest(name, FIELDS)
            mend = f"did you mean '{{{close}}}'?" if close is not None else "one of: " + " ".join(FIELDS)
            raise UsageError(f"--output '{output}': unknown field '{name}'", mend, id="usage.template")
        pattern = r"(\.\d{1,3})?" if name in ("prompt", "model", "sampler", "hash") else r"0?\d{0,2}"
        if conversion is not None or not re.fullmatch(pattern, spec or ""):
            raise UsageError(
                f"--output '{output}': field '{name}' cannot be written that way",
                "use {index:04} or {prompt:.40}",
                id="usage.template",
            )
    fixed, brace, rest = output.partition("{")
    root, slash, start = fixed.rpartition("/")
    below = start + brace + rest
    if below.endswith("/"):
        below += "{prompt:.40}-{seed}"
    if any(part in ("", ".", "..") for part in below.split("/")):
        raise UsageError(
            f"--output '{output}' leaves the output directory",
            "drop '..' behind the first field",
            id="usage.template",
        )
    suffix = re.search(r"\.[A-Za-z]\w*$", below)
    chosen = (
        _format_of(output, suffix[0], format)
        if suffix is not None
        else (format if format is not None else "png")
    )
    name = below if suffix is not None else below + SUFFIXES[chosen]
    return Target("template", Path((root + slash).replace("}}", "}")), name, chosen)


def _format_of(output: str, suffix: str, format: str | None) -> str:
    found = FORMATS.get(suffix.lower())
    if found is None:
        raise UsageError(
            f"--output '{output}': unknown picture format '{suffix}'",
            "use .png, .jpg or .webp, or end a directory in '/'",
            id="usage.format",
        )
    if format is not None and format != found:
        raise UsageError(
            f"--format {format} does not fit --output '{output}'", "drop --format", id="usage.format"
        )
    return found


def _safe_value(value: str) -> str:
    return _UNSAFE.sub("_", unicodedata.normalize("NFC", value)).strip()


def _component(part: str, job: Job) -> str:
    part = part.lstrip(".- ").rstrip(". ") or "_"
    if _RESERVED.fullmatch(part):
        part = "_" + part
    if len(part.encode()) <= MAX_COMPONENT:
        return part
    stem, dot, suffix = part.rpartition(".")
    if not dot or dot + suffix not in FORMATS:
        stem, suffix = part, ""
    return f"{_cut(stem, MAX_COMPONENT - 20)}-{job_hash(job)}" + (dot + suffix if suffix else "")


def _cut(text: str, size: int) -> str:
    """Cut a text to so many bytes, at a character's edge."""
    return text.encode()[:size].decode(errors="ignore")
