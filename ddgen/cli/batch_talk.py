"""What `ddgen batch` says while it works: a path or a JSON object a picture, failures, steps; and the first
Ctrl-C.
"""

from collections import Counter
from dataclasses import asdict

from ddgen.app.batch import Event, Interrupted
from ddgen.app.tasks import Task
from ddgen.cli import console, process
from ddgen.cli.progress import Progress
from ddgen.errors import DdgenError
from ddgen.request import Job


class Talk:
    """Tells of a run while it goes on, and hears of signals.

    total: pictures of the files, 0 for a stream. ahead: what of them is to be made, by its cost; of a stream
    the one that comes next; counted for large models only.
    """

    def __init__(self, *, events: bool, end: str) -> None:
        self.events = events
        self.end = end
        self.total = 0
        self.ahead: Counter[Job] = Counter()
        self.dropped = 0
        self.signal = 0
        self.bar: Progress | None = None

    @property
    def wanted(self) -> int:
        """Return how many pictures will stay, without those that are only made to be compared."""
        return self.total - self.dropped

    def stop(self, number: int) -> None:
        """Hear the first signal: the picture in hand is dropped at its next step."""
        self.signal = number
        process.write_error("\nddgen: stopping at the next step; again to quit now\n")

    def stopping(self) -> bool:
        return self.signal != 0

    def step(self, step: int, steps: int, images: int) -> None:
        """Hear of a step of the group in hand.

        Raises:
            Interrupted: a signal came.
        """
        if self.signal:
            raise Interrupted
        if self.events:
            console.out_json({"type": "step", "step": step, "steps": steps, "images": images})

    def event(self, event: Event) -> None:
        """Tell of an event; results go to standard output, the rest where it belongs."""
        task = event.task
        if event.kind == "start" and task is not None and not self.total:
            self.ahead = Counter([task.job])
        if event.kind == "image" and task is not None:
            self._image(task, event.seconds, event.score)
            if console.manners.preview:
                from ddgen.cli import preview
                from ddgen.io.images import read_image

                preview.show(read_image(task.path))
        elif event.kind == "failed":
            assert event.error is not None
            self._failed(event, event.error)
        elif self.events and task is not None:
            console.out_json(
                {
                    "type": event.kind,
                    "id": task.id,
                    "path": str(task.path),
                    "line": task.line,
                    "prompt": task.job.prompt,
                }
            )
        if self.bar is not None and event.kind != "start":
            self.bar.advance(1, task.job.prompt if task is not None else "")

    def _image(self, task: Task, seconds: float, score: float | None) -> None:
        if console.manners.json:
            record = {
                "type": "image",
                "path": str(task.path),
                "id": task.id,
                "line": task.line,
                "seconds": round(seconds, 3),
            }
            if score is not None:
                record["score"] = score
            console.out_json({**record, **asdict(task.job)})
        else:
            console.out(str(task.path), end=self.end)

    def _failed(self, event: Event, error: DdgenError) -> None:
        if event.task is not None and event.task.line:
            place = f"{event.task.source} line {event.task.line}: "
            error = replace_message(error, place + error.message)
        if console.manners.json:
            record = {
                "type": "failed",
                "code": error.exit_code,
                "id": error.id,
                "message": error.message,
                "mend": error.hint,
            }
            console.out_json({**record, "line": event.line.number if event.line is not None else 0})
        else:
            console.fail(error)


def replace_message(error: DdgenError, message: str) -> DdgenError:
    """Return the same kind of error with another message."""
    return type(error)(message, error.hint, id=error.id)
