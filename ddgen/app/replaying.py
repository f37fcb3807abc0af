"""A picture made again from what it says about itself, and compared. Torch-free; the caller brings the
pixels.

    equal bytes  >  equal within 1/255  >  different, with the largest difference and what differs between
    then and now
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ddgen import __version__
from ddgen.app import plan
from ddgen.errors import InputError
from ddgen.io import metadata
from ddgen.io.foreign import Found
from ddgen.request import Job, Request
from ddgen.weights.spec import Spec

if TYPE_CHECKING:
    from ddgen.io.images import Pixels

_FIELDS = {field.name for field in fields(Request)}


@dataclass(frozen=True)
class Verdict:
    """How two pictures compare.

    kind: "equal bytes", "equal within 1/255", "different"; largest: of 255; causes: likely first.
    """

    kind: str
    largest: int = 0
    causes: tuple[str, ...] = ()


def job_of(found: Found, spec: Spec, changes: Mapping[str, Any]) -> Job:
    """Return the job that a picture describes, with changes over it.

    Raises:
        InputError: it does not say enough. UsageError: a setting that this model cannot have.
    """
    if "seed" not in found.settings and "seed" not in changes:
        raise InputError("the picture does not say its seed", "give one with --seed", id="input.replay")
    if found.record and "prompt" not in found.record["job"] and "prompt" not in changes:
        raise InputError("the picture does not say its prompt", "give it with --prompt", id="input.replay")
    past = found.record.get("job", {}) if found.record else {}
    if past.get("edit") or past.get("controls"):
        raise InputError("the picture was made from another one", "edit that one again", id="input.replay")
    said: dict[str, Any] = {"negative": found.negative, "rng": rng_of(found), **found.settings}
    if "sigmas" in changes or ("sigmas" in said and not {"steps", "spacing"} & set(changes)):
        said = {name: value for name, value in said.items() if name not in ("steps", "spacing")}
    else:
        said.pop("sigmas", None)
    merged = said | {name: value for name, value in changes.items() if name != "prompt"}
    request = Request(
        prompts=(changes.get("prompt", found.prompt),),
        **{name: value for name, value in merged.items() if name in _FIELDS},
    )
    job = next(plan.plan(request, spec))
    toward, weight = past.get("toward", ""), past.get("toward_weight", 0.0)
    if isinstance(toward, str) and isinstance(weight, float) and 0 < weight <= 1:
        return replace(job, toward=toward, toward_weight=weight)
    return job


def rng_of(found: Found) -> str:
    """Return whose noise a picture was made from, where it does not say: its tool's own."""
    if found.tool == "a1111":
        if found.rest.get("Version", "").startswith("ddgen"):
            return "ddgen"
        return "diffusers" if found.rest.get("RNG") == "CPU" else "a1111"
    return {"comfyui": "comfy", "invokeai": "diffusers"}.get(found.tool, "ddgen")


def compare(old: "Pixels", new: "Pixels", *, same_bytes: bool, causes: tuple[str, ...]) -> Verdict:
    """Compare two pictures of uint8 values."""
    if same_bytes:
        return Verdict("equal bytes")
    if old.shape != new.shape:
        height, width = old.shape[:2]
        cause = (
            f"the picture is {width}x{height}, made again it is {new.shape[1]}x{new.shape[0]}: it was resized"
        )
        return Verdict("different", 255, (cause, *causes))
    largest = int(abs(old.astype("int16") - new.astype("int16")).max())
    if largest <= 1:
        return Verdict("equal within 1/255", largest, causes)
    return Verdict("different", largest, causes or ("the pixels were changed after the picture was made",))


def differences(record: Mapping[str, Any], origin: metadata.Origin, tool: str) -> tuple[str, ...]:
    """Return what was otherwise when the picture was made, the likeliest cause of a difference first."""
    if not record:
        return (f"{tool} made it, with other noise and other code",)
    found = []
    weights = record.get("weights", {})
    if weights != dict(origin.digests):
        unlike = [name for name in {**weights, **origin.digests} if weights.get(name) != origin.digests.get(name)]
        name = "model" if "model" in unlike else unlike[0]
        then, now = (str(d.get(name, "none"))[:12] for d in (weights, origin.digests))
        found.append(f"other weights{'' if name == 'model' else f' of {name}'}: {then} then, {now} now")
    if record.get("changes", {}) != dict(origin.changes):
        then, now = (_listed(changes) for changes in (record.get("changes", {}), origin.changes))
        found.append(f"other rules of the model: {then} then, {now} now")
    pairs = (
        ("dtype", origin.dtype),
        ("device", origin.device),
        ("text_backend", origin.text_backend),
        ("torch", origin.torch),
        ("program", f"ddgen {__version__}"),
    )
    for name, now in pairs:
        then = record.get(name, now)
        if then != now:
            found.append(f"other {name.replace('_', ' ')}: {str(then)[:40]} then, {now} now")
    return tuple(found)


def _listed(changes: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(changes.items()))[:60] or "its own"
