"""Getting models from the hub: huggingface_hub carries the bytes, ddgen says which, compares them and
remembers what they were.

    pull:    the commit of the first pull, else the revision that is asked for -> files -> size and sha256
    compared -> recorded
    remove:  the repository's files in the cache, and the record

$HF_HOME, $HF_TOKEN and $HF_ENDPOINT mean what they mean to huggingface_hub, which is imported only when
something is fetched. A file whose
hash is wrong is set aside as .bad and never loaded. Torch-free.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddgen.errors import DdgenError, ModelError, NetworkError, OutputError
from ddgen.weights import hub
from ddgen.weights.digest import digest
from ddgen.weights.hub import Pulled
from ddgen.weights.spec import Source

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

OnBytes = Callable[[str, int, int], None]
"""Called with the file's name, the bytes that have come since the last call, and the bytes of all files."""

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
CONFIGS = ("model_index.json", "scheduler/scheduler_config.json", "ddgen.json")
VARIANTS = ("", ".fp16", ".bf16")


def pull(
    source: Source, name: str, on_bytes: OnBytes | None = None, before: Callable[[], None] = lambda: None
) -> Path:
    """Fetch what is missing of a model, compare all of it, and return its file or folder.

    before: called before the first byte comes, once nothing stands against it; not where all is here.

    Raises:
        NetworkError: offline, no connection, no such repository or file, or a login that is missing.
        ModelError: bytes other than those pinned, announced, or recorded at the first pull.
        OutputError: no space.
    """
    assert source.repo is not None
    key = hub.key_of(source)
    record = hub.pulled().get(key)
    here = hub.located(source)
    if record is not None and here is not None:
        _compare(
            source, name, here if source.file is None else here.parents[source.file.count("/")], record.files
        )
        return here
    if hub.offline():
        if here is not None:
            return here
        raise NetworkError(
            f"model '{name}' is not in the cache and --offline is set",
            f"fetch it first: ddgen models pull {name}",
            id="network.offline",
        )
    try:
        return _fetch(source, name, record, on_bytes, before)
    except DdgenError:
        raise
    except Exception as fault:  # noqa: BLE001 - the library's own errors, its HTTP client's and the system's meet here
        raise _explained(fault, source.repo, name) from fault


def _fetch(
    source: Source, name: str, record: Pulled | None, on_bytes: OnBytes | None, before: Callable[[], None]
) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    assert source.repo is not None
    api = HfApi(library_name="ddgen")
    info = api.model_info(
        source.repo, revision=record.revision if record else source.revision, files_metadata=True
    )
    assert info.sha is not None and info.siblings is not None
    known = {item.rfilename: item for item in info.siblings}
    wanted = sorted(record.files) if record else choose_files(source, known, name)
    sizes = {item: known[item].size or 0 for item in wanted if item in known}
    free = shutil.disk_usage(_existing(hub.cache_dir())).free
    missing = sum(
        size
        for item, size in sizes.items()
        if not (hub.repo_dir(source.repo) / "snapshots" / info.sha / item).exists()
    )
    if missing > free:
        raise OutputError(
            f"model '{name}' needs {missing / 1e9:.2f} GB in '{hub.cache_dir()}', it has {free / 1e9:.2f} GB",
            "free some space, or set HF_HOME to another disk",
            id="output.space",
        )
    if missing:
        before()
    root: Path | None = None
    for item in wanted:
        meter = _meter(item, sum(sizes.values()), on_bytes)
        path = Path(
            hf_hub_download(source.repo, item, revision=info.sha, library_name="ddgen", tqdm_class=meter)
        )
        root = path.parents[item.count("/")]
    assert root is not None
    expected = record.files if record else _expected(source, info, wanted, root, name)
    _compare(source, name, root, expected)
    hub.remember(hub.key_of(source), Pulled(source.repo, info.sha, expected))
    return root / source.file if source.file else root


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def choose_files(source: Source, known: Iterable[str], name: str) -> list[str]:
    """Return the files that a model needs of its repository: the one named, or of each part one set of
    weights with its config.

    Whole safetensors are preferred to halves, halves to pickles; demonstrations, other frameworks' weights
    and safety checkers are left.

    Raises:
        ModelError: no such file, or a repository without a U-Net.
    """
    known = set(known)
    if source.file is not None:
        if source.file not in known:
            raise ModelError(
                f"model '{name}': '{source.repo}' has no file '{source.file}'",
                "see its page for the files it has",
                id="model.absent",
            )
        return [source.file]
    chosen = [item for item in CONFIGS if item in known]
    for part in PARTS:
        weights = _weights_of(part, known)
        if weights and f"{part}/config.json" in known:
            chosen += [f"{part}/config.json", *weights]
    if not any(item.startswith("unet/") for item in chosen):
        files = sorted(item for item in known if item.endswith((".safetensors", ".ckpt")) and "/" not in item)
        hint = (
            f"name one of its files: {source.repo}:{files[0]}" if files else "choose a Stable Diffusion model"
        )
        raise ModelError(f"model '{name}': '{source.repo}' is no diffusers folder", hint, id="model.folder")
    return chosen


def _weights_of(part: str, known: set[str]) -> list[str]:
    stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
    for variant in VARIANTS:
        whole = f"{part}/{stem}{variant}.safetensors"
        if whole in known:
            return [whole]
        for index in (
            f"{part}/{stem}.safetensors.index{variant}.json",
            f"{part}/{stem}{variant}.safetensors.index.json",
        ):
            if index in known:
                return [
                    index,
                    *sorted(
                        item
                        for item in known
                        if item.startswith(f"{part}/{stem}{variant}-") and item.endswith(".safetensors")
                    ),
                ]
    pickled = f"{part}/{'pytorch_model' if stem == 'model' else stem}.bin"
    return [pickled] if pickled in known else []


def _expected(
    source: Source, info: "ModelInfo", wanted: Iterable[str], root: Path, name: str
) -> dict[str, tuple[int, str]]:
    """Return size and sha256 of every file at its first pull: as pinned, as the hub announces (large files),
    else as it came.
    """
    announced: dict[str, RepoSibling] = {item.rfilename: item for item in info.siblings or ()}
    expected = {}
    for item in wanted:
        path = root / item
        size, found = path.stat().st_size, None
        lfs = announced[item].lfs if item in announced else None
        if item == source.file and source.sha256 is not None:
            size, found = source.size or size, source.sha256
        elif lfs is not None:
            size, found = lfs.size, lfs.sha256
        expected[item] = (size, found or digest(path))
    return expected


def _compare(source: Source, name: str, root: Path, expected: dict[str, tuple[int, str]]) -> None:
    """Compare the files with what they should be; one that differs is set aside.

    Raises:
        ModelError: a file is missing or differs.
    """
    for item, (size, sha256) in expected.items():
        path = root / item
        if not path.is_file():
            raise ModelError(
                f"model '{name}': '{item}' is missing from the cache",
                f"get it again with: ddgen models pull {name}",
                id="model.absent",
            )
        found = digest(path)
        if path.stat().st_size != size or found != sha256:
            bad = _set_aside(path)
            raise ModelError(
                f"model '{name}': sha256 of '{item}' is {found[:12]}..., expected {sha256[:12]}... "
                f"(kept as '{bad.name}', never loaded)",
                f"get it again with: ddgen models pull {name}",
                id="model.sha256",
            )


def _set_aside(path: Path) -> Path:
    """Move a file that differs, and the link to it, out of the way."""
    real = path.resolve()
    bad = real.with_name(real.name + ".bad")
    os.replace(real, bad)
    if path.is_symlink():
        path.unlink()
    return bad


def remove(source: Source, name: str) -> int:
    """Delete a model's repository from the cache and forget its record; return the bytes freed.

    Raises:
        ModelError: it is not there.
    """
    assert source.repo is not None
    folder = hub.repo_dir(source.repo)
    if not folder.is_dir():
        raise ModelError(
            f"model '{name}' is not in the cache", "'ddgen models' lists what is here", id="model.absent"
        )
    size = sum(item.stat().st_size for item in folder.rglob("*") if item.is_file() and not item.is_symlink())
    shutil.rmtree(folder)
    hub.forget(source.repo)
    return size


def _meter(item: str, total: int, on_bytes: OnBytes | None) -> Any:
    """Return the class that huggingface_hub makes its bars of: it draws nothing and tells `on_bytes`."""
    from tqdm.auto import tqdm

    class Meter(tqdm):  # type: ignore[misc, type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **(options | {"disable": True}))
            if on_bytes is not None and options.get("initial"):
                on_bytes(item, int(options["initial"]), total)

        def update(self, n: float | None = 1) -> bool | None:
            if on_bytes is not None and n:
                on_bytes(item, int(n), total)
            return None

    return Meter


def _explained(fault: Exception, repo: str, name: str) -> DdgenError:
    """Return what went wrong in words, with the mend; no URL and no token is repeated."""
    from huggingface_hub import constants, errors

    host = constants.ENDPOINT.split("://")[-1].split("/")[0]
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(fault, errors.GatedRepoError):
        return NetworkError(
            f"model '{name}' is gated (HTTP 401)",
            f"accept its licence at {page} and set HF_TOKEN",
            id="network.gated",
        )
    if isinstance(fault, errors.RevisionNotFoundError):
        return NetworkError(
            f"model '{name}': '{repo}' has no such revision",
            f"see {page} for those it has",
            id="network.revision",
        )
    if isinstance(fault, errors.RepositoryNotFoundError):
        return NetworkError(
            f"model '{name}': {host} has no '{repo}', or it needs a login (HTTP 401 or 404)",
            "check the name; set HF_TOKEN if it is private",
            id="network.repo",
        )
    if isinstance(fault, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError):
        return NetworkError(
            f"download of '{name}' from {host} failed: no connection",
            "run it again to continue",
            id="network.download",
        )
    if isinstance(fault, errors.EntryNotFoundError):
        return NetworkError(
            f"model '{name}': '{repo}' lacks a file that its list names", f"see {page}", id="network.file"
        )
    if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"no space left in '{hub.cache_dir()}' for model '{name}'",
            "free some, or set HF_HOME to another disk",
            id="output.space",
        )
    if isinstance(fault, OSError) and fault.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return OutputError(
            f"'{hub.cache_dir()}' cannot be written",
            "set HF_HOME to a directory of your own",
            id="output.permission",
        )
    status = getattr(getattr(fault, "response", None), "status_code", None)
    reason = f"HTTP {status}" if status is not None else type(fault).__name__
    return NetworkError(
        f"download of '{name}' from {host} failed: {reason}",
        "run it again to continue",
        id="network.download",
    )
