"""`python -m bench [ROW...]`: take the measurements, show them, and with --save write them down for
README.

Rows that are not taken keep their last results, with their dates; so all can be taken a few at a time.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import machine, table
from bench.measure import ROOT, Absent, Result, from_json, measure, merged, to_json
from bench.rows import LONG, ROWS

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"one of: {', '.join(ROWS)} (default: all but the long ones)"
    )
    parser.add_argument("--all", action="store_true", help=f"the long ones too: {', '.join(LONG)}")
    parser.add_argument("--repeats", type=int, default=7, help="at most so many samples of each side (7)")
    parser.add_argument(
        "--save", action="store_true", help="write bench/results/DATE.json and README's table"
    )
    parser.add_argument("--table", action="store_true", help="only print README's table of the last results")
    arguments = parser.parse_args()
    if arguments.table:
        path = table.latest()
        if path is None:
            parser.error("bench/results holds no results")
        print(table.readme_table(path))
        return
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown row '{unknown[0]}'; one of: {', '.join(ROWS)}")
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    names = arguments.rows or [name for name in ROWS if arguments.all or name not in LONG]

    described = machine.describe()
    results: list[Result] = []
    failed = []
    for name in names:
        try:
            with console.status(name):
                results.append(measure(name, ROWS[name](), arguments.repeats, described))
        except Absent as reason:
            console.print(f"{name}: not taken: {reason}", highlight=False)
            continue
        except RuntimeError as error:  # of one row: the others are still worth their time
            console.print(f"{name}: failed: {error}", highlight=False, markup=False)
            failed.append(name)
            continue
        console.print(f"{name}: {table.comparison(results[-1])}", highlight=False)
        if arguments.save:  # after each, so that nothing taken is lost
            save(results, str(described["date"]))
    show(results)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def show(results: list[Result]) -> None:
    shown = Table(*table.HEADINGS)
    for row in results:
        shown.add_row(*(text.replace("[", r"\[") for text in table.cells(row)))
    console.print(shown)


def save(results: list[Result], date: str) -> None:
    """Write the results into the day's file, and README's table from it."""
    before = table.latest()
    kept = [] if before is None else from_json(before.read_text())
    path = Path(table.RESULTS) / f"{date}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_json(merged(kept, results, list(ROWS))))
    readme = ROOT / "README.md"
    readme.write_text(table.with_table(readme.read_text(), table.readme_table(path)))


if __name__ == "__main__":
    main()
