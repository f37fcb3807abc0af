"""The flags that commands share: spelling, help and panel of each, declared once.

Values arrive as text and are parsed in settings.py, so that the environment and the config file meet the same
rules as the flags. Flags never take an optional value. `--cfg`, `--schedule` and `--scheduler` are other
tools' words, understood but not shown.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from ddgen.cli.complete import complete_model, complete_sampler, complete_spacing
from ddgen.cli.help import show_version

PICTURE, SAMPLING, MODEL, OUTPUT, TALK = "Picture", "Sampling", "Model", "Output", "Messages"


def value(
    panel: str, metavar: str, help: str, *names: str, complete: Callable[[str], list[str]] | None = None
) -> Any:
    """Return the declaration of a flag that takes a value."""
    return typer.Option(
        *names, metavar=metavar, help=help, rich_help_panel=panel, autocompletion=complete, show_default=False
    )


def switch(panel: str, help: str, *names: str, count: bool = False) -> Any:
    """Return the declaration of a flag without a value."""
    return typer.Option(*names, help=help, rich_help_panel=panel, count=count, show_default=False)


Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT...",
        help="What to draw; each prompt makes --num pictures. '-' reads one prompt from standard input.",
        show_default=False,
    ),
]
Negative = Annotated[
    list[str] | None,
    value(PICTURE, "TEXT", "What to keep away from; may be given again.", "--negative", "-N", "--no"),
]
PromptSyntax = Annotated[
    str | None,
    value(
        PICTURE,
        "NAME",
        "a1111: (weights:1.2), [from:to:0.5], AND, BREAK; plain: none. [a1111]",
        "--prompt-syntax",
    ),
]
Style = Annotated[
    str | None, value(PICTURE, "NAME", "Lay a style of styles.toml around the prompts.", "--style")
]
StylesFile = Annotated[
    str | None, value(PICTURE, "FILE", "A styles.toml that goes before the others.", "--styles-file")
]
Expand = Annotated[bool, switch(PICTURE, "Make every text that {a|b} and __name__ stand for.", "--expand")]
Wildcards = Annotated[str | None, value(PICTURE, "DIR", "Where __name__ finds name.txt.", "--wildcards")]
StrictTokens = Annotated[
    bool, switch(PICTURE, "Make a prompt of more than 75 tokens an error.", "--strict-tokens")
]
Num = Annotated[str | None, value(PICTURE, "N", "Pictures per prompt. [1]", "--num", "-n")]
Best = Annotated[
    str | None,
    value(PICTURE, "K", "Of each prompt's pictures keep the K that show it best. [all]", "--best"),
]
Scorer = Annotated[
    str | None,
    value(PICTURE, "DIR", "A CLIP model's folder that --best asks. [the embedded one]", "--scorer"),
]
Seed = Annotated[
    str | None,
    value(
        PICTURE,
        "SEED",
        "7, or a list 1,2, or a range 10-20; picture i of --num uses seed + i. [random, printed]",
        "--seed",
        "-s",
    ),
]
Width = Annotated[str | None, value(PICTURE, "PIXELS", "Width. [the model's]", "--width", "-W")]
Height = Annotated[str | None, value(PICTURE, "PIXELS", "Height. [the model's]", "--height", "-H")]
Size = Annotated[str | None, value(PICTURE, "WxH", "Both, as 512x768.", "--size")]
Ratio = Annotated[
    str | None, value(PICTURE, "W:H", "Aspect ratio, as 16:9, at the model's usual area.", "--ar")
]
Scale = Annotated[
    str | None, value(PICTURE, "N", "Enlarge the finished picture N times (Lanczos). [1]", "--scale")
]

Steps = Annotated[str | None, value(SAMPLING, "N", "Sampling steps, 1 to 1000. [the model's]", "--steps")]
Guidance = Annotated[
    str | None,
    value(
        SAMPLING,
        "SCALE",
        "How strongly to follow the prompt; 1 is off. [the model's]",
        "--guidance",
        "-g",
        "--cfg",
    ),
]
GuidanceRescale = Annotated[
    str | None,
    value(
        SAMPLING, "0..1", "Bring guided contrast back to the unguided. [the model's]", "--guidance-rescale"
    ),
]
GuidanceInterval = Annotated[
    str | None,
    value(SAMPLING, "A:B", "Guide only in this part of the steps, as 0.1:0.8. [0:1]", "--guidance-interval"),
]
Sampler = Annotated[
    str | None,
    value(
        SAMPLING,
        "NAME",
        "ddim, euler, dpmpp_2m, ...; A1111's names work, too. [the model's]",
        "--sampler",
        complete=complete_sampler,
    ),
]
Spacing = Annotated[
    str | None,
    value(
        SAMPLING,
        "NAME",
        "Where the steps lie: karras, linspace, trailing, ... [the model's]",
        "--spacing",
        "--schedule",
        "--scheduler",
        complete=complete_spacing,
    ),
]
Sigmas = Annotated[
    str | None, value(SAMPLING, "LIST", "The noise levels themselves, as 14.6,7,3,1,0.", "--sigmas")
]
Rng = Annotated[
    str | None, value(SAMPLING, "NAME", "Whose noise: ddgen, diffusers, a1111, comfy. [ddgen]", "--rng")
]
Tile = Annotated[
    str | None, value(PICTURE, "AXES", "Let the picture's ends meet: x, y or xy, for tiles.", "--tile")
]
Transparent = Annotated[
    bool, switch(PICTURE, "Cut the thing out of its ground: RGBA, in PNG or WebP.", "--transparent")
]
Variation = Annotated[
    str | None,
    value(SAMPLING, "0..1", "How far the noise goes toward that of --variation-seed. [0]", "--variation"),
]
VariationSeed = Annotated[
    str | None, value(SAMPLING, "SEED", "The noise that --variation goes toward.", "--variation-seed")
]
Eta = Annotated[
    str | None,
    value(
        SAMPLING, "0..1", "Share of fresh noise a step, where the sampler has one. [the sampler's]", "--eta"
    ),
]

Model = Annotated[
    str | None,
    value(
        MODEL,
        "NAME|PATH",
        "One of 'ddgen models', a file or a folder. [sticker]",
        "--model",
        "-m",
        complete=complete_model,
    ),
]
WeightsFile = Annotated[
    str | None, value(MODEL, "FILE", "A weights.toml that goes before the others.", "--weights-file")
]
Vae = Annotated[
    str | None,
    value(MODEL, "NAME|FILE", "Another autoencoder, as taesd. [the model's]", "--vae"),
]
Refiner = Annotated[
    str | None, value(MODEL, "NAME|PATH", "A model that takes over for the last steps.", "--refiner")
]
RefinerStart = Annotated[
    str | None,
    value(MODEL, "0..1", "Where it takes over, as a part of the trained times. [0.8]", "--refiner-start"),
]
Lora = Annotated[
    list[str] | None,
    value(MODEL, "FILE[:W]", "A LoRA with its weight, as ink.safetensors:0.8; may be given again.", "--lora"),
]
Embedding = Annotated[
    list[str] | None,
    value(MODEL, "FILE", "A textual inversion; its name is its word. May be given again.", "--embedding"),
]
Prediction = Annotated[
    str | None,
    value(MODEL, "NAME", "What the network predicts: eps, v, x0, flow, edm. [the model's]", "--prediction"),
]
ClipSkip = Annotated[
    str | None,
    value(MODEL, "N", "Read the text N layers from the end, 1 = the last. [the model's]", "--clip-skip"),
]
Ema = Annotated[bool, switch(MODEL, "Use the averaged U-Net that a file holds beside the trained one.", "--ema")]
Control = Annotated[
    list[str] | None,
    value(
        MODEL,
        "TYPE:IMAGE[:W]",
        "Steer by a picture: canny, scribble, tile, or map as it is; [:W[:START:END]]. May be given again.",
        "--control",
    ),
]
ControlModel = Annotated[
    list[str] | None,
    value(MODEL, "FILE", "The ControlNet or T2I-Adapter of each --control, in order.", "--control-model"),
]
ImagePrompt = Annotated[
    list[str] | None,
    value(MODEL, "FILE[:W]", "A picture beside the prompt, as fox.png:0.6; may be given again.", "--image-prompt"),
]
ImagePromptModel = Annotated[
    list[str] | None,
    value(MODEL, "FILE", "The IP-Adapter of the image prompts, or of each.", "--image-prompt-model"),
]
ImageEncoder = Annotated[
    str | None,
    value(MODEL, "DIR", "The CLIP vision tower that it reads by. [image_encoder beside it]", "--image-encoder"),
]
Device = Annotated[str | None, value(MODEL, "NAME", "cpu, cuda, cuda:1, mps. [auto]", "--device")]
Dtype = Annotated[str | None, value(MODEL, "NAME", "float32, bfloat16, float16. [auto]", "--dtype")]
Offload = Annotated[
    str | None,
    value(
        MODEL,
        "NAME",
        "parts: text, network and autoencoder take turns on the GPU; blocks: weights are kept in 16 bits, layers "
        "brought one by one; none. [auto]",
        "--offload",
    ),
]
TextBackend = Annotated[
    str | None, value(MODEL, "NAME", "native, transformers, open_clip. [native]", "--text-backend")
]
BatchSize = Annotated[
    str | None, value(MODEL, "N", "Pictures per network call. [by their size]", "--batch-size")
]
Offline = Annotated[bool, switch(MODEL, "Touch no network.", "--offline")]
KeepAlive = Annotated[
    str | None,
    value(MODEL, "TIME", "Stay warm for later calls this long, as 5m; 0: run cold. [0]", "--keep-alive"),
]

Output = Annotated[
    str | None,
    value(
        OUTPUT,
        "WHERE",
        "A file, a directory, a template as out/{seed}.png, or '-' for standard output. [.]",
        "--output",
        "-o",
    ),
]
Force = Annotated[bool, switch(OUTPUT, "Replace files that exist.", "--force", "-f")]
Format = Annotated[
    str | None, value(OUTPUT, "NAME", "png, jpeg, webp. [by the file's name, else png]", "--format")
]
Quality = Annotated[
    str | None, value(OUTPUT, "1..100", "Of JPEG and WebP; WebP of 100 is lossless. [92]", "--quality")
]
Grid = Annotated[bool, switch(OUTPUT, "Also write one sheet of all the pictures.", "--grid")]
Filmstrip = Annotated[
    str | None,
    value(OUTPUT, "FILE", "Also show how noise became the picture: a .png strip, a .gif or .webp.", "--filmstrip"),
]
FilmstripSteps = Annotated[
    str | None,
    value(OUTPUT, "LIST", "The steps that it shows, as 1,10,25. [8, or 60 frames]", "--filmstrip-steps"),
]
Metadata = Annotated[
    str | None,
    value(OUTPUT, "LEVEL", "full: all settings; min: without the prompts; none. [full]", "--metadata"),
]
Plan = Annotated[
    bool, switch(OUTPUT, "Check all and show what would be made, without loading a model.", "--plan")
]

Json = Annotated[bool, switch(TALK, "One JSON object a result on standard output.", "--json")]
Null = Annotated[bool, switch(TALK, "End each path with NUL, for xargs -0.", "--null", "-0")]
Progress = Annotated[str | None, value(TALK, "MODE", "auto, bar, log, json, none. [auto]", "--progress")]
Color = Annotated[str | None, value(TALK, "WHEN", "auto, always, never. [auto]", "--color")]
Preview = Annotated[bool, switch(TALK, "Show the pictures in the terminal.", "--preview")]
Quiet = Annotated[bool, switch(TALK, "Nothing but errors.", "--quiet", "-q")]
Verbose = Annotated[int, switch(TALK, "Say more.", "--verbose", "-v", count=True)]
Debug = Annotated[bool, switch(TALK, "Show tracebacks.", "--debug")]
Version = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=show_version,
        is_eager=True,
        help="Print the version.",
        rich_help_panel=TALK,
        show_default=False,
    ),
]
