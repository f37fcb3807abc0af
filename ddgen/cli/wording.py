"""What happens to typed prompts before they are planned: expansion, styles, and the strict look at their
length.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddgen.app import plan as planning
from ddgen.cli import console
from ddgen.errors import UsageError

STYLED = ("steps", "guidance", "sampler", "spacing", "sigmas", "eta", "width", "height")
"""Settings that a style may bring where nobody else says anything."""


def dress(given: Mapping[str, Any], values: dict[str, Any], prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the prompts expanded and inside their style, whose settings and negative words go into `values`.

    Raises:
        UsageError: an unknown style. InputError: a wildcard, a styles file or a prompt that cannot be used.
    """
    if given["expand"]:
        from ddgen.text.expand import Expander
        from ddgen.text.wildcards import Wildcards

        folder = Wildcards(Path(given["wildcards"])) if given["wildcards"] is not None else None
        expander = Expander(folder)
        prompts = tuple(text for prompt in prompts for text in expander.expand(prompt))
        remark_plain(expander.plain)
    elif given["wildcards"] is not None:
        raise UsageError("--wildcards needs --expand", "add --expand", id="usage.wildcards")
    if given["style"] is None:
        return prompts
    from ddgen.app.styles import apply_style, load_styles

    styles = load_styles(given["styles_file"])
    said = {name: values[name] for name in (*STYLED, "negative") if values[name] is not None}
    dressed = [apply_style(given["style"], styles, prompt, said) for prompt in prompts]
    values |= dressed[0][1]
    return tuple(prompt for prompt, _ in dressed)


def remark_plain(name: str) -> None:
    """Warn of a wildcard that was taken as text, if there was one."""
    if name:
        console.warn(f"'{name}' is taken as text; --wildcards DIR says where its lines are")


def check_length(prompts: tuple[str, ...], syntax: str, steps: int) -> None:
    """Refuse, for --strict-tokens, a prompt that is longer than one chunk.

    Raises:
        UsageError: naming the words beyond it.
    """
    from ddgen.text.chunks import report
    from ddgen.text.tokens import Tokenizer

    tokenizer = Tokenizer()
    for prompt in prompts:
        if len(prompt.encode()) <= planning.TOKENS_PER_CHUNK and "BREAK" not in prompt:
            continue
        for text in report(prompt, tokenizer, syntax, steps=steps):
            if text.beyond:
                lost = "".join(token.text for token in text.beyond).strip()
                limit = planning.TOKENS_PER_CHUNK
                raise UsageError(
                    f"prompt has {text.count} tokens, beyond {limit} is '{lost[:60]}'",
                    "shorten it",
                    id="usage.tokens",
                )
