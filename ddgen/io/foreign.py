"""What pictures of ddgen, A1111, ComfyUI, InvokeAI and mflux say about themselves, in ddgen's words.
Torch-free.

    texts of a file -> Found(tool, prompt, negative, settings, rest)

Settings have the names of io/settings.py; values stay as the file says, checked for their type alone. `rest`
holds what has no word of ours. Nothing found here is run, opened or fetched.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ddgen.io import metadata
from ddgen.io.metadata import A1111_SPACINGS, NAMESPACE
from ddgen.io.settings import SettingError, Value, read_values

MAX_STEPS_OF_A_TRACE = 1000


@dataclass(frozen=True)
class Found:
    """What one picture says.

    settings: our names, typed; rest: everything else, as text; record: the whole ddgen record.
    """

    tool: str
    prompt: str = ""
    negative: str = ""
    settings: dict[str, Value] = field(default_factory=dict)
    rest: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def interpret(texts: Mapping[str, str]) -> Found | None:
    """Return what the texts of a file mean; None when no known tool speaks."""
    for reader in (_ddgen, _invokeai, _comfyui, _mflux, _a1111):
        found = reader(texts)
        if found is not None:
            return found
    return None


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _collect(pairs: Mapping[str, object]) -> tuple[dict[str, Value], dict[str, str]]:
    """Part {our name: value} into what has the right type and what has not; None is left out."""
    settings: dict[str, Value] = {}
    rest: dict[str, str] = {}
    for name, value in pairs.items():
        if value is None or value == "":
            continue
        try:
            (settings[name],) = read_values(name, value)
        except (SettingError, ValueError, TypeError):
            rest[name] = str(value)[:200]
    return settings, rest


def _ddgen(texts: Mapping[str, str]) -> Found | None:
    text = texts.get("ddgen")
    if text is None and NAMESPACE in texts.get("XML:com.adobe.xmp", ""):
        found = re.search(r"<ddgen:settings>(.*?)</ddgen:settings>", texts["XML:com.adobe.xmp"], re.DOTALL)
        text = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") if found else None
    record = _json(text)
    if (
        not isinstance(record, dict)
        or record.get("schema") != metadata.SCHEMA
        or not isinstance(record.get("job"), dict)
    ):
        return None
    job = dict(record["job"])
    prompt, negative, model = (str(job.pop(name, "") or "") for name in ("prompt", "negative", "model"))
    known = {name: value for name, value in job.items() if name in _JOB_FIELDS}
    settings, rest = _collect(known)
    rest |= {"model": model} | {
        name: str(value)[:200] for name, value in job.items() if name not in _JOB_FIELDS
    }
    return Found("ddgen", prompt, negative, settings, rest, record)


_JOB_FIELDS = (
    "seed",
    "width",
    "height",
    "steps",
    "guidance",
    "guidance_rescale",
    "guidance_interval",
    "sampler",
    "spacing",
    "sigmas",
    "eta",
    "scale",
    "prompt_syntax",
    "rng",
    "tile",
    "transparent",
    "variation",
    "variation_seed",
)
_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_A1111_NAMES = {
    "Steps": "steps",
    "Sampler": "sampler",
    "Schedule type": "spacing",
    "CFG scale": "guidance",
    "Seed": "seed",
    "Eta": "eta",
    "CFG Rescale": "guidance_rescale",
    "Variation seed": "variation_seed",
    "Variation seed strength": "variation",
}


def _a1111(texts: Mapping[str, str]) -> Found | None:
    text = next(
        (texts[name] for name in ("parameters", "UserComment", "COM") if "Steps: " in texts.get(name, "")),
        None,
    )
    if text is None:
        return None
    lines = text.strip().split("\n")
    last = lines.pop() if len(_PARAMETER.findall(lines[-1])) >= 3 else ""
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        if line.startswith("Negative prompt:"):
            target, line = negative, line.removeprefix("Negative prompt:").strip()
        target.append(line)
    pairs: dict[str, object] = {}
    rest: dict[str, str] = {}
    for key, value in _PARAMETER.findall(last):
        value = value.strip()
        if value.startswith('"'):
            loaded = _json(value)
            value = loaded if isinstance(loaded, str) else value
        size = re.fullmatch(r"(\d+)x(\d+)", value)
        if key == "Size" and size is not None:
            pairs |= {"width": size[1], "height": size[2]}
        elif key in _A1111_NAMES:
            pairs[_A1111_NAMES[key]] = value
        else:
            rest[key] = value
    _split_sampler(pairs)
    settings, wrong = _collect(pairs)
    return Found("a1111", "\n".join(prompt).strip(), "\n".join(negative).strip(), settings, rest | wrong)


def _split_sampler(pairs: dict[str, object]) -> None:
    """Take the spacing out of old sampler names: "DPM++ 2M Karras"."""
    sampler = str(pairs.get("sampler", ""))
    for ours, theirs in A1111_SPACINGS.items():
        if "spacing" not in pairs and sampler.endswith(f" {theirs}"):
            pairs |= {"sampler": sampler.removesuffix(f" {theirs}"), "spacing": ours}
    if pairs.get("spacing") == "Automatic":
        del pairs["spacing"]


_COMFY_SAMPLERS = {
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
    "uni_pc": "unipc",
    "dpm_2": "dpm2",
}
_COMFY_SPACINGS = {"normal": "linspace", "simple": "trailing"}


def _comfyui(texts: Mapping[str, str]) -> Found | None:
    text = texts.get("prompt") or next(
        (
            value.partition(":")[2]
            for name, value in texts.items()
            if name.startswith(("Model", "Make", "Tag")) and value.startswith("prompt:")
        ),
        None,
    )
    graph = _json(text)
    if not isinstance(graph, dict):
        return None
    nodes = {
        str(key): node
        for key, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    sampler = next(
        (node for node in nodes.values() if str(node.get("class_type", "")).startswith("KSampler")), None
    )
    if sampler is None:
        return None
    follow = _follower(nodes)
    inputs = sampler["inputs"]

    def value(key: str) -> Any:
        found = inputs.get(key)
        return (
            follow(found, (key, "value", "int", "float", "seed", "noise_seed"))
            if isinstance(found, list)
            else found
        )

    pairs: dict[str, object] = {
        "seed": value("seed") if "seed" in inputs else value("noise_seed"),
        "steps": value("steps"),
        "guidance": value("cfg"),
        "sampler": _COMFY_SAMPLERS.get(str(value("sampler_name")), value("sampler_name")),
        "spacing": _COMFY_SPACINGS.get(str(value("scheduler")), value("scheduler")),
        "width": follow(inputs.get("latent_image"), ("width",)),
        "height": follow(inputs.get("latent_image"), ("height",)),
    }
    settings, rest = _collect(pairs)
    model = follow(inputs.get("model"), ("ckpt_name", "unet_name"))
    rest |= {"model": str(model)} if model else {}
    texts_of = [
        follow(inputs.get(side), ("text", "text_g", "string", "value", "prompt"))
        for side in ("positive", "negative")
    ]
    prompt, negative = (found if isinstance(found, str) else "" for found in texts_of)
    return Found("comfyui", prompt, negative, settings, rest)


def _follower(nodes: Mapping[str, Any]) -> Callable[[object, tuple[str, ...]], Any]:
    """Return a search along links [node, output] for the first plain value of one of the wanted inputs."""

    def follow(link: object, wanted: tuple[str, ...]) -> Any:
        todo, seen = [link], set()
        while todo and len(seen) < MAX_STEPS_OF_A_TRACE:
            here = todo.pop(0)
            if not isinstance(here, list) or not here or str(here[0]) in seen or str(here[0]) not in nodes:
                continue
            seen.add(str(here[0]))
            inputs = nodes[str(here[0])]["inputs"]
            for key in wanted:
                if key in inputs and not isinstance(inputs[key], list | dict):
                    return inputs[key]
            links = [inputs[key] for key in wanted if isinstance(inputs.get(key), list)]
            todo += links or [found for found in inputs.values() if isinstance(found, list)]
        return None

    return follow


def _invokeai(texts: Mapping[str, str]) -> Found | None:
    record = _json(texts.get("invokeai_metadata"))
    if isinstance(record, dict):
        model = record.get("model")
        pairs = {
            "seed": record.get("seed"),
            "width": record.get("width"),
            "height": record.get("height"),
            "steps": record.get("steps"),
            "guidance": record.get("cfg_scale"),
            "guidance_rescale": record.get("cfg_rescale_multiplier"),
            "sampler": record.get("scheduler"),
        }
        sampler = str(pairs["sampler"] or "")
        if sampler.endswith("_k"):
            pairs |= {"sampler": sampler.removesuffix("_k"), "spacing": "karras"}
        settings, rest = _collect(pairs)
        if isinstance(model, dict):
            model = model.get("name") or model.get("model_name")
        rest |= {"model": str(model or "")}
        prompt, negative = (str(record.get(name) or "") for name in ("positive_prompt", "negative_prompt"))
        return Found("invokeai", prompt, negative, settings, rest)
    old = _json(texts.get("sd-metadata"))
    image = old.get("image") if isinstance(old, dict) else None
    if not isinstance(image, dict):
        return None
    said = image.get("prompt")
    text = (
        said[0].get("prompt", "")
        if isinstance(said, list) and said and isinstance(said[0], dict)
        else said or ""
    )
    bracketed = re.findall(r"\[([^\[\]]*)\]", str(text))
    pairs = {name: image.get(name) for name in ("seed", "width", "height", "steps", "sampler")}
    settings, rest = _collect(pairs | {"guidance": image.get("cfg_scale")})
    return Found(
        "invokeai", re.sub(r"\[[^\[\]]*\]", "", str(text)).strip(), ", ".join(bracketed), settings, rest
    )


def _mflux(texts: Mapping[str, str]) -> Found | None:
    record = _json(texts.get("UserComment"))
    if (
        not isinstance(record, dict)
        or "prompt" not in record
        or not ({"mflux_version", "quantize", "precision"} & set(record))
    ):
        return None
    pairs = {name: record.get(name) for name in ("seed", "steps", "guidance", "width", "height")}
    settings, rest = _collect(pairs)
    rest |= {"model": str(record.get("model") or "").rpartition("/")[2]}
    return Found(
        "mflux", str(record.get("prompt") or ""), str(record.get("negative_prompt") or ""), settings, rest
    )
