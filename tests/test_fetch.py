"""Models from the hub, against a fake one on 127.0.0.1: what is asked for, compared and remembered; every
fault is one clean error.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub

from ddgen.weights import hub
from ddgen.weights.fetch import choose_files
from ddgen.weights.hub import parse_reference
from ddgen.weights.spec import Source

BIG = bytes(range(256)) * 300
FOLDER = {
    "model_index.json": b"{}",
    "README.md": b"# a model",
    "scheduler/scheduler_config.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": BIG,
    "unet/diffusion_pytorch_model.fp16.safetensors": BIG[:100],
    "unet/diffusion_pytorch_model.bin": BIG,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.fp16.safetensors": BIG[:500],
    "text_encoder/config.json": b"{}",
    "text_encoder/pytorch_model.bin": BIG[:300],
    "text_encoder/flax_model.msgpack": BIG,
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": BIG,
    "v1-5.ckpt": BIG,
}
CHOSEN = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/pytorch_model.bin",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]
SECRET = "hf_verysecrettoken"


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with FakeHub(
        {"org/folder": dict(FOLDER), "org/single": {"m.safetensors": BIG, "other.safetensors": BIG[:10]}}
    ) as running:
        yield running


SCRIPT = """
import json, sys
from pathlib import Path
from ddgen.errors import DdgenError
from ddgen.weights import fetch, hub
from ddgen.weights.spec import Source
source = Source(**json.loads(sys.argv[2]))
seen = []
try:
    if sys.argv[1] == "pull":
        value = str(fetch.pull(source, "name", lambda item, count, total: seen.append((item, count, total))))
    elif sys.argv[1] == "remove":
        value = fetch.remove(source, "name")
    else:
        value = str(hub.located(source))
    print(json.dumps({"value": value, "seen": seen}))
except DdgenError as error:
    print(json.dumps({"error": str(error), "code": error.exit_code, "id": error.id}))
"""


def call(
    server: FakeHub | None,
    home: Path,
    action: str = "pull",
    env: dict[str, str] | None = None,
    **source: object,
) -> dict[str, object]:
    """Run one action in a process of its own: huggingface_hub reads its variables when it is imported."""
    url = server.url if server is not None else "http://127.0.0.1:9"
    variables = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "hf"),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING", "DDGEN_")) and "proxy" not in key.lower()
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, action, json.dumps(source)],
        env=clean | variables | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def record(home: Path) -> dict[str, dict[str, object]]:
    return json.loads((home / "state" / "ddgen" / hub.FILE).read_text())


def test_a_file_is_fetched_compared_and_remembered(server: FakeHub, tmp_path: Path) -> None:
    source = {"repo": "org/single", "file": "m.safetensors"}
    first = call(server, tmp_path, **source)
    path = Path(str(first["value"]))
    assert path.read_bytes() == BIG and COMMIT in str(path) and str(tmp_path / "hf") in str(path)
    assert sum(count for _, count, _ in first["seen"]) == len(BIG)  # type: ignore[attr-defined]
    assert {total for _, _, total in first["seen"]} == {len(BIG)}  # type: ignore[attr-defined]
    sha = hashlib.sha256(BIG).hexdigest()
    assert record(tmp_path) == {
        "org/single:m.safetensors": {
            "repo": "org/single",
            "revision": COMMIT,
            "files": {"m.safetensors": [len(BIG), sha]},
        }
    }
    assert server.sent == len(BIG)

    asked = len(server.requests)
    again = call(server, tmp_path, **source)
    assert again["value"] == first["value"] and len(server.requests) == asked  # nothing is asked twice
    assert call(None, tmp_path, "locate", **source)["value"] == first["value"]
    assert call(None, tmp_path, env={"HF_HUB_OFFLINE": "1"}, **source)["value"] == first["value"]

    freed = call(None, tmp_path, "remove", **source)
    assert freed["value"] == len(BIG) and record(tmp_path) == {} and not path.exists()
    assert call(None, tmp_path, "locate", **source)["value"] == "None"
    assert call(None, tmp_path, "remove", **source)["code"] == 5


def test_a_folder_takes_only_what_it_needs(server: FakeHub, tmp_path: Path) -> None:
    found = call(server, tmp_path, repo="org/folder")
    root = Path(str(found["value"]))
    assert sorted(item.relative_to(root).as_posix() for item in root.rglob("*") if item.is_file()) == CHOSEN
    assert sorted(record(tmp_path)["org/folder"]["files"]) == CHOSEN  # type: ignore[call-overload]
    assert call(None, tmp_path, "locate", repo="org/folder")["value"] == str(root)


def test_the_commit_of_the_first_pull_is_asked_for_ever_after(server: FakeHub, tmp_path: Path) -> None:
    source = {"repo": "org/single", "file": "m.safetensors"}
    path = Path(str(call(server, tmp_path, **source)["value"]))
    path.unlink()
    server.requests.clear()
    assert call(server, tmp_path, **source)["value"] == str(path)
    assert any(COMMIT in request for request in server.requests) and not any(
        "main" in request for request in server.requests
    )
    path.resolve().unlink()
    path.unlink()
    server.repos["org/single"]["m.safetensors"] = BIG[
        ::-1
    ]  # the same commit with other bytes: a broken or hostile mirror
    found = call(server, tmp_path, **source)
    assert found["code"] == 5 and found["id"] == "model.sha256" and "never loaded" in str(found["error"])


def test_a_file_changed_in_the_cache_is_set_aside(server: FakeHub, tmp_path: Path) -> None:
    source = {"repo": "org/single", "file": "m.safetensors"}
    path = Path(str(call(server, tmp_path, **source)["value"]))
    real = path.resolve()
    os.chmod(real, 0o644)
    real.write_bytes(BIG[:-1] + b"x")
    found = call(server, tmp_path, **source)
    assert found["id"] == "model.sha256" and "ddgen models pull name" in str(found["error"])
    assert real.with_name(real.name + ".bad").exists() and not path.exists()
    assert Path(str(call(server, tmp_path, **source)["value"])).read_bytes() == BIG


def test_other_bytes_than_announced_are_refused(server: FakeHub, tmp_path: Path) -> None:
    server.faults["m.safetensors"] = "other bytes"
    found = call(server, tmp_path, repo="org/single", file="m.safetensors")
    assert (found["code"], found["id"]) == (5, "model.sha256")
    assert not (tmp_path / "state" / "ddgen" / hub.FILE).exists()
    server.faults.clear()
    assert "value" in call(server, tmp_path, repo="org/single", file="m.safetensors")


def test_a_pinned_hash_is_compared(server: FakeHub, tmp_path: Path) -> None:
    good = {
        "repo": "org/single",
        "file": "m.safetensors",
        "sha256": hashlib.sha256(BIG).hexdigest(),
        "size": len(BIG),
    }
    assert call(server, tmp_path / "a", **(good | {"sha256": "0" * 64}))["id"] == "model.sha256"
    assert "value" in call(server, tmp_path / "b", **good)


def test_gated_models_say_where_to_accept(server: FakeHub, tmp_path: Path) -> None:
    server.gated.add("org/single")
    server.token = SECRET
    source = {"repo": "org/single", "file": "m.safetensors"}
    found = call(server, tmp_path, **source)
    assert (found["code"], found["id"]) == (6, "network.gated")
    assert (
        found["error"]
        == f"model 'name' is gated (HTTP 401); accept its licence at {server.url}/org/single and set HF_TOKEN"
    )
    assert "value" in call(server, tmp_path, env={"HF_TOKEN": SECRET}, **source)


def test_what_is_not_there_is_named(server: FakeHub, tmp_path: Path) -> None:
    cases = [
        ({"repo": "org/none", "file": "m.safetensors"}, 6, "network.repo"),
        ({"repo": "org/single", "file": "none.safetensors"}, 5, "model.absent"),
        ({"repo": "org/single", "file": "m.safetensors", "revision": "nowhere"}, 6, "network.revision"),
        ({"repo": "org/single"}, 5, "model.folder"),
    ]
    for source, code, id in cases:
        found = call(server, tmp_path, **source)
        assert (found["code"], found["id"]) == (code, id)
    assert "org/single:m.safetensors" in str(found["error"])


@pytest.mark.parametrize("fault", ["500", "short"])
def test_broken_transfers_leave_no_model(fault: str, server: FakeHub, tmp_path: Path) -> None:
    server.faults["m.safetensors"] = fault
    source = {"repo": "org/single", "file": "m.safetensors"}
    found = call(server, tmp_path, env={"HF_HUB_DOWNLOAD_TIMEOUT": "2"}, **source)
    assert found["code"] == 6 and "run it again to continue" in str(found["error"])
    assert call(None, tmp_path, "locate", **source)["value"] == "None"
    server.faults.clear()
    assert Path(str(call(server, tmp_path, **source)["value"])).read_bytes() == BIG


def test_no_server_is_a_network_error(tmp_path: Path) -> None:
    found = call(None, tmp_path, repo="org/single", file="m.safetensors")
    assert found["code"] == 6 and "127.0.0.1:9" in str(found["error"])


OFFLINE = (
    """
import sys, os
def watch(event, arguments):
    if event.startswith("socket."):
        os._exit(99)
sys.addaudithook(watch)
"""
    + SCRIPT
)


def test_offline_touches_no_socket(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SCRIPT", OFFLINE)
    source = {"repo": "org/single", "file": "m.safetensors"}
    found = call(server, tmp_path, env={"DDGEN_OFFLINE": "1"}, **source)
    assert (found["code"], found["id"]) == (6, "network.offline")
    assert "--offline is set; fetch it first: ddgen models pull name" in str(found["error"])
    assert server.requests == []
    with pytest.raises(AssertionError):
        call(server, tmp_path, **source)  # without it a socket is opened, and the watch sees it


def test_the_cache_of_other_programs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    repo = tmp_path / "hf" / "hub" / "models--org--single"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    source = Source(repo="org/single", file="m.safetensors")
    assert hub.located(source) is None
    (repo / "snapshots" / COMMIT / "m.safetensors").write_bytes(BIG)
    assert hub.located(source) == repo / "snapshots" / COMMIT / "m.safetensors"
    assert hub.located(Source(repo="org/single")) is None


def test_a_damaged_record_is_not_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddgen.errors import ModelError

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "ddgen").mkdir()
    (tmp_path / "ddgen" / hub.FILE).write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        hub.located(Source(repo="a/b"))
    assert (tmp_path / "ddgen" / hub.FILE).read_text() == "{"


def test_shards_of_one_variant() -> None:
    names = [
        f"unet/diffusion_pytorch_model{v}-0000{i}-of-00002.safetensors" for v in ("", ".fp16") for i in (1, 2)
    ]
    known = [
        *names,
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    ]
    assert choose_files(Source(repo="a/b"), known, "m") == [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        *names[:2],
    ]
    halves = [item for item in known if item.endswith(".json") is False and ".fp16" in item] + [
        "unet/config.json",
        known[-1],
    ]
    assert choose_files(Source(repo="a/b"), halves, "m") == ["unet/config.json", known[-1], *names[2:]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/repo", ("org/repo", None, None)),
        ("org/repo@v1.0", ("org/repo", "v1.0", None)),
        ("org/repo:a/b.safetensors", ("org/repo", None, "a/b.safetensors")),
        ("org/repo@refs/pr/1:m.ckpt", ("org/repo", "refs/pr/1", "m.ckpt")),
        ("repo", None),
        ("a/b/c", None),
        ("../x", None),
        ("org/re po", None),
        ("/abs/path", None),
        ("org/repo:../x", None),
        ("-a/b", None),
    ],
)
def test_references(text: str, expected: tuple[str | None, ...] | None) -> None:
    found = parse_reference(text)
    assert (None if found is None else (found.repo, found.revision, found.file)) == expected


def test_processes_pull_at_once(server: FakeHub, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(call, server, tmp_path, "pull", None, repo="org/single", file=name)
            for name in ("m.safetensors", "other.safetensors") * 2
        ]
        assert all("value" in job.result() for job in jobs)
    assert set(record(tmp_path)) == {"org/single:m.safetensors", "org/single:other.safetensors"}
