"""What comes back for a task: a picture's bytes, or why there is none.

Plain data that may cross to another process. Torch-free.
"""

from dataclasses import dataclass

from ddgen.app.tasks import Task
from ddgen.errors import DdgenError

@dataclass(frozen=True)
class Made:
    """A picture.

    data: the bytes of its file; None when the worker has put it in place already. seconds: its share of the
    group's time. score: how well it shows its prompt, where only the best are kept.
    """

    task: Task
    data: bytes | None
    seconds: float
    score: float | None = None


@dataclass(frozen=True)
class Missed:
    """A task that failed; the others go on."""

    task: Task
    error: DdgenError


Outcome = Made | Missed
