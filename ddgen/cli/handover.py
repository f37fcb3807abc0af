"""Whether a call can be given to a warm worker; without one this costs a look at a directory that is not there.

Until the worker says that it has begun, nothing was read or written and the call can still be run here: every
doubt ends in that.
"""

import os

from ddgen.cli import standin

SERVED = frozenset(
    ("compare", "edit", "explain", "inpaint", "morph", "outpaint", "replay", "sample", "upscale", "vary", "verify")
)
NO = ("0", "0s", "0m", "0h")


def offer(arguments: list[str]) -> None:
    """Have a worker run the call and end as it does; return where there is none, or it does not want to."""
    if not arguments or arguments[0] not in SERVED or unwanted(arguments):
        return
    standin.remember_environment()
    folder = standin.directory()
    if not standin.is_private(folder) or not standin.possible():
        return
    try:
        words = standin.likeness()
        path = f"{folder}/{standin.name(words)}.sock"
        if not os.path.exists(path):
            return
        from ddgen.cli import companion

        companion.go(path, words, arguments)
    except OSError:
        return


def unwanted(arguments: list[str]) -> bool:
    """Tell whether the user wants this call to run by itself."""
    for at, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if word == "--":
            break
        if flag == "--keep-alive":
            return (value or "".join(arguments[at + 1 : at + 2])) in NO
    return os.environ.get("DDGEN_KEEP_ALIVE") in NO
