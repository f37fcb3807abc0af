"""`ddgen batch`: files or a stream of prompts in, a directory of pictures out; running it again makes what is
missing.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ddgen.app import plan as planning
from ddgen.app.ledger import Shard
from ddgen.app.named import Networks
from ddgen.app.naming import Target, parse_output
from ddgen.cli import batch_run, console, flags, picking, process, settings
from ddgen.cli.batch_run import Options
from ddgen.cli.sample import show_pictures
from ddgen.errors import InputError, UsageError, choose
from ddgen.io.prompts import FORMATS, check_encoding
from ddgen.io.settings import SettingError, Value, read_values

EXAMPLES = """Examples:
  ddgen batch prompts.txt
  ddgen batch prompts.jsonl -o out --steps 20,30 --guidance 5,7
  printf 'a red apple\\na fox\\n' | ddgen batch - -o out --json
  ddgen batch prompts.txt -o out --shard $SLURM_ARRAY_TASK_ID/8
  ddgen batch out/failed.jsonl -o out
  ddgen batch edits.jsonl -o out --control-model canny.safetensors

Running the same command again makes only what is missing.
The forms of a prompt file are described in prompts/README.md.
"""

SWEPT = (
    "num",
    "best",
    "seed",
    "width",
    "height",
    "size",
    "steps",
    "guidance",
    "guidance_rescale",
    "guidance_interval",
    "sampler",
    "spacing",
    "sigmas",
    "eta",
    "scale",
    "prompt_syntax",
    "rng",
    "tile",
    "transparent",
    "variation",
    "variation_seed",
    "style",
)
BATCH = "Batch"

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Prompt files: txt, jsonl, csv, tsv or toml; '-' is standard input.",
        show_default=False,
    ),
]
Inputs = Annotated[
    str | None,
    flags.value(BATCH, "DIR", "Where the pictures that lines name are. [beside the file]", "--inputs"),
]
InputFormat = Annotated[
    str | None,
    flags.value(BATCH, "NAME", "txt, jsonl, csv, tsv or toml. [by the file's name]", "--input-format"),
]
Encoding = Annotated[str | None, flags.value(BATCH, "NAME", "Of the prompt files. [utf-8]", "--encoding")]
ShardFlag = Annotated[str | None, flags.value(BATCH, "I/N", "Make only part I of N, as 1/8.", "--shard")]
Style = Annotated[
    str | None, flags.value(BATCH, "NAME", "Lay a style around every prompt; several are a sweep.", "--style")
]
StylesFile = Annotated[
    str | None, flags.value(BATCH, "FILE", "A styles.toml that goes before the others.", "--styles-file")
]
NoExpand = Annotated[bool, flags.switch(BATCH, "Leave {a|b} and __name__ as they are.", "--no-expand")]
Wildcard = Annotated[
    str | None, flags.value(BATCH, "DIR", "Where __name__ finds name.txt. [beside the file]", "--wildcards")
]
MaxExpansions = Annotated[
    str | None, flags.value(BATCH, "N", "Prompts that one line may become. [10000]", "--max-expansions")
]
Check = Annotated[
    bool, flags.switch(BATCH, "Compare every checksum of the pictures that are there.", "--check")
]
FailFast = Annotated[bool, flags.switch(BATCH, "Stop at the first item that fails.", "--fail-fast")]
Engine = Annotated[
    str | None, flags.value(BATCH, "NAME", "local, or ray for many machines. [local]", "--engine")
]
Address = Annotated[
    str | None,
    flags.value(BATCH, "WHERE", "The Ray cluster, as ray://head:10001. [a local one]", "--address"),
]
Workers = Annotated[
    str | None, flags.value(BATCH, "N", "Ray workers. [one per GPU, else one per two cores]", "--workers")
]
WorkerCores = Annotated[
    str | None, flags.value(BATCH, "N", "Cores, and so threads, of a Ray worker. [2]", "--worker-cores")
]
SharedOutput = Annotated[
    bool,
    flags.switch(
        BATCH, "Ray workers write the pictures themselves: the directory is shared.", "--shared-output"
    ),
]
Output = Annotated[
    str | None,
    flags.value(
        flags.OUTPUT,
        "WHERE",
        "A directory, or a template as out/{seed}-{hash}.png. [a directory called like the first file]",
        "--output",
        "-o",
    ),
]
Events = Annotated[
    bool, flags.switch(flags.TALK, "With --json: also what starts, each step, what is skipped, warnings.", "--events")
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("batch", epilog=EXAMPLES)(batch)


def batch(
    context: typer.Context,
    prompt_files: Files,
    negative: flags.Negative = None,
    num: flags.Num = None,
    best: flags.Best = None,
    scorer: flags.Scorer = None,
    seed: flags.Seed = None,
    width: flags.Width = None,
    height: flags.Height = None,
    size: flags.Size = None,
    scale: flags.Scale = None,
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    guidance_rescale: flags.GuidanceRescale = None,
    guidance_interval: flags.GuidanceInterval = None,
    sampler: flags.Sampler = None,
    spacing: flags.Spacing = None,
    sigmas: flags.Sigmas = None,
    eta: flags.Eta = None,
    rng: flags.Rng = None,
    tile: flags.Tile = None,
    transparent: flags.Transparent = False,
    variation: flags.Variation = None,
    variation_seed: flags.VariationSeed = None,
    prompt_syntax: flags.PromptSyntax = None,
    strict_tokens: flags.StrictTokens = False,
    style: Style = None,
    styles_file: StylesFile = None,
    no_expand: NoExpand = False,
    wildcards: Wildcard = None,
    max_expansions: MaxExpansions = None,
    inputs: Inputs = None,
    input_format: InputFormat = None,
    encoding: Encoding = None,
    shard: ShardFlag = None,
    check: Check = False,
    fail_fast: FailFast = False,
    engine: Engine = None,
    address: Address = None,
    workers: Workers = None,
    worker_cores: WorkerCores = None,
    shared_output: SharedOutput = False,
    model: flags.Model = None,
    weights_file: flags.WeightsFile = None,
    lora: flags.Lora = None,
    embedding: flags.Embedding = None,
    control_model: flags.ControlModel = None,
    image_prompt_model: flags.ImagePromptModel = None,
    image_encoder: flags.ImageEncoder = None,
    vae: flags.Vae = None,
    prediction: flags.Prediction = None,
    clip_skip: flags.ClipSkip = None,
    ema: flags.Ema = False,
    refiner: flags.Refiner = None,
    refiner_start: flags.RefinerStart = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    offload: flags.Offload = None,
    text_backend: flags.TextBackend = None,
    batch_size: flags.BatchSize = None,
    offline: flags.Offline = False,
    output: Output = None,
    format: flags.Format = None,
    quality: flags.Quality = None,
    metadata: flags.Metadata = None,
    plan: flags.Plan = False,
    json: flags.Json = False,
    events: Events = False,
    null: flags.Null = False,
    progress: flags.Progress = None,
    preview: flags.Preview = False,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Make the pictures of prompt files, and only those that are not there yet.

    Any setting may differ by line; several values, as --steps 20,30, are made in every combination. The state
    is in the output directory: stop it, kill it, run it again.
    """
    given = dict(context.params)
    given["negative"] = ", ".join(negative) if negative else None
    given["offline"] = "1" if offline else None
    given["transparent"] = "true" if transparent else None
    given["ema"] = "1" if ema else None
    single = {name: value for name, value in given.items() if name not in SWEPT}
    values = {name: found for name, found in settings.resolve(single).items()}
    plain = {name: found.value for name, found in values.items()}
    console.configure(color=plain["color"], quiet=quiet, verbose=verbose, json=json)
    if preview:
        show_pictures()
    if events and not json:
        raise UsageError("--events needs --json", "add --json", id="usage.events")
    console.manners.events = events
    if size is not None and (width is not None or height is not None):
        raise UsageError(
            "--size and --width/--height say the same thing", "keep one of them", id="usage.size"
        )
    engine = _word("engine", engine, ("local", "ray"), "local")
    refuse_idle(given)
    planning.check_quality(plain["quality"])
    if plain["batch_size"] is not None:
        planning.check_batch_size(plain["batch_size"])
    picking.check_folder(scorer)
    options = Options(
        files=tuple(prompt_files),
        base=read_base(given, values),
        shard=read_shard(shard),
        input_format=_word("input format", input_format, FORMATS, ""),
        encoding=check_encoding(encoding if encoding is not None else "utf-8"),
        styles_file=styles_file,
        expand=not no_expand,
        wildcards=wildcards,
        max_expansions=_count("--max-expansions", max_expansions, 1, 1_000_000),
        check=check,
        fail_fast=fail_fast,
        engine=engine,
        address=address,
        workers=_count("--workers", workers, 1, 10_000),
        strict_tokens=strict_tokens,
        worker_cores=_count("--worker-cores", worker_cores, 1, 1000),
        shared_output=shared_output,
        events=events,
        end="\0" if null else "\n",
        look_only=plan,
        scorer=scorer or "",
        loras=tuple(lora or ()),
        embeddings=tuple(embedding or ()),
        inputs=inputs,
        networks=networks_of(control_model, image_prompt_model, image_encoder),
    )
    check_input(options.files)
    batch_run.run(options, plain, read_target(plain, options.files))


def refuse_idle(given: dict[str, Any]) -> None:
    """Refuse a flag that would do nothing beside the others.

    Raises:
        UsageError: naming both.
    """
    for name in ("address", "workers", "worker_cores", "shared_output"):
        if given[name] and given["engine"] != "ray":
            flag = settings.flag_name(name)
            raise UsageError(f"{flag} is for Ray alone", "add --engine ray", id="usage.engine")
    for name in ("wildcards", "max_expansions"):
        if given[name] is not None and given["no_expand"]:
            flag = settings.flag_name(name)
            raise UsageError(f"{flag} does not go with --no-expand", "drop one of them", id="usage.wildcards")


def networks_of(controls: list[str] | None, readers: list[str] | None, encoder: str | None) -> Networks:
    """Return what reads the controls and image prompts of lines, by whole paths: workers may be elsewhere.

    Raises:
        UsageError: a tower for no reader.
    """
    if encoder is not None and not readers:
        mend = "add the --image-prompt-model that it is for"
        raise UsageError("--image-encoder needs --image-prompt-model", mend, id="usage.image-prompt")
    return Networks(
        tuple(Path(model).absolute() for model in controls or ()),
        tuple(Path(model).absolute() for model in readers or ()),
        None if encoder is None else str(Path(encoder).absolute()),
    )


def read_base(given: dict[str, Any], found: dict[str, settings.Found]) -> dict[str, tuple[Value, ...]]:
    """Return the settings of the command line, the environment and the config, each a tuple of values.

    Raises:
        UsageError: a value that cannot be read.
    """
    base: dict[str, tuple[Value, ...]] = {}
    for name in (*SWEPT, "negative"):
        if given.get(name) is not None:
            try:
                base[name] = read_values(name, given[name])
            except SettingError as error:
                raise UsageError(
                    f"{settings.flag_name(name)}: {error}", error.hint, id="usage.value"
                ) from None
        elif name in found and found[name].origin not in ("built-in", "model"):
            value = found[name].value
            several = name == "seed" and isinstance(value, tuple)
            base[name] = value if several else (value,)  # type: ignore[assignment]
    return base


def read_shard(text: str | None) -> Shard:
    """Read `I/N`.

    Raises:
        UsageError: not two numbers, or I is not one of 1 to N.
    """
    if text is None:
        return Shard()
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard '{text}' is no part of a whole", "use 1/8 to 8/8", id="usage.shard")
    return Shard(int(match[1]), int(match[2]))


def read_target(values: dict[str, Any], files: tuple[str, ...]) -> Target:
    """Return where the pictures go: by default a directory called like the first file.

    Raises:
        UsageError: a place that holds one picture only.
    """
    first = (
        "batch"
        if files[0] == "-"
        else re.sub(r"\.\w+$", "", files[0].rstrip("/").rpartition("/")[2]) or "batch"
    )
    output = values["output"] if values["output"] is not None else f"{first}/"
    target = parse_output(output, values["format"])
    if target.kind in ("file", "stdout"):
        place = "standard output" if target.kind == "stdout" else f"'{output}'"
        raise UsageError(
            f"a batch does not fit into {place}",
            "give a directory, as in --output out/",
            id="usage.output-several",
        )
    return target


def check_input(files: tuple[str, ...]) -> None:
    """Refuse a standard input that holds nothing to read.

    Raises:
        UsageError: it is a terminal, or '-' stands beside other files.
        InputError: it is closed.
    """
    if "-" not in files:
        return
    if len(files) > 1:
        raise UsageError(
            "'-' does not go with other files",
            "pipe them in together: cat FILES | ddgen batch -",
            id="usage.stdin",
        )
    if process.is_closed(0):
        raise InputError("standard input is closed", "give a file: ddgen batch prompts.txt", id="input.stdin")
    if process.is_terminal(0):
        raise UsageError("standard input is a terminal", "pipe prompts in, or give a file", id="usage.stdin")


def _word(what: str, text: str | None, words: tuple[str, ...], default: str) -> str:
    return default if text is None else choose(what, text, words)


def _count(flag: str, text: str | None, low: int, high: int) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
        raise UsageError(f"{flag} {text} is out of range", f"use {low} to {high}", id="usage.range")
    return int(text)
