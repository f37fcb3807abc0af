"""Weights found by name in the folders that the user's config lists."""

import json
from pathlib import Path

import pytest
from program import Place
from small import small_file

from ddgen.app.adjust import adjust
from ddgen.errors import InputError, ModelError
from ddgen.weights import registry, shelves


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config that lists two folders of models, one of them away, and one of adapters."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    path = tmp_path / "config" / "ddgen" / "config.toml"
    path.parent.mkdir(parents=True)
    (tmp_path / "models" / "deep").mkdir(parents=True)
    (tmp_path / "loras").mkdir()
    path.write_text(
        f'model_dirs = ["{tmp_path}/away", "{tmp_path}/models"]\nlora_dirs = ["{tmp_path}/loras"]\n'
    )
    return path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_a_name_is_a_file_without_its_suffix_anywhere_below(config: Path, tmp_path: Path) -> None:
    mine = touch(tmp_path / "models" / "deep" / "mine_v1.5.safetensors")
    touch(tmp_path / "models" / ".hidden" / "secret.safetensors")
    touch(tmp_path / "models" / "notes.txt")
    assert shelves.search("model_dirs", "mine_v1.5") == mine
    assert shelves.search("model_dirs", "mine_v1.5.safetensors") == mine
    assert shelves.search("lora_dirs", "mine_v1.5") is None
    assert shelves.search("model_dirs", "mine_v1") is shelves.search("model_dirs", "secret") is None
    assert shelves.names("model_dirs") == ["mine_v1.5"]
    touch(tmp_path / "models" / "folder" / "model_index.json")
    touch(tmp_path / "models" / "folder" / "unet" / "inner.safetensors")
    assert shelves.search("model_dirs", "folder") == tmp_path / "models" / "folder"
    assert shelves.search("model_dirs", "inner") is None


def test_links_are_followed_and_no_loop_catches_the_search(config: Path, tmp_path: Path) -> None:
    real = touch(tmp_path / "elsewhere" / "linked.ckpt")
    (tmp_path / "models" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "models" / "again.ckpt").symlink_to(real)
    (tmp_path / "models" / "deep" / "up").symlink_to(tmp_path / "models")
    assert shelves.search("model_dirs", "linked") == tmp_path / "models" / "out" / "linked.ckpt"
    (tmp_path / "models" / "linked.ckpt").symlink_to(real)
    found = shelves.search("model_dirs", "linked")
    assert found is not None and found.resolve() == real, "one file by two ways is one file"


def test_two_files_of_one_name_are_both_named(config: Path, tmp_path: Path) -> None:
    one = touch(tmp_path / "models" / "x.safetensors")
    two = touch(tmp_path / "models" / "deep" / "x.ckpt")
    with pytest.raises(ModelError) as caught:
        registry.find("x")
    assert str(one) in caught.value.message and str(two) in caught.value.message
    assert shelves.search("model_dirs", "x.ckpt") == two


def test_models_adapters_and_autoencoders_by_name(config: Path, tmp_path: Path) -> None:
    small_file(tmp_path / "models" / "deep" / "own.safetensors", "SD15")
    spec = registry.find("own")
    assert (spec.name, spec.source.path) == ("own", tmp_path / "models" / "deep" / "own.safetensors")
    assert registry.find_vae("own") == spec.source.path
    ink, zebra = touch(tmp_path / "loras" / "ink.safetensors"), touch(tmp_path / "loras" / "a" / "zebra.pt")
    changed = adjust(spec, loras=["ink:0.5"], embeddings=["zebra"])
    assert [(item.path, item.weight) for item in changed.additions] == [(ink, 0.5), (zebra, 1.0)]
    with pytest.raises(ModelError, match="--lora 'inkk': no such file") as caught:
        adjust(spec, loras=["inkk"])
    assert "did you mean 'ink'?" in caught.value.hint
    with pytest.raises(ModelError, match="not in the registry") as caught:
        registry.find("ownn")
    assert "did you mean 'own'?" in caught.value.hint


def test_known_names_and_paths_go_before(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "models" / "sticker.safetensors")
    assert registry.find("sticker").source.path != tmp_path / "models" / "sticker.safetensors"
    small_file(tmp_path / "near.safetensors", "SD15")
    touch(tmp_path / "models" / "near.safetensors")
    monkeypatch.chdir(tmp_path)
    assert registry.find("near.safetensors").source.path == Path("near.safetensors")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model_dirs = "one"\n', "'model_dirs' is no list of folders"),
        ("lora_dirs = [1]\n", "'lora_dirs' is no list of folders"),
        ('lora_dirs = ["here"]\n', "'lora_dirs' names 'here', which is relative"),
        ("model_dirs = [\n", "config"),
    ],
)
def test_a_wrong_list_is_named(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    with pytest.raises(InputError) as caught:
        shelves.directories("model_dirs")
    assert said in caught.value.message


def test_the_program_tells_its_folders_and_samples_from_them(tmp_path: Path) -> None:
    place = Place(tmp_path)
    path = place.home / ".config" / "ddgen" / "config.toml"
    path.parent.mkdir(parents=True)
    models = place.home / "my models"
    models.mkdir()
    path.write_text('model_dirs = ["~/my models"]\nlora_dirs = ["/nowhere"]\n[sample]\nsteps = 3\n')
    small_file(models / "own.safetensors", "SD15")
    done = place.run("sample", "x", "--model", "own", "--plan", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["model"], job["steps"]) == ("own", 3)
    shown = place.run("config", "show", "--origin").stdout.decode()
    assert f"model_dirs = {models}  (config)\n" in shown and "lora_dirs = /nowhere  (config)" in shown
    doctor = place.run("doctor").stdout.decode()
    assert "~/my models\n" in doctor and "/nowhere (not there)" in doctor
    path.write_text('[sample]\nmodel_dirs = ["/a"]\n')
    done = place.run("sample", "x", "--plan")
    assert done.returncode == 4 and b"line 2: 'model_dirs' is no setting of [sample]" in done.stderr
