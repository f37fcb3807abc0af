"""What a step does not do: read a text again, compute twice what no text has touched, run a branch that is
off, wait for the device. And that nothing of this changes a picture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from referees import distance, draw, redraw
from test_additions import model  # noqa: F401 - the fixture
from test_unet import CASES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddgen.app import pipeline as pipelines
from ddgen.app.pipeline import Pipeline, run
from ddgen.app.plan import plan
from ddgen.conditioning import Conditioning
from ddgen.diffusion.denoiser import Denoiser
from ddgen.nets import attention
from ddgen.nets.attention import REMEMBERED, TransformerBlock, remembering
from ddgen.nets.unet import UNet
from ddgen.request import Job, Request
from fakes import schedule


def network_of(name: str, seed: int = 0) -> UNet:
    network = redraw(UNet(CASES[name].config), seed).double()
    assert isinstance(network, UNet)
    return network


def inputs(name: str, pictures: int, texts: int, seed: int = 1) -> tuple[Tensor, ...]:
    config, size = CASES[name].config, CASES[name].size
    x = draw(pictures, config.in_channels, *size, seed=seed)
    time = torch.tensor([731.0, 20.0, 5.0], dtype=torch.float64)[:pictures]
    context = draw(pictures * texts, 7, config.context_dim, seed=seed + 1)
    vector = draw(pictures * texts, config.vector_dim, seed=seed + 2) if config.vector_dim else None
    return x, time, context, *([] if vector is None else [vector])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("pictures", "texts"), [(1, 2), (2, 3)])
def test_many_texts_for_one_picture_equal_the_picture_repeated(name: str, pictures: int, texts: int) -> None:
    network = network_of(name)
    x, time, *told = inputs(name, pictures, texts)
    with torch.inference_mode():
        together = network(x, time, *told)
        apart = network(x.repeat(texts, 1, 1, 1), time.repeat(texts), *told)
    assert len(together) == pictures * texts
    assert distance(together, apart) < 1e-10
    assert (together[:pictures] - together[pictures : 2 * pictures]).abs().max() > 1e-3


def rows_of(network: nn.Module, module: nn.Module, *arguments: Tensor) -> list[int]:
    """Return how many rows a module of a network sees in one call of the network."""
    rows: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    with torch.inference_mode():
        network(*arguments)
    hook.remove()
    return rows


def test_what_no_text_has_touched_is_computed_once() -> None:
    network = network_of("sd1")
    x, time, context = inputs("sd1", 1, 2)
    first, transformer = network.input_blocks[1]
    (block,) = transformer.transformer_blocks
    assert rows_of(network, first, x, time, context) == [1]
    assert rows_of(network, block.attn1, x, time, context) == [1]
    assert rows_of(network, block.attn2, x, time, context) == [2]
    assert rows_of(network, network.input_blocks[2][0], x, time, context) == [2]


def test_a_pooled_text_enters_at_once() -> None:
    network = network_of("sdxl")
    assert rows_of(network, network.input_blocks[1][0], *inputs("sdxl", 1, 2)) == [2]


def reads(network: nn.Module) -> list[int]:
    """Return a list that grows by the number of texts whenever a first cross-attention makes keys of them."""
    block = next(module for module in network.modules() if isinstance(module, TransformerBlock))
    rows: list[int] = []
    block.attn2.to_k.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    return rows


def test_a_text_is_read_once_and_the_result_is_the_same() -> None:
    network = network_of("sd1")
    x, time, context = inputs("sd1", 1, 2)
    seen = reads(network)
    with torch.inference_mode():
        expected = network(x, time, context)
        network(x, time, context)
        assert seen == [2, 2]  # nobody asked it to remember
        with remembering([network, "no network"]):
            outputs = [network(x, time, context) for _ in range(3)]
            assert seen == [2, 2, 2]
            network(x, time, context.clone())
            assert seen == [2, 2, 2, 2]  # equal is not the same
            network(x, time, context)
            assert seen == [2, 2, 2, 2]
            for _ in range(REMEMBERED):
                network(x, time, context.clone())
            network(x, time, context)
            assert len(seen) == 4 + REMEMBERED + 1  # forgotten
            most = [len(module.memory) for module in network.modules() if getattr(module, "memory", None)]
            assert most and max(most) == REMEMBERED
        network(x, time, context)
        assert len(seen) == 4 + REMEMBERED + 2
    assert all(torch.equal(output, expected) for output in outputs)
    assert all(getattr(module, "memory", None) is None for module in network.modules())


def test_a_network_that_takes_one_text_a_picture_gets_the_picture_repeated() -> None:
    denoiser = Denoiser(lambda x, time, context, vector=None: x * context.mean((1, 2))[:, None, None, None],
                        "v", schedule("sd"))  # fmt: skip
    x, told = draw(2, 3, 4, 4, seed=1), Conditioning(draw(4, 7, 5, seed=2))
    out = denoiser(x, 2.0, told)
    assert torch.equal(out, denoiser(x.repeat(2, 1, 1, 1), 2.0, told)) and len(out) == 4


def test_a_conditioning_is_converted_once() -> None:
    told: list[int] = []

    def network(x: Tensor, time: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor:
        told.append(context.data_ptr())
        assert context.dtype == torch.float16
        return x

    from ddgen.diffusion.guidance import guided

    denoiser = Denoiser(network, "v", schedule("sd"), dtype=torch.float16)
    cond, uncond = Conditioning(torch.ones(1, 7, 5)), Conditioning(torch.zeros(1, 7, 5))
    for denoise in (guided(denoiser, cond, uncond, scale=2.0), guided(denoiser, cond, None, scale=1)):
        told.clear()
        for sigma in (3.0, 2.0, 1.0):
            denoise(torch.ones(1, 3, 4, 4), sigma)
        assert len(set(told)) == 1


def job_of(pipeline: Pipeline, **settings: object) -> Job:
    (job,) = plan(Request(prompts=("a cat",), seed=3, **settings), pipeline.spec)  # type: ignore[arg-type]
    return job


@contextmanager
def counted(network: nn.Module) -> Iterator[list[int]]:
    """Count the texts of every call."""
    calls: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, given: calls.append(len(given[2])))
    yield calls
    hook.remove()


def test_a_branch_that_is_off_is_not_run(model: Path) -> None:  # noqa: F811
    pipeline = Pipeline.load(str(model))
    network = pipeline.denoiser.network
    assert isinstance(network, nn.Module)
    with counted(network) as calls:
        run(pipeline, [job_of(pipeline, steps=5, guidance=1.0)])
        assert calls == [1] * 5
        calls.clear()
        run(pipeline, [job_of(pipeline, steps=5, guidance=3.0)])
        assert calls == [2] * 5
        calls.clear()
        seen = reads(network)
        run(pipeline, [job_of(pipeline, steps=5, guidance=3.0, guidance_interval=(0.2, 0.6))])
    assert calls == [1, 2, 2, 1, 1]
    assert sorted(seen) == [1, 2]  # each text read once in the whole picture


def test_what_is_remembered_changes_no_picture(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pipeline = Pipeline.load(str(model))
    jobs = [job_of(pipeline, steps=4, guidance=3.0), job_of(pipeline, steps=4, guidance=3.0)]
    jobs[1] = replace(jobs[1], prompt="a [cat:dog:0.5] in [red|green]", seed=5)
    remembered = run(pipeline, jobs)

    @contextmanager
    def forgetful(networks: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(pipelines, "remembering", forgetful)
    assert all((a == b).all() for a, b in zip(remembered, run(pipeline, jobs), strict=True))
    monkeypatch.setattr(attention.Attention, "_recall", lambda self, context: self._read(context + 1))
    assert not (remembered[0] == run(pipeline, jobs)[0]).all()  # the comparison sees what it is to see


class Waits(TorchDispatchMode):
    """Counts reads of a number from a tensor (item, float, bool, if): on a GPU each waits for all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.on = 0, False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        self.count += self.on and function in waits
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_the_loop_waits_for_nothing(model: Path, sampler: str) -> None:  # noqa: F811
    pipeline = Pipeline.load(str(model))
    waits = Waits()

    def on_step(step: object, steps: int) -> None:
        index = getattr(step, "index")  # noqa: B009
        waits.on = index < steps - 1

    with waits:
        run(pipeline, [job_of(pipeline, steps=4, guidance=3.0, sampler=sampler)], on_step)
        assert waits.count == 0
        waits.on = True
        assert torch.ones(1).item() == 1.0 and waits.count == 1
