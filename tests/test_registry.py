"""Models by name and by path: where weights.toml is looked for, what wins, what a wrong entry says."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import full_size, small_file, small_spec, sparse

from ddgen.diffusion.prediction import PREDICTIONS
from ddgen.diffusion.samplers import SAMPLERS
from ddgen.diffusion.schedule import make_schedule
from ddgen.diffusion.spacing import SPACINGS
from ddgen.errors import InputError, ModelError
from ddgen.weights import arch as archs
from ddgen.weights import convert, registry
from ddgen.weights.checkpoint import open_checkpoint
from ddgen.weights.header import read_header
from ddgen.weights.spec import Defaults, spec_from_json, spec_to_json

ENTRY = '[{name}]\narch = "SD15"\nrepo = "{repo}"\n'


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """No settings, no cache and no variable of whoever runs the tests."""
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def write(path: Path, name: str, repo: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ENTRY.format(name=name, repo=repo))
    return path


def test_every_packaged_entry_can_be_run():
    known = registry.entries()
    assert len(known) > 20 and sum(entry.default for entry in known.values()) == 1
    for entry in known.values():
        if entry.kind != "model":
            continue
        spec = registry.resolve(entry)
        make_schedule(spec.schedule)
        assert spec.prediction in PREDICTIONS
        assert spec.defaults.sampler in SAMPLERS and spec.defaults.spacing in SPACINGS
        assert spec.defaults.width % spec.divisor == 0 == spec.defaults.height % spec.divisor
        assert spec.licence, entry.name
        assert not spec.distilled or spec.defaults.guidance == 1.0


def test_names_and_aliases_are_each_used_once():
    known = registry.entries()
    names = [*known, *(alias for entry in known.values() for alias in entry.aliases)]
    assert len(names) == len(set(names))


def test_the_default_is_the_packaged_model_and_carries_its_own_spec():
    spec = registry.find()
    assert spec.name == "sticker" == registry.default_name()
    assert spec.source.path == registry.PACKAGE / "models" / "sticker.safetensors"
    assert spec_from_json(read_header(spec.source.path).metadata["ddgen"], spec.source.path).arch == spec.arch


def test_what_is_named_first_wins(tmp_path, monkeypatch):
    user = write(registry.user_config_dir() / "weights.toml", "sd15", "user/repo")
    assert registry.find("sd15").source.repo == "user/repo"
    monkeypatch.setenv(registry.VARIABLE, str(write(tmp_path / "env.toml", "sd15", "env/repo")))
    assert registry.find("sd15").source.repo == "env/repo"
    flag = write(tmp_path / "flag.toml", "sd15", "flag/repo")
    assert registry.find("sd15", weights_file=flag).source.repo == "flag/repo"
    assert registry.find("sdxl", weights_file=flag).source.repo == "stabilityai/stable-diffusion-xl-base-1.0"
    assert [path for path in registry.weights_files(flag)][2] == user


def test_the_current_directory_is_never_read(tmp_path, monkeypatch):
    write(tmp_path / "weights.toml", "evil", "evil/repo")
    (tmp_path / "sticker").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "evil" not in registry.entries()
    assert registry.find("sticker").source.path != tmp_path / "sticker"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[m]\nrepo = 3\n", "has a wrong 'repo'"),
        ("[m]\nrepo = 'a/b'\n", "has a repo but no arch"),
        ("[m]\narch = 'SD15'\n", "exactly one of path, packaged, repo"),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\npath = 'c'\n", "exactly one of path, packaged, repo"),
        ("[m]\narch = 'SD16'\nrepo = 'a/b'\n", "has arch 'SD16', known are SD15"),
        (
            "[m]\narch = 'SD15'\nrepo = 'a/b'\npredction = 'v'\n",
            "unknown field 'predction'; did you mean 'prediction'?",
        ),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\nprediction = 'w'\n", "has prediction 'w', known are eps, v"),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\nsha256 = 'XY'\n", "'sha256' that is not 64 hex digits"),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\nsize = 1.5\n", "'size' that is not a number of bytes"),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\naliases = 'x'\n", "aliases that are not a list"),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\nkind = 'x'\n", "has kind 'x'"),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\ndistilled = 1\n", "has a wrong 'distilled'"),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\nschedule = { beta = [1] }\n", "has a wrong 'schedule'"),
        (
            "[m]\narch = 'SD15'\nrepo = 'a/b'\ndefaults = { stps = 3 }\n",
            "unknown default 'stps' (did you mean 'steps'?)",
        ),
        ("[m]\narch = 'SD15'\nrepo = 'a/b'\ndefaults = { steps = 3.5 }\n", "has a wrong default 'steps'"),
        ("m = 3\n", "is not a table"),
        ("[m\n", "cannot be read"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_wrong_entry_is_an_input_error_that_says_why(text, words, tmp_path):
    path = tmp_path / "w.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        registry.entries(path)
    assert caught.value.exit_code == 4 and words in caught.value.message, caught.value.message


def test_a_weights_file_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(InputError, match="--weights-file '/none' is not a file"):
        registry.entries("/none")
    monkeypatch.setenv(registry.VARIABLE, "/none")
    with pytest.raises(InputError, match="DDGEN_WEIGHTS '/none' is not a file"):
        registry.entries()


def test_an_unknown_name_gets_the_nearest_spelling():
    with pytest.raises(ModelError) as caught:
        registry.find("sd15x")
    assert caught.value.message == "model 'sd15x' is not in the registry"
    assert caught.value.hint == "did you mean 'sd15'? ('ddgen models' lists all)"
    with pytest.raises(ModelError, match="does not exist"):
        registry.find("./none.safetensors")


def test_an_autoencoder_is_no_model():
    with pytest.raises(ModelError, match="is an autoencoder alone"):
        registry.find("taesd")


def test_a_file_with_its_own_spec_needs_nothing_else(tmp_path):
    small_file(tmp_path / "one.safetensors", "SDXL")
    spec = replace(small_spec("SDXL"), zero_negative=True, prediction="v", x0_clamp={"kind": "dynamic"})
    convert.to_file(open_checkpoint(tmp_path / "one.safetensors"), spec, tmp_path / "two.safetensors")
    convert.to_folder(open_checkpoint(tmp_path / "one.safetensors"), spec, tmp_path / "folder")
    for path in (tmp_path / "two.safetensors", tmp_path / "folder"):
        found = registry.find(str(path))
        assert found.source.path == path
        assert replace(found, source=spec.source) == spec


def test_an_entry_with_a_path_goes_before_what_its_file_says(tmp_path):
    small_file(tmp_path / "one.safetensors", "SD15")
    convert.to_file(
        open_checkpoint(tmp_path / "one.safetensors"), small_spec("SD15"), tmp_path / "two.safetensors"
    )
    (tmp_path / "w.toml").write_text(
        '[mine]\naliases = ["m"]\npath = "two.safetensors"\nprediction = "v"\ndefaults = { steps = 3 }\n'
    )
    found = registry.find("m", weights_file=tmp_path / "w.toml")
    assert (found.name, found.prediction, found.source.path) == ("mine", "v", tmp_path / "two.safetensors")
    assert found.defaults == Defaults(width=64, height=64, steps=3)


def test_a_file_without_a_spec_takes_its_familys_defaults(tmp_path):
    sparse(tmp_path / "xl.safetensors", full_size("SDXL"))
    found = registry.find(str(tmp_path / "xl.safetensors"))
    known = registry.resolve(registry.entries()["sdxl"])
    assert (found.name, found.arch, found.licence) == ("xl", archs.SDXL, "")
    assert found.defaults == known.defaults and found.zero_negative and found.prediction == "eps"
    sparse(tmp_path / "v.safetensors", full_size("SDXL") | {"v_pred": (0,)})
    found = registry.find(str(tmp_path / "v.safetensors"))
    assert found.prediction == "v" and "zero_terminal_snr" not in found.schedule
    sparse(tmp_path / "pg.safetensors", full_size("SDXL") | {"edm_mean": (4,), "edm_std": (4,)})
    found = registry.find(str(tmp_path / "pg.safetensors"))
    assert found.arch == archs.PLAYGROUND and found.prediction == "edm" and found.sigma_data == 0.5
    assert found.schedule["kind"] == "edm"


def test_a_settings_file_beside_config_files_says_what_they_cannot(tmp_path):
    """A ddgen.json written by hand: patches in place of an autoencoder, position channels, another
    schedule."""
    small_file(tmp_path / "one.safetensors", "SD15")
    convert.to_folder(open_checkpoint(tmp_path / "one.safetensors"), small_spec("SD15"), tmp_path / "m")
    unet = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(unet)
    state["conv_in.weight"] = torch.randn(32, 12 + 16, 3, 3)
    save_file(state, unet)
    config = tmp_path / "m" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 28'))
    (tmp_path / "m" / "ddgen.json").write_text(
        '{"name": "hand", "prediction": "x0", "first_stage": {"kind": "patch", "factor": 2, "channels": 3}, '
        '"position_channels": {"count": 16}, '
        '"schedule": {"kind": "cosine", "shift": -1.0, "formula": "prose"}, '
        '"x0_clamp": {"kind": "static", "min": -1.1, "max": 1.1}, '
        '"image_size": [32, 16], "defaults": {"steps": 9}}'
    )
    found = registry.find(str(tmp_path / "m"))
    assert (found.arch.unet.in_channels, found.arch.unet.position_channels) == (12, 16)
    assert found.arch.first_stage.channels == 12 and found.prediction == "x0"
    assert found.schedule == {"kind": "cosine", "shift": -1.0} and found.x0_clamp["max"] == 1.1
    assert (found.defaults.width, found.defaults.height, found.defaults.steps) == (32, 16, 9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-1], "is not JSON"),
        (lambda text: "[]", "is not a JSON object"),
        (lambda text: text.replace('"format":1', '"format":2'), "another version of ddgen"),
        (lambda text: text.replace('"name"', '"nom"'), "has an unknown field 'nom'"),
        (lambda text: text.replace('"kind":"scaled_linear"', '"kind":{}'), "has a wrong 'schedule'"),
        (lambda text: text.replace('"steps":25', '"steps":"many"'), "has a wrong default 'steps'"),
        (lambda text: text.replace('"steps":25', '"steps":1e99'), "has a wrong default 'steps'"),
    ],
)
def test_a_damaged_spec_is_refused(change, words, tmp_path):
    text = spec_to_json(small_spec("SD15"))
    assert change(text) != text
    with pytest.raises(ModelError) as caught:
        spec_from_json(change(text), tmp_path / "m.safetensors")
    assert words in caught.value.message, caught.value.message


def test_finding_a_model_imports_no_torch():
    code = "import sys; from ddgen.weights import registry; registry.find(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "False\n"
