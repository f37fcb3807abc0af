"""Results as tables: on the terminal, and in README, where nothing else writes between the two markers."""

import re
from collections.abc import Iterable, Mapping
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
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def comparison(row: Result) -> str:
    """Return the comparison and, of several, the least and the most."""
    if row.compare == "difference":
        return f"{row.comparison:+.{_places(row)}f} {row.unit}"
    spread = f" ({min(row.comparisons):.2f} to {max(row.comparisons):.2f})" if len(row.ours) > 1 else ""
    return f"{row.comparison:.2f} x{spread}"


def _places(row: Result) -> int:
    return 0 if row.unit == "MB" else 2


def target(row: Result) -> str:
    if row.target is None:
        return ""
    bound = f"{row.target:.{_places(row)}f} {row.unit}" if row.compare == "difference" else f"{row.target:.3g} x"
    return f"<= {bound}, {'met' if row.holds else 'missed'}"


def cells(row: Result) -> tuple[str, ...]:
    """Return a row as text, as the headings say."""
    ours, peer = median(row.ours), median(row.peer)
    return (
        row.what,
        amount(ours, row.unit),
        row.peer_name,
        amount(peer, row.unit),
        comparison(row),
        target(row),
        "" if row.of_limit is None else f"{100 * row.of_limit:.0f} %",
        str(row.machine.get("date", "")),
    )


HEADINGS = ("what", "ddgen", "against", "it takes", "comparison", "target", "of the limit", "taken")


def markdown(rows: Iterable[Result]) -> str:
    """Return README's table with its machines."""
    rows = list(rows)
    lines = [
        " | ".join(HEADINGS),
        " | ".join("---" for _ in HEADINGS),
        *(" | ".join(cells(row)) for row in rows),
    ]
    machines: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        machines.setdefault(described(row.machine), []).append(row.machine)
    notes = [f"{dates(found)}: {words}." for words, found in machines.items()]
    notes.append("`python -m bench` takes them again.")
    return "\n".join([*(f"| {line} |" for line in lines), "", *notes])


def described(machine: Mapping[str, object]) -> str:
    """Return a machine and what ran on it in a line, without what changes from run to run."""
    versions = machine["versions"]
    assert isinstance(versions, Mapping)
    packages = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "ddgen")
    return f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {packages}"


def dates(machines: Iterable[Mapping[str, object]]) -> str:
    """Return the days on which a machine was asked, and the highest load that it had when a run began."""
    found = list(machines)
    days = ", ".join(sorted({str(machine["date"]) for machine in found}))
    return f"{days}, load up to {max(float(str(machine['load'])) for machine in found)}"


def readme_table(path: Path) -> str:
    """Return what README must hold between the markers for a file of results."""
    return markdown(from_json(path.read_text()))


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
