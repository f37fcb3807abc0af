"""`best` in a batch: of the pictures of one prompt and one combination of settings, only the best are kept. Torch-free.

    closed   as many of its pictures are there as are to be kept: nothing is made, whatever the ledger knows
    open     all are made, so that the same win every time; what is there already is found so when it is published

A contest is settled in memory once the last of its pictures is made or has failed; a run that is killed before has kept
nothing of it, or some of the winners, and is made again. The ledger names the losers with their scores.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ddgen.app.outcome import Made, Outcome
from ddgen.app.tasks import Contest, Place


@dataclass
class Contests:
    """The contests of a run that are not settled yet. look: a place -> "done", "missing" or "other"."""

    look: Callable[[Place], str]
    _gathered: dict[str, list[Outcome]] = field(default_factory=dict)
    _last: tuple[str, bool] = ("", False)

    def closed(self, contest: Contest) -> bool:
        """Return whether enough of its pictures are there. The tasks of one contest come one after the other."""
        if self._last[0] != contest.key:
            there = sum(self.look(place) == "done" for place in contest.places)
            self._last = contest.key, there >= contest.keep
        return self._last[1]

    def gather(self, outcome: Outcome) -> tuple[list[Made], list[Made]]:
        """Take an outcome; return the winners, the best first, and the losers if it was the last, else nothing."""
        contest = outcome.task.contest
        assert contest is not None
        gathered = self._gathered.setdefault(contest.key, [])
        gathered.append(outcome)
        if len(gathered) < len(contest.places):
            return [], []
        del self._gathered[contest.key]
        places = {place.id: number for number, place in enumerate(contest.places)}
        made = [item for item in gathered if isinstance(item, Made)]
        made.sort(key=lambda item: (-(item.score or 0.0), places[item.task.id]))
        return made[: contest.keep], made[contest.keep :]
