"""From what was typed to jobs and file names, as functions; messages are tested through the command."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ddgen.app import naming, plan
from ddgen.app.naming import Names, parse_output
from ddgen.errors import DdgenError, OutputError, UsageError
from ddgen.request import MAX_PIXELS, MAX_SEED, MAX_SIDE, Job, Request
from ddgen.weights.arch import FAMILIES
from ddgen.weights.spec import Defaults, Spec

SD = Spec("sd", FAMILIES["SD15"], defaults=Defaults(width=512, height=512, steps=25, guidance=7.5))


def jobs(**said: object) -> list[Job]:
    return list(plan.plan(Request(**{"prompts": ("a",), "seed": 7} | said), SD))


def test_what_is_not_said_comes_from_the_model() -> None:
    (job,) = jobs()
    assert (job.width, job.height, job.steps, job.guidance, job.sampler, job.spacing) == (
        512,
        512,
        25,
        7.5,
        "dpmpp_2m",
        "karras",
    )
    assert (job.negative, job.guidance_rescale, job.guidance_interval, job.sigmas, job.model) == (
        "",
        0.0,
        None,
        None,
        "sd",
    )


def test_zero_and_one_mean_what_they_say() -> None:
    assert jobs(seed=0)[0].seed == 0
    assert jobs(guidance=0.0)[0].guidance == jobs(guidance=1.0)[0].guidance == 1.0
    assert jobs(sampler="ddim", eta=0.0)[0].eta == 0.0 and jobs(sampler="euler_ancestral")[0].eta == 1.0
    assert jobs(sampler="euler", eta=1.0)[0].eta is None


def test_each_prompt_starts_again_at_the_seed() -> None:
    assert [(job.prompt, job.seed) for job in jobs(prompts=("a", "b"), num=2)] == [
        ("a", 7),
        ("a", 8),
        ("b", 7),
        ("b", 8),
    ]
    assert [job.seed for job in jobs(prompts=("a", "b"), seed=(5, 3))] == [5, 3, 5, 3]
    drawn = [jobs(seed=None)[0].seed for _ in range(3)]
    assert len(set(drawn)) == 3 and max(drawn) < 2**32
    assert jobs(seed=MAX_SEED)[0].seed == MAX_SEED
    with pytest.raises(UsageError):
        jobs(seed=MAX_SEED, num=2)


def test_a_million_images_are_planned_lazily() -> None:
    endless = plan.plan(Request(("a",), num=1_000_000, seed=0), SD)
    assert next(endless).seed == 0
    with pytest.raises(UsageError, match="over the limit"):
        plan.plan(Request(("a", "b"), num=600_000, seed=0), SD)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("Euler a", ("euler_ancestral", "karras")),
        ("ddim", ("ddim", "karras")),
    ],
)
def test_other_names_of_samplers(word: str, expected: tuple[str, str]) -> None:
    (job,) = jobs(sampler=word)
    assert (job.sampler, job.spacing) == expected
    assert jobs(sampler=word, spacing="linspace")[0].spacing == "linspace", (
        "what is said of the spacing itself goes first"
    )


def test_explicit_sigmas_set_the_steps() -> None:
    assert jobs(sigmas=(9.0, 3.0, 0.0))[0].steps == 2
    for wrong in ((), (1.0,), (1.0, 1.0), (1.0, math.nan), (math.inf, 0.0), (1.0, -1.0)):
        with pytest.raises(UsageError):
            jobs(sigmas=wrong)


@given(width=st.integers(-9, 5000), height=st.integers(-9, 5000))
@hypothesis_settings(deadline=None)
def test_the_sizes_that_a_message_offers_are_taken(width: int, height: int) -> None:
    def accepted(a: int, b: int) -> bool:
        try:
            plan.check_size(a, b, SD.divisor)
        except UsageError as error:
            for word in (
                error.hint.replace("use at most", "").replace("use", "").replace("to", "or").split("or")
            ):
                sides = [int(side) for side in word.split("x")]
                both = sides * 2 if len(sides) == 1 else sides
                plan.check_size(both[0], both[1], SD.divisor)
            return False
        return True

    fits = (
        all(64 <= side <= MAX_SIDE and side % 64 == 0 for side in (width, height))
        and width * height <= MAX_PIXELS
    )
    assert accepted(width, height) == fits


@given(across=st.floats(0.01, 9999), down=st.floats(0.01, 9999))
@hypothesis_settings(deadline=None)
def test_ratios_keep_the_area(across: float, down: float) -> None:
    width, height = plan.size_of_ratio(SD, across, down)
    assert width % 64 == height % 64 == 0 and min(width, height) >= 64
    if 1 / 4 < across / down < 4:
        assert 0.6 < width * height / 512**2 < 1.6


def test_batches() -> None:
    many = jobs(num=10)
    assert [len(batch) for batch in plan.batches(iter(many), 4)] == [4, 4, 2]
    assert [len(batch) for batch in plan.batches(iter(many), None)] == [1] * 10, (
        "512 x 512 fills the memory alone"
    )
    small = [replace(job, width=128, height=128) for job in many]
    assert [len(batch) for batch in plan.batches(iter(small), None)] == [8, 2]
    assert list(plan.batches(iter(()), None)) == []


def test_tokens_are_those_of_the_language() -> None:
    assert plan.token_count("") == 0
    assert plan.token_count("a red apple") == plan.token_count("a (red:1.3) apple") == 3
    assert plan.token_count("a (red:1.3) apple", "plain") > 3
    assert plan.token_count("a [cat:red cat with a hat:0.5]", steps=10) == 6


# Names.

JOB = jobs()[0]


def test_slugs() -> None:
    assert naming.slug("A red apple!") == "a-red-apple"
    assert naming.slug("../../etc/passwd") == "etc-passwd"
    assert naming.slug("\x1b[2J") == "2j" and naming.slug("...") == naming.slug("") == "image"
    assert naming.slug("りんご " * 20) == "-".join(["りんご"] * 4) and len(naming.slug("x" * 99)) == 40


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=400),
    template=st.sampled_from(
        [
            "{prompt}.png",
            "{prompt:.40}/{prompt}-{seed}.png",
            "x{prompt}/{model}.webp",
            "{index:04}{prompt}",
            "{hash}/{prompt}",
        ]
    ),
)
@hypothesis_settings(deadline=None, max_examples=300)
def test_no_prompt_leaves_its_component(prompt: str, template: str) -> None:
    target = parse_output(template)
    below = naming.fill(target.name, replace(JOB, prompt=prompt), 3)
    parts = below.split("/")
    assert len(parts) == target.name.count("/") + 1
    for part in parts:
        assert part not in ("", ".", "..") and part[0] not in ".-" and len(part.encode()) <= 210
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in '\\:*?"<>|' for c in part)


def test_long_names_that_differ_at_the_end_stay_apart() -> None:
    first, second = (naming.fill("{prompt}.png", replace(JOB, prompt="x" * 300 + end), 1) for end in "ab")
    assert first != second and first.endswith(".png")


@pytest.mark.parametrize(
    "output",
    [
        "{seed",
        "{}",
        "{0}",
        "{seed!r}",
        "{seed.real}",
        "{prompt[0]}",
        "{seed:>9999}",
        "{prompt:{seed}}",
        "a}b",
        "{seed}/../x.png",
        "{seed}//x.png",
        "{seed}.gif",
    ],
)
def test_templates_do_only_what_they_should(output: str) -> None:
    with pytest.raises(UsageError):
        parse_output(output)


@pytest.mark.parametrize(
    ("output", "kind", "root", "format"),
    [
        (None, "directory", ".", "png"),
        ("out", "directory", "out", "png"),
        ("out/", "directory", "out", "png"),
        ("out/a.webp", "file", "out", "webp"),
        ("a.JPEG", "file", ".", "jpeg"),
        ("o{{}}/{seed}.png", "template", ".", "png"),
        ("/tmp/x/{seed}", "template", "/tmp/x", "png"),
        ("-", "stdout", ".", "png"),
    ],
)
def test_what_output_means(output: str | None, kind: str, root: str, format: str) -> None:
    target = parse_output(output)
    assert (target.kind, str(target.root), target.format) == (kind, root, format)


def test_a_run_gives_no_name_twice(tmp_path: Path) -> None:
    (tmp_path / "a-7.png").touch()
    careful, forced = (Names(parse_output(f"{tmp_path}/"), force=force) for force in (False, True))
    assert [careful.path(JOB, 1).name, careful.path(JOB, 2).name] == ["a-7-2.png", "a-7-3.png"]
    assert [forced.path(JOB, 1).name, forced.path(JOB, 2).name] == ["a-7.png", "a-7-2.png"]
    (tmp_path / "a-7-2.png").symlink_to("nowhere")
    assert Names(parse_output(f"{tmp_path}/")).path(JOB, 1).name == "a-7-3.png", (
        "a dangling link is taken, too"
    )


def test_what_stands_against_a_run_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(OutputError):
        Names(parse_output(f"{tmp_path}/a.png")).check(1)
    Names(parse_output(f"{tmp_path}/a.png"), force=True).check(1)
    with pytest.raises(DdgenError):
        Names(parse_output(f"{tmp_path}/b.png")).check(2)
    with pytest.raises(OutputError):
        Names(parse_output(f"{tmp_path}/a.png/b/")).check(1)
    Names(parse_output(f"{tmp_path}/a.png/b/")).check(1, look_only=True)
