"""From what a picture says in any tool's words to the texts of ddgen and of A1111. Torch-free.

Only what is known is written: a setting that the file does not give is left out, never guessed.
"""

import json

from ddgen import __version__
from ddgen.io.foreign import Found
from ddgen.io.metadata import A1111_SPACINGS, SCHEMA, Metadata, canonical, xmp_packet

TARGETS = ("both", "ddgen", "a1111")


def texts_for(found: Found, target: str, labels: dict[str, str]) -> Metadata:
    """Return the texts that say the same in the words of `target`. labels: A1111's names of our samplers."""
    settings = canonical(ddgen_record(found)) if target != "a1111" else ""
    parameters = a1111_text(found, labels) if target != "ddgen" else ""
    return Metadata(parameters, settings, xmp_packet(settings) if settings else "")


def ddgen_record(found: Found) -> dict[str, object]:
    """Return a `ddgen` record; ddgen's own is kept as it is."""
    if found.record:
        return found.record
    job: dict[str, object] = {"prompt": found.prompt, "negative": found.negative, **found.settings}
    if "model" in found.rest:
        job["model"] = found.rest["model"]
    return {"schema": SCHEMA, "program": f"ddgen {__version__} from {found.tool}", "job": job, "weights": {}}


def a1111_text(found: Found, labels: dict[str, str]) -> str:
    """Return a `parameters` text with the settings that are known."""
    said = found.settings
    sampler = str(said.get("sampler", ""))
    spacing = str(said.get("spacing", ""))
    size = f"{said['width']}x{said['height']}" if "width" in said and "height" in said else None
    items = {
        "Steps": said.get("steps"),
        "Sampler": labels.get(sampler, sampler) or None,
        "Schedule type": A1111_SPACINGS.get(spacing, spacing) or None,
        "CFG scale": f"{said['guidance']:.10g}" if "guidance" in said else None,
        "Seed": said.get("seed"),
        "Size": size,
        "Model hash": str(found.record.get("weights", {}).get("model", ""))[:10]
        or found.rest.get("Model hash"),
        "Model": found.rest.get("model") or found.rest.get("Model"),
        "RNG": "CPU" if found.tool == "ddgen" else found.rest.get("RNG"),
        "Eta": f"{said['eta']:.10g}" if said.get("eta") else None,
        "CFG Rescale": f"{said['guidance_rescale']:.10g}" if said.get("guidance_rescale") else None,
        "Version": f"ddgen {__version__}" if found.tool == "ddgen" else found.rest.get("Version"),
    }
    lines = [_one_line(found.prompt)]
    if found.negative:
        lines.append(f"Negative prompt: {_one_line(found.negative)}")
    lines.append(
        ", ".join(f"{key}: {_quoted(str(value))}" for key, value in items.items() if value is not None)
    )
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split("\n")).strip()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ',\n:"') else value
