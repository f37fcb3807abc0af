"""Sound files that hold nonsense are read or refused in one line that names them: a small part of
`python tests/mutants.py`."""

import random

import mutants
import pytest

from ddgen.errors import ModelError


@pytest.mark.parametrize(("kind", "count"), [(mutants.models, 60), (mutants.adapters, 300)], ids=["models", "adapters"])
def test_nonsense_gives_clean_errors(kind, count):
    told = kind(count, 5)
    assert told["accepted"] > count / 20 and told["refused"] > count / 4


def test_what_the_campaign_found_stays_found(tmp_path):
    seed = next(seed for seed in mutants.model_seeds(tmp_path) if any("input_blocks.3.0.op." in name for name in seed))
    first = next(name for name in seed if name.endswith("input_blocks.0.0.weight"))
    kind, shape = seed[first]
    lost = "clip_g.transformer.text_model.token_embedding.weight"
    assert told_of(seed, mutants.build) == told_of(seed | {lost: ("F16", [3, 3])}, mutants.build) == "accepted"
    renamed = {name.replace("input_blocks.1.0", "input_blocks.word.0"): value for name, value in seed.items()}
    for entries in (renamed, seed | {first: (kind, [33])}, seed | {first: (kind, [33, *shape[1:]])}):
        assert told_of(entries, mutants.build) == "refused"

    model = mutants.Model()
    for down, up, told in (([4, 4, 3, 3], [32, 4, 1, 1], "accepted"), ([4], [4], "refused"), ([], [], "refused")):
        entry = "lora_unet_input_blocks_0_0.lora_"
        entries = {f"{entry}down.weight": ("F16", down), f"{entry}up.weight": ("F16", up)}
        assert told_of(entries, lambda path: mutants.adapt(path, model)) == told


BIG, THIN = [2**13, 1], [1, 2**13]


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_down.weight": THIN, "lora_up.weight": BIG},
        {"hada_w1_a": BIG, "hada_w1_b": THIN, "hada_w2_a": BIG, "hada_w2_b": THIN},
        {"lokr_w1": [64, 64], "lokr_w2": [128, 128]},
        {"lokr_w1": [64, 64], "lokr_w2_a": [2**13, 1], "lokr_w2_b": THIN},
    ],
    ids=["LoRA", "LoHa", "LoKr", "LoKr in factors"],
)
def test_thin_factors_of_a_huge_weight_are_refused_before_they_are_multiplied(shapes, tmp_path):
    entries = {f"lora_unet_input_blocks_0_0.{role}": ("F16", shape) for role, shape in shapes.items()}
    mutants.write(tmp_path / "l.safetensors", entries, None, b"ab")
    with pytest.raises(ModelError, match="has factors that make [0-9]{8,} numbers, the model has 32x4x3x3"):
        mutants.Model().put((tmp_path / "l.safetensors", 1.0))


def told_of(entries, read):
    """What is told of a file that is written as it is."""
    (told,) = mutants.campaign([entries], read, 1, Same(), b"ab")
    return told


class Same(random.Random):
    """Changes nothing: each file is written as it is."""

    def randint(self, low, high):
        return 0

    def choice(self, values):
        return values[0]
