"""What the tests of adapters share: small models with random weights, files written to order, a few names."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from referees import draw, redraw
from safetensors.torch import save_file
from torch import Tensor, nn

from ddgen.nets.config import UNetConfig
from ddgen.nets.unet import UNet
from ddgen.text.clip import CLIPTextModel
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.weights.arch import Arch
from ddgen.weights.lora import Adapted, open_adapter

SD1 = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    heads=(2, 2),
    context_dim=24,
    down_depth=((1,), (1,)),
    up_depth=((1, 1), (1, 1)),
)
SDXL = replace(
    SD1,
    context_dim=40,
    linear_projection=True,
    vector_dim=20 + 6 * 8,
    down_depth=((0,), (2,)),
    up_depth=((0, 0), (2, 2)),
    mid_depth=2,
)
CLIP = CLIPConfig(vocab_size=60, width=24, layers=2, heads=2, mlp=48)
BIG = CLIPConfig(vocab_size=60, width=32, layers=2, heads=2, mlp=64, activation="gelu", projection_dim=20)
ARCH1 = Arch("SD15", SD1, text=(TowerSpec(CLIP),))
ARCHXL = Arch("SDXL", SDXL, text=(TowerSpec(CLIP), TowerSpec(BIG, pooled=True)))
CLOSE = 1e-9
Q = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
CONV = "input_blocks.1.0.in_layers.2"
ENTRY = "input_blocks.0.0"


class Model:
    """A small model with random weights: its modules, a copy of them, and the adapters on it."""

    def __init__(self, arch: Arch = ARCH1, dtype: torch.dtype = torch.float64) -> None:
        self.arch = arch
        self.modules: dict[str, nn.Module] = {"unet": redraw(UNet(arch.unet).to(dtype), 1)}
        for i, spec in enumerate(arch.text):
            self.modules[f"text.{i}"] = redraw(CLIPTextModel(spec.config).to(dtype), 2 + i)
        self.before = {
            part: {n: p.detach().clone() for n, p in m.named_parameters()} for part, m in self.modules.items()
        }
        self.adapted = Adapted(self.modules, arch, lambda part, name: self.before[part][name], "small")

    def put(self, *files: tuple[Path, float]) -> list[str]:
        return self.adapted.set([(open_adapter(path), weight) for path, weight in files])

    def changes(self) -> dict[str, Tensor]:
        """Return what differs from the model's file, as part:name -> difference."""
        found = {}
        for part, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if not torch.equal(parameter, self.before[part][name]):
                    found[f"{part}:{name}"] = parameter.detach() - self.before[part][name]
        return found


def saved(
    tmp_path: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    name: str = "l.safetensors",
) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name, metadata)
    return tmp_path / name


def weight_of(model: Model, module: str, part: str = "unet") -> Tensor:
    return model.before[part][f"{module}.weight"]


def only(model: Model, key: str, expected: Tensor) -> float:
    """Assert that exactly one weight changed, and by this; return the largest difference."""
    changes = model.changes()
    assert set(changes) == {key}
    assert expected.abs().max() > 1e-3
    found = (changes[key] - expected.reshape(changes[key].shape)).abs().max().item()
    assert found < CLOSE
    return found


UP, DOWN, ALPHA = draw(32, 4, seed=11), draw(4, 32, seed=12), torch.tensor(2.0)
PLAIN = 0.7 * (2.0 / 4) * (UP @ DOWN)


STEM = "lora_unet_" + Q.replace(".", "_")
STEM_CONV = "lora_unet_" + CONV.replace(".", "_")
STEM_ENTRY = "lora_unet_input_blocks_0_0"


def a(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=100 + seed) / 3
