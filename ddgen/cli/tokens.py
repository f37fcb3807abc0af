"""`ddgen tokens`: what a prompt comes to, token by token, as the text tower will read it.

No model is loaded.
"""

from typing import Annotated

import typer

from ddgen.cli import console, flags, settings
from ddgen.cli.sample import read_prompts
from ddgen.errors import UsageError
from ddgen.text.chunks import TokenReport, report
from ddgen.text.tokens import BODY, Tokenizer

EXAMPLES = """Examples:
  ddgen tokens "a (red:1.3) apple on a [wooden:marble:0.5] table"
  ddgen tokens "$(cat long.txt)" --strict-tokens && echo fits
"""
DEFAULT_STEPS = 25

Strict = Annotated[
    bool,
    flags.switch(
        flags.PICTURE, f"Make it an error when a text is longer than {BODY} tokens.", "--strict-tokens"
    ),
]


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command("tokens", epilog=EXAMPLES)(tokens)


def tokens(
    prompts: flags.Prompts = None,
    steps: flags.Steps = None,
    prompt_syntax: flags.PromptSyntax = None,
    strict_tokens: Strict = False,
    json: flags.Json = False,
    color: flags.Color = None,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Show a prompt's tokens, their weights, the chunks of 75, and what would fall off without chunks."""
    found = settings.resolve(
        {"steps": steps, "prompt_syntax": prompt_syntax, "color": color}, ("steps", "prompt_syntax", "color")
    )
    console.configure(color=str(found["color"].value), quiet=quiet, verbose=0, json=json)
    count = found["steps"].value
    grid = count if isinstance(count, int) else DEFAULT_STEPS
    if not 1 <= grid <= 1000:
        raise UsageError(f"--steps {grid} is out of range", "use 1 to 1000", id="usage.range")
    tokenizer = Tokenizer()
    worst: TokenReport | None = None
    for prompt in read_prompts(prompts):
        for text in report(prompt, tokenizer, str(found["prompt_syntax"].value), steps=grid):
            if json:
                _tell_json(prompt, text)
            else:
                _tell(text, grid)
            if text.beyond and (worst is None or text.count > worst.count):
                worst = text
    if strict_tokens and worst is not None:
        lost = "".join(token.text for token in worst.beyond).strip()
        raise UsageError(
            f"prompt has {worst.count} tokens, beyond {BODY} is '{lost[:60]}'",
            "shorten it",
            id="usage.tokens",
        )


def _tell(text: TokenReport, steps: int) -> None:
    chunks = f"{len(text.chunks)} chunk" + ("s" if len(text.chunks) != 1 else "")
    when = "" if len(text.steps) == steps else f", steps {_ranges(text.steps)} of {steps}"
    weight = "" if text.weight == 1 else f", weight {text.weight:g}"
    tokens = "1 token" if text.count == 1 else f"{text.count} tokens"
    console.out(f"{tokens}, {chunks}{when}{weight}: {text.text}")
    for number, chunk in enumerate(text.chunks, 1):
        parts = [
            token.text.rstrip() + (f"({token.weight:.4g})" if token.weight != 1 else "") for token in chunk
        ]
        console.out(f"  chunk {number}, {len(chunk)}/{BODY}: " + " | ".join(parts))
    if text.beyond:
        lost = "".join(token.text for token in text.beyond).strip()
        console.out(f"  without chunks, these {len(text.beyond)} tokens would be cut: {lost}")


def _tell_json(prompt: str, text: TokenReport) -> None:
    chunks = [
        [{"id": token.id, "text": token.text, "weight": token.weight} for token in chunk]
        for chunk in text.chunks
    ]
    record = {
        "type": "tokens",
        "prompt": prompt,
        "text": text.text,
        "count": text.count,
        "beyond": len(text.beyond),
    }
    console.out_json(
        {**record, "part": text.part, "weight": text.weight, "steps": list(text.steps), "chunks": chunks}
    )


def _ranges(steps: tuple[int, ...]) -> str:
    """Return `1-12` for consecutive steps, else `1,3,5`."""
    if steps[-1] - steps[0] + 1 == len(steps):
        return f"{steps[0]}-{steps[-1]}"
    return ",".join(map(str, steps[:20])) + (",..." if len(steps) > 20 else "")
