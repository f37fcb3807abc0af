"""`ddgen models` through the installed program: list, inspect, convert, verify, pull, remove."""

import json
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from program import Place
from safetensors.torch import load_file, save_file
from small import full_size, small_file, small_spec, sparse

from ddgen.weights import convert
from ddgen.weights.checkpoint import open_checkpoint


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def told(result) -> str:
    assert result.returncode == 0, result.stderr.decode()
    assert result.stderr == b"", result.stderr.decode()
    return result.stdout.decode()


def records(result) -> list[dict]:
    return [json.loads(line) for line in told(result).splitlines()]


def small_model(path: Path, name: str = "SD15") -> None:
    """Write a small model with its Spec and CLIP's whole vocabulary, ready to sample from."""
    small_file(path.with_suffix(".raw"), name, vocab=49408)
    spec = small_spec(name, 49408)
    convert.to_file(open_checkpoint(path.with_suffix(".raw")), spec, path, dtype=torch.float16)


def test_the_list_names_what_is_known_and_what_is_here(place):
    text = told(place.run("models", fake=False))
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert " 4" in rows["sticker"] and "MB" in rows["sticker"]
    assert " - " in rows["sd15"] and "creativeml-openrail-m" in rows["sd15"]
    assert "(non-commercial)" in rows["sd-turbo"]
    assert told(place.run("models", "list", fake=False)) == text
    found = {record["name"]: record for record in records(place.run("models", "list", "--json", fake=False))}
    assert found.keys() == rows.keys()
    assert found["sticker"]["path"].endswith("sticker.safetensors") and found["sticker"]["size"] > 10**7
    assert found["sd15"]["size"] is None and found["taesd"]["kind"] == "vae"


@pytest.mark.parametrize(
    ("name", "parameters"), [("SD15", 859_520_964 + 83_653_863 + 123_060_480), ("SDXL", None), ("SD21", None)]
)
def test_inspecting_full_size_files(name, parameters, place):
    sparse(place.path / "m.safetensors", full_size(name), {"modelspec.title": "mine"})
    (record,) = records(place.run("models", "inspect", "m.safetensors", "--json", fake=False))
    assert (record["family"], record["layout"], record["unknown"]) == (name, "ldm", [])
    assert parameters is None or record["parameters"] == parameters
    assert record["metadata"] == {"modelspec.title": "mine"}
    text = told(place.run("models", "inspect", "m.safetensors", fake=False))
    assert f"family      {name}\n" in text and "metadata    modelspec.title = mine\n" in text


def test_inspecting_imports_no_torch(place):
    sparse(place.path / "m.safetensors", full_size("SD21"))
    code = "from ddgen.cli.models import inspect; inspect('m.safetensors')"
    code += "; import sys; print('torch' in sys.modules)"
    assert place.shell(f'python -c "{code}"', fake=False).stdout == b"False\n"


def test_the_hash_is_that_of_sha256sum(place):
    small_file(place.path / "m.safetensors", "TINY_SD")
    text = told(place.run("models", "inspect", "m.safetensors", "--hash", fake=False))
    expected = place.shell("sha256sum m.safetensors", fake=False).stdout.decode().split()[0]
    assert f"sha256      {expected}  m.safetensors" in text


def test_there_and_back_through_a_folder(place):
    small_model(place.path / "one.safetensors")
    assert told(place.run("models", "convert", "one.safetensors", "folder", fake=False)) == "folder\n"
    assert (
        told(place.run("models", "convert", "folder", "two.safetensors", fake=False)) == "two.safetensors\n"
    )
    assert (place.path / "one.safetensors").read_bytes() == (place.path / "two.safetensors").read_bytes()
    wide = place.run(
        "models", "convert", "folder", "w.safetensors", "--dtype", "float32", "--json", fake=False
    )
    (record,) = records(wide)
    assert record["dropped"] == [] and record["bytes"] == (place.path / "w.safetensors").stat().st_size
    assert all(tensor.dtype == torch.float32 for tensor in load_file(place.path / "w.safetensors").values())


def test_what_other_programs_cannot_know_of_the_embedded_model_is_told(place):
    result = place.run("models", "convert", "sticker", "folder", "--json", fake=False)
    record = json.loads(result.stdout)
    told = [json.loads(line)["message"] for line in result.stderr.splitlines()]
    assert told == [f"other programs cannot know: {line}" for line in record["unsaid"]]
    assert result.returncode == 0 and told


def test_what_has_no_place_in_a_folder_is_named(place):
    small_model(place.path / "one.safetensors", "SD21")
    result = place.run("models", "convert", "one.safetensors", "folder", fake=False)
    assert result.returncode == 0 and result.stdout == b"folder\n"
    assert result.stderr.startswith(b"ddgen: warning: 17 tensors have no place in what was written: text.0: ")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("inspect", "none"), 5, "model 'none' does not exist; check the path, or see 'ddgen models'"),
        (("inspect", "text"), 5, "model 'text' is not a safetensors file; download it again"),
        (
            ("convert", "sticker", "text.safetensors"),
            7,
            "'text.safetensors' exists; use --force to replace it",
        ),
        (("convert", "sticker", "full"), 7, "'full' exists; use --force to replace it"),
        (("convert", "sticker", "x", "--layout", "fil"), 2, "unknown layout 'fil'; did you mean 'file'?"),
        (
            ("convert", "sticker", "x", "--dtype", "f16"),
            5,
            "unknown dtype 'f16'; one of: float16, bfloat16, float32",
        ),
        (("path", "sd15"), 5, "model 'sd15' is not on this machine; get it with: ddgen models pull sd15"),
        (
            ("verify", "stickr"),
            5,
            "model 'stickr' is not in the registry; did you mean 'sticker'? ('ddgen models' lists all)",
        ),
        (
            ("pull", "sd15", "--offline"),
            6,
            "model 'sd15' is not in the cache and --offline is set; fetch it first: ddgen models pull sd15",
        ),
        (("remove", "sd15"), 5, "model 'sd15' is not in the cache; 'ddgen models' lists what is here"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, code, line, place):
    (place.path / "text").write_text("hello, this is no model\n")
    (place.path / "text.safetensors").write_text("x")
    (place.path / "full").mkdir()
    (place.path / "full" / "a").write_text("x")
    result = place.run("models", *arguments, fake=False)
    assert result.returncode == code
    assert result.stderr.decode().splitlines()[-1] == f"ddgen: error: {line}"


def test_a_whole_model_is_verified_and_a_damaged_one_named(place):
    assert "text.0" in told(place.run("models", "verify", "sticker", fake=False))
    small_model(place.path / "one.safetensors")
    state = load_file(place.path / "one.safetensors")
    state["model.diffusion_model.out.0.bias"][0] = float("inf")
    save_file(state, place.path / "two.safetensors", open_checkpoint(place.path / "one.safetensors").metadata)
    assert place.run("models", "verify", "one.safetensors", fake=False).returncode == 0
    result = place.run("models", "verify", "two.safetensors", fake=False)
    assert result.returncode == 9 and b"unet tensor 'out.0.bias' holds 1 non-finite values" in result.stderr


def test_a_model_is_fetched_used_and_removed(place):
    small_model(place.path / "one.safetensors")
    data = (place.path / "one.safetensors").read_bytes()
    with FakeHub({"org/small": {"m.safetensors": data}}) as hub:
        net = {"HF_ENDPOINT": hub.url}
        name = "org/small:m.safetensors"
        missing = place.run("sample", "a", "--model", name, fake=False, **net)
        assert missing.returncode == 5 and f"get it with: ddgen models pull {name}" in missing.stderr.decode()
        pulled = place.run("models", "pull", name, fake=False, **net)
        assert pulled.returncode == 0, pulled.stderr
        where = Path(pulled.stdout.decode().rstrip("\n"))
        assert where.read_bytes() == data
        assert told(place.run("models", "path", name, fake=False)) == f"{where}\n"
        made = place.run(
            "sample", "a", "--model", name, "--steps", "2", "--seed", "1", "--offline", fake=False
        )
        assert made.returncode == 0 and (place.path / "a-1.png").is_file(), made.stderr
        assert told(place.run("models", "remove", name, fake=False)).endswith(" freed\n")
        assert not where.exists()
        assert place.run("models", "path", name, fake=False).returncode == 5


def test_a_command_that_needs_a_model_fetches_it_with_its_licence(place):
    small_model(place.path / "one.safetensors", "TINY_SD")
    (place.path / "w.toml").write_text(
        '[small]\narch = "TINY_SD"\nrepo = "org/small"\nfile = "m.safetensors"\nlicence = "cc0"\n'
    )
    arguments = ("sample", "a", "--weights-file", "w.toml", "--model", "small", "--steps", "1")
    refused = place.run(*arguments, "--offline", fake=False).stderr.decode()
    assert "--offline is set" in refused and "licence" not in refused  # nothing comes, so there are no terms yet
    with FakeHub({"org/small": {"m.safetensors": (place.path / "one.safetensors").read_bytes()}}) as hub:
        result = place.run(*arguments, fake=False, HF_ENDPOINT=hub.url)
    lines = result.stderr.decode().splitlines()
    assert "ddgen: small: licence cc0" in lines
    # The entry promises a full tiny-sd: what came is looked at, and does not fit.
    assert result.returncode == 5 and "'m.safetensors'" in lines[-1] and "tensors differ" in lines[-1]
