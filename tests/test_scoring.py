"""Scores of pictures: the embedded towers, and a CLIP of the user's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_best import jobs_of

from ddgen.app import fitting, scoring
from ddgen.app.scorer_library import library_scorer
from ddgen.app.stickers import laid_on
from ddgen.errors import ModelError
from ddgen.nets.image_tower import ImageTower, ImageTowerConfig, look, seen
from ddgen.weights.checkpoint import save_tensors
from ddgen.weights.header import read_header

torch.manual_seed(0)


def drawing(colour: tuple[int, int, int], ground: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    y, x = np.mgrid[:128, :128]
    picture = np.full((128, 128, 3), ground, np.uint8)
    picture[(x - 64) ** 2 + (y - 64) ** 2 < 48**2] = colour
    return picture


@pytest.fixture(scope="module")
def embedded() -> scoring.Embedded:
    return scoring.embedded()


def test_the_image_tower_fits_the_text_tower_that_ships() -> None:
    facts = json.loads(read_header(scoring.FILE).metadata[scoring.KEY])
    assert facts["text_sha256"] == scoring.text_digest(), "train it again: python -m bench.tower"
    assert scoring.FILE.stat().st_size <= 16e6


def test_a_picture_scores_the_same_whatever_its_neighbours(embedded: scoring.Embedded) -> None:
    pictures = [drawing((220, 30, 30)), drawing((30, 60, 220)), drawing((40, 160, 60), (250, 220, 60))]
    jobs = jobs_of("a red ball", "a blue ball", "an apple", num=1)
    alone = [scoring.Scores(embedded)([job], [picture])[0] for job, picture in zip(jobs, pictures, strict=True)]
    assert scoring.Scores(embedded)(jobs, pictures) == alone
    assert all(abs(score) <= 1 and score == round(score, 4) for score in alone) and len(set(alone)) == 3


def test_grounds_are_read(embedded: scoring.Embedded) -> None:
    red, blue = drawing((250, 200, 60), (229, 57, 53)), drawing((250, 200, 60), (66, 133, 244))
    texts = embedded.texts(["a star on a red background", "a star on a blue background"])
    matrix = embedded.pictures([red, blue]) @ texts.T
    assert matrix[0, 0] + matrix[1, 1] > matrix[0, 1] + matrix[1, 0]


def test_text_vectors_are_those_of_the_whole_encoder(embedded: scoring.Embedded) -> None:
    from ddgen.app.assemble import load_text
    from ddgen.weights import registry
    from ddgen.weights.checkpoint import open_checkpoint

    spec = registry.find()
    encoder = load_text(spec, open_checkpoint(spec.source.path), "native", torch.float32, torch.device("cpu"))
    prompts = ["a fox", "two blue apples on a table", ""]
    whole = torch.nn.functional.normalize(encoder.encode(prompts, syntax="plain").vector, dim=-1)
    assert (embedded.texts(prompts) - whole).abs().max() < 1e-5


def test_transparency_is_laid_on_white(embedded: scoring.Embedded) -> None:
    raw = np.dstack([drawing((220, 30, 30)), np.zeros((128, 128), np.uint8)])
    raw[40:90, 40:90, 3] = 255
    assert torch.equal(embedded.pictures([raw]), embedded.pictures([laid_on(raw)])) or (
        (embedded.pictures([raw]) - embedded.pictures([laid_on(raw)])).abs().max() < 1e-2
    )


def test_weights_and_parts_of_a_prompt(embedded: scoring.Embedded) -> None:
    score = scoring.Scores(embedded)
    plain, weighted, changed = jobs_of("a red ball", "a (red:1.4) ball", "a [blue:red:0.5] ball", num=1)
    picture = drawing((220, 30, 30))
    assert score([plain], [picture]) == score([changed], [picture]), "the text of the last step"
    assert abs(score([plain], [picture])[0] - score([weighted], [picture])[0]) < 0.2
    both, first = jobs_of("a red ball AND a fox :0", "a red ball", num=1)
    assert score([both], [picture]) == score([first], [picture])


def test_what_is_seen_has_its_size_and_ignores_gain() -> None:
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert look(x).shape == (2, seen())
    flat = look(torch.full((1, 3, 64, 64), 0.5))
    edges = flat[:, : seen() - 3 * 64]
    assert edges.abs().max() == 0, "a flat picture has no edges"
    vertical = torch.ones(1, 3, 64, 64)
    vertical[..., 32:] = -1
    cells = look(vertical)[0, : 8 * 15 * 15].reshape(8, 15, 15)
    assert cells[0, :, 7].min() > 0.5 and cells[4].max() == 0, "all of it lies along one orientation"


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(ModelError, match="holds no image tower"):
        scoring.embedded(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="neither config.json"):
        library_scorer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds no CLIP"):
        library_scorer(tmp_path)


def test_a_clip_of_transformers_scores_as_it_does_itself(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    text = {**small, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407, "bos_token_id": 49406}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    scorer = library_scorer(tmp_path)
    picture = drawing((220, 30, 30))
    from ddgen.app.scorer_library import prepared
    from ddgen.text.tokens import Tokenizer

    with torch.inference_mode():
        ids = torch.tensor(Tokenizer().chunks("a red ball"))
        there = model(input_ids=ids, pixel_values=prepared(picture, 32)[None])
    cosine = float(there.logits_per_image[0, 0]) / float(model.logit_scale.detach().exp())
    assert float(scorer.pictures([picture])[0] @ scorer.texts(["a red ball"])[0]) == pytest.approx(cosine, abs=1e-5)


def test_fitting_stops_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    def run(out: Path, sittings: list[float]) -> tuple[list[bool], torch.Tensor]:
        torch.manual_seed(0)
        net, done = torch.nn.Linear(3, 1), []

        def loss(step: int) -> torch.Tensor:
            x = torch.from_numpy(np.random.default_rng(step).standard_normal((8, 3)).astype(np.float32))
            return (net(x) - x.sum(1, keepdim=True)).square().mean()

        for seconds in sittings:
            done.append(fitting.fit(net, loss, out, steps=120, lr=0.05, seconds=seconds))
        return done, net.weight.detach().clone()

    whole, a = run(tmp_path / "a", [60.0])
    parted, b = run(tmp_path / "b", [0.01, 60.0])
    assert whole == [True] and parted == [False, True]
    assert torch.equal(a, b) and (a - 1).abs().max() < 0.1


def test_the_factor_rises_and_falls_to_almost_nothing() -> None:
    found = [fitting.factor(step, 100) for step in range(1, 101)]
    assert found[0] == pytest.approx(1 / 6) and max(found) == 1 and found[-1] < 0.002


def test_a_tower_of_its_own_shape() -> None:
    tower = ImageTower(ImageTowerConfig(hidden=8, embed_dim=5))
    assert tower(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
