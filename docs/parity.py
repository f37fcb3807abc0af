"""Write docs/parity.md: how far ddgen is from its referees, as the tests themselves find it.

    python docs/parity.py               runs the comparisons (about five minutes) and writes the page
    python docs/parity.py REPORT...     writes it from pytest's reports (-o junit_family=xunit1 --junitxml=REPORT)

A test that compares tells what it found through pytest's record_property; here they are run and what they
told is laid out, a section per kind of comparison. A test that fails ends this without a page.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).with_name("parity.md")
FILES = (
    "test_unet test_vae test_taesd test_clip test_samplers_diffusers test_convert test_parity_pipelines"
    " test_edit_parity test_control test_adapters_parity test_lora_referees test_lora test_full_size"
)
WHICH = "equal or diffusers or transformers or formula or refiner_takes_over or full_size"
FORM = ("-o", "junit_family=xunit1")  # the later one has no place for what single tests tell
REFEREES = ("diffusers", "transformers", "open_clip_torch", "peft", "torch")

HEAD = """# How far from the referees

Largest absolute differences between ddgen and independent implementations given the same random weights and the
same noise, in float64 unless it says otherwise; norms and biases are drawn anew, since their usual 1 and 0 hide
errors. Latents, pictures and weights are of about unit size. Other tests show that a wrong scale, eps, mask,
activation or order would be seen.

The comparisons' own tests wrote this page: `python docs/parity.py`. Referees: {versions}.

Not in the table, since no machine that ddgen was built on has them: the published weights themselves.
"""


def run() -> list[tuple[str, str, float]]:
    """Run the comparisons; return (section, case, largest difference)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        paths = [str(ROOT / "tests" / f"{name}.py") for name in FILES.split()]
        command = [sys.executable, "-m", "pytest", "-q", "-k", WHICH, *FORM, f"--junitxml={report}", *paths]
        if subprocess.run(command, cwd=ROOT).returncode:
            raise SystemExit("a comparison failed: no page")
        return told(xml.parse(report).getroot())


def told(report: xml.Element) -> list[tuple[str, str, float]]:
    """Return what the tests of a report told; of several differences of one case the largest.

    A property's name is its section, or section|case where the test's parameters do not name the case.
    """
    found: dict[tuple[str, str], float] = {}
    for test in report.iter("testcase"):
        name, _, case = test.get("name", "").partition("[")
        case = case.removesuffix("]") or name.removeprefix("test_").replace("_", " ")
        for item in test.iter("property"):
            section, _, part = item.get("name", "").partition("|")
            key = section, part or case
            found[key] = max(found.get(key, 0.0), float(item.get("value", "nan")))
    return [(*key, value) for key, value in found.items()]


def page(rows: list[tuple[str, str, float]]) -> str:
    """Return the page."""
    versions = ", ".join(f"{name} {version(name)}" for name in REFEREES)
    parts = [HEAD.format(versions=versions)]
    for section in dict.fromkeys(section for section, _, _ in rows):
        parts.append(f"\n## {section[0].upper()}{section[1:]}\n\n| case | largest difference |\n|---|---|\n")
        parts += [f"| {case} | {value:.1e} |\n" for name, case, value in rows if name == section]
    return "".join(parts)


if __name__ == "__main__":
    reports = [told(xml.parse(path).getroot()) for path in sys.argv[1:]]
    PAGE.write_text(page([row for report in reports for row in report] if reports else run()))
