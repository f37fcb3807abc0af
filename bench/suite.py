"""Write the fixed suite, prompts/eval/KIND.jsonl, from the list of concepts: python -m bench.suite"""

from pathlib import Path

from ddgen.app import suite

FOLDER = Path(__file__).resolve().parents[1] / "prompts" / "eval"


def main() -> None:
    rows = suite.build()
    for kind in suite.KINDS:
        lines = [suite.line(row) for row in rows if row.kind == kind]
        (FOLDER / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{kind}: {len(lines)}")


if __name__ == "__main__":
    main()
