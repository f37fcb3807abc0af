"""`ddgen models inspect` on adapters and embeddings: what a header alone tells."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from program import Place
from safetensors.torch import save_file

from ddgen.errors import ModelError
from ddgen.weights.adapter_header import inspect_adapter
from ddgen.weights.embedding import open_embedding

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K2 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TE = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def saved(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(tensors, path, metadata)
    return path


def pair(stem: str, rank: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{stem}.lora_down.weight": (rank, width),
        f"{stem}.lora_up.weight": (32, rank),
        f"{stem}.alpha": (),
    }


def test_a_lora_tells_kinds_ranks_parts_family_and_words(tmp_path: Path) -> None:
    tags = {"10_cat": {"sitting": 2, "zwx cat": 40}, "reg": {"sitting": 3, "bad": "no"}}
    shapes = pair(Q, 4, 320) | pair(K2, 8, 2048) | pair(TE.replace("te_", "te2_"), 4, 1280)
    shapes |= {"conv.lora_down.weight": (4, 32, 3, 3), "conv.lora_up.weight": (32, 4, 1, 1), "stranger": (1,)}
    metadata = {"ss_tag_frequency": json.dumps(tags), "modelspec.trigger_phrase": "zwx cat"}
    metadata["long"] = "x" * 999
    found = inspect_adapter(saved(tmp_path / "l.safetensors", shapes, metadata))
    assert found is not None
    assert (found.kind, found.family) == ("LoRA", "SDXL")
    assert found.kinds == {"LoRA": 3, "LoCon": 1} and found.ranks == {4: 3, 8: 1}
    assert found.modules == {"text.1": 1, "unet": 3} and found.unknown == ("stranger",)
    assert found.words == ("zwx cat",) and found.tags == ("zwx cat", "sitting")
    assert found.parameters == sum(torch.Size(shape).numel() for shape in shapes.values())
    assert found.dtypes == {"F16": len(shapes)} and len(found.metadata["long"]) == 203


@pytest.mark.parametrize(
    ("shapes", "kind", "rank"),
    [
        ({"hada_w1_a": (32, 6), "hada_w1_b": (6, 32), "hada_w2_a": (32, 6), "hada_w2_b": (6, 32)}, "LoHa", 6),
        ({"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}, "LoKr", 2),
        ({"lora_down.weight": (4, 32), "lora_up.weight": (32, 4), "dora_scale": (1, 32)}, "DoRA", 4),
        ({"weight": (32,), "on_input": ()}, "(IA)3", None),
        ({"diff": (32, 32)}, "difference", None),
        ({"oft_blocks": (4, 8, 8)}, "OFT", None),
        ({"a1.weight": (4, 4), "a2.weight": (4, 4), "b1.weight": (4, 4), "b2.weight": (4, 4)}, "GLoRA", None),
    ],
)
def test_other_kinds(tmp_path: Path, shapes: dict[str, tuple[int, ...]], kind: str, rank: int | None) -> None:
    path = saved(tmp_path / "l.safetensors", {f"{Q}.{end}": shape for end, shape in shapes.items()})
    found = inspect_adapter(path)
    assert found is not None and found.kinds == {kind: 1} and list(found.ranks) == [rank] * (rank is not None)


def test_the_family_of_a_lora_that_only_its_trainer_knows(tmp_path: Path) -> None:
    for said, family in (("sdxl_base_v1-0", "SDXL"), ("sd_v1", "SD 1.x"), ("sd_v2_v", "SD 2.x"), ("x", None)):
        path = saved(tmp_path / "l.safetensors", pair(Q, 4, 320), {"ss_base_model_version": said})
        found = inspect_adapter(path)
        assert found is not None and found.family == family
    hostile = {"ss_tag_frequency": "[" * 100_000}
    found = inspect_adapter(saved(tmp_path / "l.safetensors", pair(Q, 4, 320), hostile))
    assert found is not None and found.tags == ()


@pytest.mark.parametrize(
    ("shapes", "family", "vectors"),
    [
        ({"emb_params": (3, 768)}, "SD 1.x", 3),
        ({"<own>": (1024,)}, "SD 2.x", 1),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "SDXL", 2),
    ],
)
def test_embeddings(tmp_path: Path, shapes: dict[str, tuple[int, ...]], family: str, vectors: int) -> None:
    path = saved(tmp_path / "zebra.safetensors", shapes)
    found = inspect_adapter(path)
    assert found is not None
    assert (found.kind, found.family, found.vectors) == ("embedding", family, vectors)
    assert found.words == open_embedding(path).words, "the words are those that the prompt will know"


def test_what_is_neither_is_left_to_the_checkpoints(tmp_path: Path) -> None:
    assert inspect_adapter(saved(tmp_path / "a.safetensors", {"x.weight": (3, 4), "y.bias": (3,)})) is None
    assert inspect_adapter(saved(tmp_path / "b.safetensors", {"emb_params": (3, 700)})) is None
    assert inspect_adapter(tmp_path) is None and inspect_adapter(tmp_path / "none") is None
    with pytest.raises(ModelError):
        open_embedding(tmp_path / "b-none.safetensors")


def test_the_command_shows_it_without_torch(tmp_path: Path) -> None:
    place = Place(tmp_path)
    shapes = pair(K2, 4, 768) | pair(TE, 4, 768)
    saved(place.path / "ink.safetensors", shapes, {"modelspec.trigger_phrase": "inky"})
    done = place.run("models", "inspect", "ink.safetensors", "--hash", fake=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert text.startswith("kind        LoRA (2 LoRA)\nfamily      SD 1.x\n")
    assert "rank        4 (2 modules)\nmodules     1 text.0, 1 unet\nwords       inky\n" in text
    assert "  ink.safetensors\n" in text and "vectors" not in text
    (place.path / "folder").mkdir()
    saved(place.path / "folder" / "adapter_model.safetensors", pair(K2, 16, 768))
    done = place.run("models", "inspect", "folder", "--json", fake=False)
    record = json.loads(done.stdout)
    assert (record["type"], record["kind"], record["ranks"]) == ("inspection", "LoRA", {"16": 1})
    code = "import sys, ddgen.weights.adapter_header; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stdout == b"False\n"
