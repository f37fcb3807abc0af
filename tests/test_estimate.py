"""The forecast before a long run: the counted work against published numbers, and when a line is said."""

import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddgen.app import estimate
from ddgen.app.assemble import part_modules
from ddgen.app.plan import plan
from ddgen.nets.config import KLConfig, UNetConfig
from ddgen.nets.unet import UNet
from ddgen.nets.vae import AutoencoderKL
from ddgen.request import Request
from ddgen.weights import registry
from ddgen.weights.arch import FAMILIES
from ddgen.weights.spec import Defaults, Spec

XL = Spec("sdxl", FAMILIES["SDXL"], defaults=Defaults(1024, 1024, 30, 7.0))


@pytest.mark.parametrize(
    ("name", "side", "parameters", "tera"), [("SD15", 64, 860e6, 0.68), ("SDXL", 128, 2567e6, 5.98)]
)
def test_the_count_is_near_the_published_one(name: str, side: int, parameters: float, tera: float) -> None:
    work = estimate.unet(FAMILIES[name].unet, side, side)
    assert work.parameters == pytest.approx(parameters, rel=0.1)
    assert work.operations == pytest.approx(tera * 1e12, rel=0.25)


def test_a_long_run_is_told_with_a_quicker_way() -> None:
    jobs = list(plan(Request(("x",), seed=1), XL))
    slow = estimate.forecast(XL, Counter(jobs), "cpu", measure=lambda device: 3e11)
    assert slow is not None and slow.startswith("sdxl on this CPU: about ")
    assert slow.endswith(" s") and "; sd-turbo: about " in slow
    minutes = int(slow.split("about ")[1].split(" min")[0])
    assert 25 < minutes < 60, slow
    assert estimate.forecast(XL, Counter(jobs), "cuda", measure=lambda device: 3e14) is None


def test_many_jobs_are_counted_and_a_stream_is_told_the_time_of_one() -> None:
    (job,) = plan(Request(("x",), seed=1, width=512, height=512, steps=10), XL)

    def told(count: int, each: bool = False) -> str | None:
        return estimate.forecast(XL, {job: count}, "cpu", measure=lambda device: 1e13, each=each)

    assert told(1) is None
    hundred, thousand = told(100), told(1000)
    assert hundred is not None and thousand is not None
    minutes = [float(text.split("about ")[1].split()[0]) for text in (hundred, thousand)]
    assert minutes[1] * (60 if " h" in thousand.split(";")[0] else 1) == pytest.approx(10 * minutes[0], rel=0.1)
    assert told(1, each=True) is None
    slow = estimate.forecast(XL, {job: 1}, "cpu", measure=lambda device: 5e11, each=True)
    assert slow is not None and " a picture; sd-turbo: about " in slow


def test_what_counts_steps_guidance_images_and_a_share() -> None:
    (job,) = plan(Request(("x",), seed=1), XL)
    one = estimate.operations(XL, job, 10)
    fixed = estimate.operations(XL, job, 0)
    assert estimate.operations(XL, job, 20) - fixed == pytest.approx(2 * (one - fixed))
    assert estimate.operations(XL, replace(job, guidance=1.0), 10) - fixed == pytest.approx((one - fixed) / 2)
    heun = estimate.operations(XL, replace(job, sampler="heun"), 10) - fixed
    assert heun == pytest.approx(2 * (one - fixed))
    assert estimate.forecast(XL, {job: 1}, "cpu", steps=1, measure=lambda device: 3e12) is None


def test_small_networks_are_not_asked_about() -> None:
    def never(device: str) -> float:
        raise AssertionError("measured")

    spec = registry.find("sticker")
    jobs = list(plan(Request(("x",), seed=1, num=1000), spec))
    assert estimate.forecast(spec, Counter(jobs), "cpu", measure=never) is None


def test_words_for_durations() -> None:
    told = [estimate._minutes(seconds) for seconds in (1, 44, 60, 2400, 7200, 86400)]
    assert told == ["10 s", "40 s", "1 min", "40 min", "2.0 h", "24 h"]


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


WITH, WITHOUT = (1, 1), (0, 0)


@pytest.mark.parametrize("first", [WITH, WITHOUT], ids=["transformers", "none"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_is_estimated_near_what_is_alive(first: tuple[int, int], rows: int) -> None:
    """SD1.5 and SDXL in their proportions, where no tensor has numbers."""
    config = UNetConfig(
        model_channels=64, channel_mult=(1, 2, 4, 4), down_depth=(first, WITH, WITH, WITHOUT),
        up_depth=((*first, first[0]), (1, 1, 1), (1, 1, 1), (0, 0, 0)),
    )  # fmt: skip
    with torch.device("meta"), torch.inference_mode():
        network = UNet(config)
        given = torch.empty(rows, 4, 64, 64), torch.empty(rows), torch.empty(rows, 77, 768)
        with Alive() as alive:
            network(*given)
    assert estimate.step_bytes(config, 64, 64) * rows == pytest.approx(alive.peak, rel=0.1)


@pytest.mark.parametrize("mult", [(1, 2, 4, 4), (1, 1), (1, 2)])
def test_decoding_is_estimated_near_what_is_alive(mult: tuple[int, ...]) -> None:
    config = KLConfig(model_channels=32, channel_mult=mult, num_res_blocks=1)
    with torch.device("meta"), torch.inference_mode():
        stage = AutoencoderKL(config)
        latents = torch.empty(1, 4, 256 // config.factor, 256 // config.factor)
        with Alive() as alive:
            stage.decode(latents)
    assert estimate.decode_bytes(config, 256, 256) == pytest.approx(alive.peak, rel=0.25)


@pytest.mark.parametrize("name", ["SD15", "SD21", "SDXL"])
def test_the_weights_are_estimated_near_their_number(name: str) -> None:
    arch = FAMILIES[name]
    with torch.device("meta"):
        parts = part_modules(arch)
    count = sum(parameter.numel() for module in parts.values() for parameter in module.parameters())
    (job,) = plan(Request(("x",), seed=1), Spec(name, arch, defaults=Defaults(512, 512, 30, 7.0)))
    found = estimate.memory(Spec(name, arch), job, 1, half=False)
    assert found.weights == pytest.approx(4 * count, rel=0.08)
    assert estimate.memory(Spec(name, arch), job, 1, half=True, blocks=True).weights == pytest.approx(2 * count, rel=0.08)


def test_memory_in_words() -> None:
    (job,) = plan(Request(("x",), seed=1), XL)
    line = estimate.memory_line(XL, job, 2)
    one, two = (estimate.memory(XL, job, count, half=False) for count in (1, 2))
    assert two.step == 2 * one.step and two.most == two.weights + max(two.step, two.decode)
    assert line is not None and line.startswith(f"sdxl takes about {two.most / 1e9:.1f} GB in float32 (weights ")
    assert line.endswith(" GB with --offload blocks")
    spec = registry.find("sticker")
    (job,) = plan(Request(("x",), seed=1), spec)
    assert estimate.memory_line(spec, job, 1) is None
