"""The forecast before a long run: the counted work against published numbers, and when a line is said."""

from collections import Counter
from dataclasses import replace

import pytest

from ddgen.app import estimate
from ddgen.app.plan import plan
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
