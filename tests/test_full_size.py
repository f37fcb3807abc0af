"""Stable Diffusion 1.5 at its full size, once: a whole file of random weights in float16, read by the ordinary
loader, against diffusers and transformers filled from the same file; and what reading it takes of memory.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from referees import unet_state, vae_state
from safetensors import safe_open
from small import full_size
from torch import Tensor, nn

from ddgen.weights.arch import FAMILIES
from ddgen.weights.checkpoint import write_file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

PARAMETERS = {"unet": 859_520_964, "first_stage": 83_653_863, "text.0": 123_060_480}
GIGABYTE = 10**9
LATENTS = 32  # cells of a side: a picture of 256 x 256 pixels
CLOSE = 1e-4  # of the spread of what is compared, in float32: kernels add up in another order


def numbers(name: str, shape: tuple[int, ...], block: Tensor) -> Tensor:
    """Return random float16 weights that keep activations near unit size; block: normal numbers to cut from."""
    count = torch.Size(shape).numel()
    start = sum(map(ord, name)) * 7919 % (block.numel() // 2)
    repeats = -(-count // (block.numel() - start))
    drawn = block[start:].repeat(repeats)[:count].reshape(shape)
    if len(shape) > 1:
        return (drawn / torch.Size(shape[1:]).numel() ** 0.5).half()
    return ((1.0 if name.endswith("weight") else 0.0) + 0.1 * drawn).half()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the file (2.1 GB); it is deleted at the end."""
    path = tmp_path_factory.mktemp("full") / "sd15.safetensors"
    shapes = full_size("SD15")
    block = torch.randn(8_000_003, generator=torch.Generator().manual_seed(1))
    write_file(
        path,
        {name: (torch.float16, shape) for name, shape in shapes.items()},
        lambda name: numbers(name, shapes[name], block),
        {"format": "pt"},
    )
    yield path
    path.unlink()


def part(path: Path, prefix: str) -> dict[str, Tensor]:
    """Return a part of the file in float32, read by safetensors."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name).float() for name in names}


def held(tensors: dict[str, Tensor]) -> nn.Module:
    """Return what the renaming of the referees asks for a state."""
    return SimpleNamespace(state_dict=lambda: tensors)  # type: ignore[return-value]


def filled(build: Callable[[], nn.Module], state: dict[str, Tensor]) -> nn.Module:
    """Build a referee without weights and give it these."""
    with torch.device("meta"):
        made = build()
    made.load_state_dict(state, strict=True, assign=True)
    return made.eval()


def their_unet(path: Path, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
    from diffusers import UNet2DConditionModel

    def build() -> nn.Module:
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)

    state = unet_state(held(part(path, "model.diffusion_model.")), FAMILIES["SD15"].unet)
    return filled(build, state)(x, time, context).sample


def their_decoder(path: Path, latents: Tensor) -> Tensor:
    from diffusers import AutoencoderKL

    def build() -> nn.Module:
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )

    network = filled(build, vae_state(held(part(path, "first_stage_model.")), 4))
    return network.decode(latents / 0.18215).sample


def their_text(path: Path, ids: Tensor) -> Tensor:
    from transformers import CLIPTextConfig, CLIPTextModel

    settings = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    network = CLIPTextModel(settings).eval()  # its position numbers are made when it is built: not on meta
    names = network.state_dict()
    prefix = "text_model." if any(name.startswith("text_model.") for name in names) else ""
    tensors = part(path, "cond_stage_model.transformer.text_model.")
    network.load_state_dict({prefix + name: tensor for name, tensor in tensors.items()})
    return network(input_ids=ids).last_hidden_state


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference in units of the spread of what is compared."""
    assert ours.shape == theirs.shape and torch.isfinite(theirs).all() and theirs.std() > 0.01
    return ((ours - theirs).abs().max() / theirs.std()).item()


def test_stable_diffusion_at_full_size(model: Path, record_property: Callable[[str, object], None]) -> None:
    from ddgen.app.pipeline import Pipeline
    from ddgen.text.tokens import Tokenizer
    from ddgen.weights.inspect import inspect

    found = inspect(model)
    assert (found.family, found.layout) == ("SD15", "ldm")
    assert {item.name: item.parameters for item in found.parts} == PARAMETERS
    prompt = "a photo of an astronaut riding a horse"
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 4, LATENTS, LATENTS, generator=generator)
    small = torch.randn(1, 4, 12, 8, generator=generator)
    time = torch.tensor([801.0])
    with torch.inference_mode():
        pipeline = Pipeline.load(str(model), dtype="float32")
        context = pipeline.text.encode([prompt]).context
        ours = {
            "text": context,
            "U-Net": pipeline.denoiser.network(x, time, context, None),
            "decoder": pipeline.first_stage.decode(small),
        }
        del pipeline
        ids = torch.tensor([Tokenizer().chunks(prompt, 49407)[0]])
        differences = {
            "text": apart(ours["text"], their_text(model, ids)),
            "U-Net": apart(ours["U-Net"], their_unet(model, x, time, context)),
            "decoder": apart(ours["decoder"], their_decoder(model, small)),
        }
    for name, difference in differences.items():
        record_property(f"SD1.5 at full size, in float32, in units of the spread|{name}", difference)
    assert max(differences.values()) < CLOSE, differences


LOAD = """
import re, sys, torch
from pathlib import Path
from ddgen.weights.checkpoint import load_module, open_checkpoint
from ddgen.app.assemble import load_first_stage, load_text, load_unet
from ddgen.weights import registry
spec = registry.find(sys.argv[1])
from ddgen.text.tokens import Tokenizer; Tokenizer()
torch.zeros(8, dtype=torch.float16).float()
def peak():  # of this process: the system's other figure begins with that of the parent
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
kind, cpu = getattr(torch, sys.argv[2]), torch.device("cpu")
found = open_checkpoint(spec.source.path)
held = [load_unet(spec, found, kind, cpu), load_first_stage(spec, found, kind, cpu)]
held += load_text(spec, found, "native", kind, cpu).towers
after = peak()
weights = sum(p.numel() * p.element_size() for part in held for p in part.state_dict().values())
print(__import__("json").dumps({"took": after - before, "weights": weights}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is told by Linux")
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_reading_takes_little_more_memory_than_the_weights(model: Path, kind: str) -> None:
    command = [sys.executable, "-c", LOAD, str(model), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["weights"] > (4 if kind == "float32" else 2) * GIGABYTE
    assert found["took"] <= 1.15 * found["weights"], found
    assert found["took"] >= 0.9 * found["weights"], "what was read is there"
