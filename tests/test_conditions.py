"""Prompts bound to the denoiser: composition, changes over the steps, one encoding per text, independence of the neighbours."""

import zlib
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from fakes import SCHEDULES
from torch import Tensor

from ddgen.app.conditions import Encodings, bind, size_vector
from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoiser
from ddgen.diffusion.schedule import make_schedule
from ddgen.diffusion.spacing import make_grid
from ddgen.request import Job
from ddgen.weights import arch
from ddgen.weights.spec import Spec

GRID = make_grid([8.0, 4.0, 2.0, 1.0, 0.0])


def value(text: str) -> float:
    """What the fake network answers for a text."""
    return zlib.crc32(text.strip().encode()) % 1000 / 1000


class FakeEncoder:
    """A text is its value, repeated over 77 states per eight characters; counts what it encodes."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def count_chunks(self, prompt: str, syntax: str = "a1111") -> int:
        return 1 + len(prompt) // 8

    def encode(self, prompts: Sequence[str], *, syntax: str = "a1111") -> Conditioning:
        self.seen += prompts
        length = 77 * max(self.count_chunks(text) for text in prompts)
        context = torch.tensor([value(text) for text in prompts])[:, None, None].expand(-1, length, 2)
        return Conditioning(context, torch.ones(len(prompts), 3))


class MeanNetwork:
    """F = the mean of the context, everywhere; with x0 prediction that is D itself."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.guidance: Tensor | None = None

    def __call__(self, x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        self.guidance = guidance
        return context.mean((1, 2)).reshape(-1, 1, 1, 1).expand_as(x)


def job(prompt: str, **changes: object) -> Job:
    plain = {
        "prompt": prompt, "negative": "", "seed": 1, "width": 64, "height": 64, "steps": 4, "guidance": 3.0, "guidance_rescale": 0.0,
        "guidance_interval": None, "sampler": "euler", "spacing": "linspace", "sigmas": None, "eta": None, "scale": 1, "model": "fake",
    }  # fmt: skip
    return Job(**plain | changes)


@pytest.fixture
def pipeline() -> SimpleNamespace:
    network = MeanNetwork()
    denoiser = Denoiser(network, "x0", make_schedule(SCHEDULES["cosine"]))
    encoder = FakeEncoder()
    spec = Spec("fake", arch.SD15, prediction="x0")
    return SimpleNamespace(spec=spec, denoiser=denoiser, encodings=Encodings(encoder), device="cpu", network=network, encoder=encoder)


def answer(pipeline: SimpleNamespace, jobs: list[Job], sigma: float = 8.0) -> list[float]:
    return bind(pipeline, jobs, GRID)(torch.zeros(len(jobs), 1, 2, 2), sigma)[:, 0, 0, 0].tolist()


def test_guidance_mixes_the_two_branches(pipeline: SimpleNamespace) -> None:
    u, c = value(""), value("cat")
    assert answer(pipeline, [job("cat")]) == pytest.approx([u + 3 * (c - u)])
    assert pipeline.network.batches == [2]


def test_scale_one_makes_one_call(pipeline: SimpleNamespace) -> None:
    assert answer(pipeline, [job("cat", guidance=1.0)]) == pytest.approx([value("cat")])
    assert pipeline.network.batches == [1]
    assert pipeline.encoder.seen == ["cat"], "the negative prompt is not needed and not encoded"


def test_composition(pipeline: SimpleNamespace) -> None:
    u, a, b = value(""), value("cat"), value("dog")
    expected = u + 3 * (a - u) + 3 * 0.5 * (b - u)
    alone = answer(pipeline, [job("cat AND dog :0.5")])
    assert alone == pytest.approx([expected])
    beside = answer(pipeline, [job("cat AND dog :0.5"), job("fox")])
    assert beside == pytest.approx([expected, u + 3 * (value("fox") - u)])


def test_text_changes_with_the_step(pipeline: SimpleNamespace) -> None:
    denoise = bind(pipeline, [job("[red:blue:0.5] owl", guidance=1.0)], GRID)
    seen = [denoise(torch.zeros(1, 1, 1, 1), sigma).item() for sigma in (8.0, 4.0, 2.0, 1.0)]
    assert seen == pytest.approx([value("red owl")] * 2 + [value("blue owl")] * 2)


def test_alternation(pipeline: SimpleNamespace) -> None:
    denoise = bind(pipeline, [job("[a|b]", guidance=1.0)], GRID)
    seen = [denoise(torch.zeros(1, 1, 1, 1), sigma).item() for sigma in (8.0, 4.0, 2.0, 1.0)]
    assert seen == pytest.approx([value("a"), value("b")] * 2)
    assert sorted(pipeline.encoder.seen) == ["a", "b"], "each text once"


def test_plain_syntax_is_literal(pipeline: SimpleNamespace) -> None:
    assert answer(pipeline, [job("cat AND dog", guidance=1.0, prompt_syntax="plain")]) == pytest.approx([value("cat AND dog")])


def test_neighbours_of_other_length_change_nothing(pipeline: SimpleNamespace) -> None:
    jobs = [job("a cat"), job("a much longer prompt than that"), job("seventeen letters")]
    together = answer(pipeline, jobs)
    assert together == pytest.approx([answer(pipeline, [each])[0] for each in jobs])
    lengths = {text: row.context.shape[1] for (text, _), row in pipeline.encodings.known.items()}
    assert lengths["a cat"] == 77 and lengths["seventeen letters"] == 3 * 77


def test_each_text_is_encoded_once(pipeline: SimpleNamespace) -> None:
    answer(pipeline, [job("cat"), job("dog"), job("cat", seed=2)])
    answer(pipeline, [job("dog")])
    assert sorted(pipeline.encoder.seen) == ["", "cat", "dog"]


def test_zero_negative_only_without_a_negative_prompt(pipeline: SimpleNamespace) -> None:
    pipeline.spec = Spec("fake", arch.SD15, prediction="x0", zero_negative=True)
    c, n = value("cat"), value("ugly")
    assert answer(pipeline, [job("cat")]) == pytest.approx([3 * c])
    assert answer(pipeline, [job("cat", negative="ugly")]) == pytest.approx([n + 3 * (c - n)])


def test_interval_in_steps(pipeline: SimpleNamespace) -> None:
    denoise = bind(pipeline, [job("cat", guidance_interval=(0.25, 0.75))], GRID)
    for sigma in (8.0, 4.0, 2.0, 1.0):
        denoise(torch.zeros(1, 1, 1, 1), sigma)
    assert pipeline.network.batches == [1, 2, 2, 1]


def test_a_network_distilled_with_guidance_gets_the_scale(pipeline: SimpleNamespace) -> None:
    pipeline.spec = Spec("fake", arch.SD15_LCM, prediction="x0")
    assert answer(pipeline, [job("cat", guidance=8.0)]) == pytest.approx([value("cat")])
    assert pipeline.network.batches == [1]
    assert pipeline.network.guidance.tolist() == [8.0]


def test_sizes_follow_the_pooled_text() -> None:
    spec = Spec("xl", arch.SDXL)
    row = size_vector(spec, 832, 1216)
    assert row.shape == (6 * 256,)
    assert spec.arch.unet.vector_dim == 1280 + len(row)
    first = row[:256].reshape(2, 128)[:, 0]  # cos and sin of the first number at frequency 1
    assert torch.allclose(first, torch.stack([torch.tensor(1216.0).cos(), torch.tensor(1216.0).sin()]))
    cut = size_vector(spec, 832, 1216, original=(300, 200), crop=(7, 5)).reshape(6, 256)
    plain = row.reshape(6, 256)
    told = [200.0, 300.0, 5.0, 7.0, 1216.0, 832.0]  # height before width, top before left
    assert torch.allclose(cut[:, 0], torch.tensor(told).cos()) and torch.equal(cut[4:], plain[4:])
    refiner = Spec("refiner", arch.REFINER)
    positive, negative = (size_vector(refiner, 64, 64, negative=flag)[-256:] for flag in (False, True))
    assert torch.allclose(positive[0], torch.tensor(6.0).cos()) and torch.allclose(negative[0], torch.tensor(2.5).cos())
