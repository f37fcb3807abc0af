"""Results as tables: on the terminal, and in README, where nothing else writes between the two markers."""

import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bench.measure import Result, from_json

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def latest(folder: Path = RESULTS) -> Path | None:
    """Return the newest results; their names are dates."""
    return max(folder.glob("*.json"), default=None)


def amount(value: float, unit: str) -> str:
    if unit == "MB":
        return f"{value:.0f} MB"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def comparison(row: Result) -> str:
    if row.compare == "difference":
        return f"{row.comparison:+.{_places(row)}f} {row.unit}"
    return f"{row.comparison:.2f} x"


def _places(row: Result) -> int:
    return 0 if row.unit == "MB" else 2


def target(row: Result) -> str:
    if row.target is None:
        return ""
    bound = f"{row.target:.{_places(row)}f} {row.unit}" if row.compare == "difference" else f"{row.target:g} x"
    return f"<= {bound}, {'met' if row.holds else 'missed'}"


def cells(row: Result) -> tuple[str, ...]:
    """Return a row as text: what, ours, the peer, its figure, the comparison, the target."""
    ours, peer = median(row.ours), median(row.peer)
    return (
        row.what,
        amount(ours, row.unit),
        row.peer_name,
        amount(peer, row.unit),
        comparison(row),
        target(row),
    )


HEADINGS = ("what", "ddgen", "against", "it takes", "comparison", "target")


def markdown(machine: dict[str, object], rows: Iterable[Result]) -> str:
    """Return README's table with its machine."""
    lines = [
        " | ".join(HEADINGS),
        " | ".join("---" for _ in HEADINGS),
        *(" | ".join(cells(row)) for row in rows),
    ]
    versions = machine["versions"]
    assert isinstance(versions, dict)
    packages = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "ddgen")
    note = (
        f"Medians of alternating runs, {machine['date']}, {machine['processor']}, {machine['cores']} cores, "
        f"load {machine['load']}, Python {machine['python']}, {packages}. `python -m bench` takes them again."
    )
    return "\n".join([*(f"| {line} |" for line in lines), "", note])


def readme_table(path: Path) -> str:
    """Return what README must hold between the markers for a file of results."""
    return markdown(*from_json(path.read_text()))


def section(readme: str) -> str | None:
    """Return what README holds between the markers."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*?)\n{re.escape(END)}", readme, re.S)
    return None if found is None else found[1]


def with_table(readme: str, table: str) -> str:
    """Return README with the table between the markers.

    Raises:
        ValueError: the markers are not there.
    """
    if section(readme) is None:
        raise ValueError(f"README has no '{BEGIN}' ... '{END}'")
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"
