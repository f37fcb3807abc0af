"""What an adapter or an embedding is, told from its header alone. Torch-free.

    kind     LoRA (with how many modules are LoRA, LoCon, LoHa, LoKr, DoRA ...) or embedding
    family   guessed from the widths that it was made for, else from what its trainer wrote down
    words    what switches it on: a trigger phrase of the metadata, an embedding's own word
    tags     the words that its training captions used most
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddgen.errors import ModelError
from ddgen.weights import lora_names
from ddgen.weights.header import Header, TensorInfo
from ddgen.weights.unpickle import read_weights_header

PLACES = {"clip_l": 0, "text_encoders_0": 0, "clip_g": 1, "text_encoders_1": 1}
"""Names of an embedding's tables in SDXL's files -> the text tower."""

MAX_METADATA = 200  # characters of a value that are shown
MAX_TAGS = 12
MAX_VECTORS = 75
SHARE = 0.25  # of a file's tensors that only an adapter has, at least
_KINDS = (
    ("LoHa", {"w1_a"}), ("LoKr", {"k1", "k1_a"}), ("GLoRA", {"a1"}), ("(IA)3", {"on_input"}),
    ("OFT", {"oft_blocks", "oft_diag"}), ("DoRA", {"dora", "magnitude"}), ("LoRA", {"down", "up"}),
    ("difference", {"diff", "diff_b", "set"}),
)  # fmt: skip
_MARKS = set[str]().union(*(roles for _, roles in _KINDS))
_RANKED = ("down", "w1_b", "k1_b", "k2_b")
_EMBEDDING_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL"}
_BASES = (("xl", "SDXL"), ("v2", "SD 2.x"), ("v1", "SD 1.x"))
Groups = dict[str, dict[str, TensorInfo]]


@dataclass(frozen=True)
class AdapterInspection:
    """kinds: of LoRA -> its modules. ranks: rank -> its modules. modules: part of the model -> how many."""

    path: str
    kind: str
    family: str | None
    tensors: int
    parameters: int
    size: int
    dtypes: dict[str, int]
    kinds: dict[str, int] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    modules: dict[str, int] = field(default_factory=dict)
    vectors: int = 0
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def inspect_adapter(path: str | Path) -> AdapterInspection | None:
    """Describe a LoRA (a file, or a folder as PEFT writes it) or an embedding; None for anything else.

    Raises:
        ModelError: missing, damaged or refused.
    """
    path = Path(path)
    if path.is_dir():
        inside = [path / name for name in lora_names.FOLDER_FILES if (path / name).is_file()]
        if not inside:
            return None
        path = inside[0]
    try:
        header = read_weights_header(path)
    except ModelError:
        return None  # what opens checkpoints says it in its own words
    return _lora(header) or _embedding(header)


def embedding_key(name: str) -> str | None:
    """Return the token or place that a tensor is for; None for what is beside it in a file."""
    if name.startswith("string_to_param."):
        return name.removeprefix("string_to_param.")
    return None if name.startswith(("string_to_token", "optimizer_state", "hash")) else name


def _lora(header: Header) -> AdapterInspection | None:
    groups: Groups = {}
    unknown, marks = [], 0
    for name, info in header.tensors.items():
        found = lora_names.parse(name)
        if found is None:
            unknown.append(name)
            continue
        groups.setdefault(found[0], {})[found[1]] = info
        marks += found[1] in _MARKS
    if not marks or marks < SHARE * len(header.tensors):
        return None
    ranks = Counter(rank for roles in groups.values() if (rank := _rank(roles)) is not None)
    widths = [
        width
        for module, roles in groups.items()
        if module.endswith(("attn2_to_k", "attn2.to_k", "attn2_to_v", "attn2.to_v"))
        and (width := _width(roles)) is not None
    ]
    phrase = header.metadata.get("modelspec.trigger_phrase", "").strip()
    return _made(
        header,
        "LoRA",
        lora_names.looks_like(widths, groups) or _base(header.metadata),
        kinds=dict(Counter(_kind(roles) for roles in groups.values()).most_common()),
        ranks=dict(sorted(ranks.items())),
        modules=dict(sorted(Counter(map(_part, groups)).items())),
        words=(phrase[:MAX_METADATA],) if phrase else (),
        tags=_tags(header.metadata.get("ss_tag_frequency", "")),
        unknown=tuple(sorted(unknown)),
    )


def _embedding(header: Header) -> AdapterInspection | None:
    tables = {key: info for name, info in header.tensors.items() if (key := embedding_key(name)) is not None}
    if set(tables) & set(PLACES):
        tables = {key: info for key, info in tables.items() if key in PLACES}
    elif len(tables) != 1:
        return None
    shapes = [(1, *info.shape) if len(info.shape) == 1 else info.shape for info in tables.values()]
    if not all(len(shape) == 2 and shape[1] in _EMBEDDING_FAMILIES for shape in shapes):
        return None
    if not 1 <= shapes[0][0] <= MAX_VECTORS or len({shape[0] for shape in shapes}) != 1:
        return None
    own = [key for key in tables if key not in ("*", "emb_params", *PLACES)]
    named = [header.metadata["name"]] if "name" in header.metadata else []
    words = tuple(dict.fromkeys(word for word in (header.path.stem, *own, *named) if word.strip()))
    family = "SDXL" if len(shapes) > 1 else _EMBEDDING_FAMILIES[shapes[0][1]]
    return _made(header, "embedding", family, vectors=shapes[0][0], words=words)


def _made(
    header: Header,
    kind: str,
    family: str | None,
    *,
    kinds: dict[str, int] | None = None,
    ranks: dict[int, int] | None = None,
    modules: dict[str, int] | None = None,
    vectors: int = 0,
    words: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    unknown: tuple[str, ...] = (),
) -> AdapterInspection:
    infos = header.tensors.values()
    shown = {
        key: value if len(value) <= MAX_METADATA else value[:MAX_METADATA] + "..."
        for key, value in sorted(header.metadata.items())
        if key != "ss_tag_frequency"
    }
    return AdapterInspection(
        str(header.path), kind, family, len(header.tensors), sum(info.count for info in infos), header.size,
        dict(sorted(Counter(info.dtype for info in infos).items())), kinds or {}, ranks or {}, modules or {},
        vectors, words, tags, unknown, shown,
    )  # fmt: skip


def _kind(roles: Mapping[str, TensorInfo]) -> str:
    name = next((name for name, marks in _KINDS if marks & roles.keys()), "other")
    down = roles.get("down")
    kernel = down is not None and len(down.shape) == 4 and max(down.shape[2:]) > 1
    return "LoCon" if name == "LoRA" and ("mid" in roles or kernel) else name


def _rank(roles: Mapping[str, TensorInfo]) -> int | None:
    for role in _RANKED:
        if role in roles and roles[role].shape:
            return roles[role].shape[0]
    return None


def _width(roles: Mapping[str, TensorInfo]) -> int | None:
    """Return how wide the input of a module is."""
    for role in ("down", "w1_b", "diff"):
        if role in roles and len(roles[role].shape) > 1:
            return roles[role].shape[1]
    return None


def _part(module: str) -> str:
    if module.startswith(("lora_te2", "text_encoder_2.", "clip_g.", "text_encoders.clip_g")):
        return "text.1"
    if module.startswith(("lora_te", "text_encoder.", "text_model.", "clip_l.", "text_encoders.")):
        return "text.0"
    return "unet"


def _base(metadata: Mapping[str, str]) -> str | None:
    """Return the family that a trainer wrote down."""
    said = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture") or ""
    return next((family for mark, family in _BASES if mark in said.lower()), None)


def _tags(text: str) -> tuple[str, ...]:
    """Return the most frequent tags of kohya's {folder: {tag: count}}."""
    try:
        data = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return ()
    total: Counter[str] = Counter()
    for tags in data.values() if isinstance(data, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int:
                total[tag.strip()[:MAX_METADATA]] += count
    return tuple(tag for tag, _ in total.most_common(MAX_TAGS))
