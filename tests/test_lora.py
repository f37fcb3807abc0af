"""Every kind of adapter against its written formula, in float64; several at once, removal bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_cases import (
    ARCH1,
    CLOSE,
    CONV,
    DOWN,
    ENTRY,
    SD1,
    STEM,
    STEM_CONV,
    STEM_ENTRY,
    UP,
    Model,
    Q,
    a,
    only,
    saved,
    weight_of,
)
from referees import Record
from torch import Tensor

from ddgen.weights import lora_maths


def kron(one: Tensor, two: Tensor) -> Tensor:
    return torch.cat([torch.cat([value * two for value in row], dim=1) for row in one], dim=0)


def kinds() -> dict[str, tuple[dict[str, Tensor], Callable[[Tensor], Tensor], str]]:
    """Return of every kind the file's contents, W -> W' by the formula (weight 0.7), and the module."""
    m = 0.7
    out: dict[str, tuple[dict[str, Tensor], Callable[[Tensor], Tensor], str]] = {}
    up, down, mid = a(32, 4), a(4, 32, seed=1), a(4, 4, 3, 3, seed=2)
    conv_down, conv_up = a(4, 32, 3, 3, seed=3), a(32, 4, 1, 1, seed=4)
    by_hand = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    tucker = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            by_hand[:, :, y, x] = conv_up[:, :, 0, 0] @ conv_down[:, :, y, x]
            tucker[:, :, y, x] = up @ mid[:, :, y, x] @ down
    out["locon"] = (
        {"lora_down.weight": conv_down, "lora_up.weight": conv_up, "alpha": torch.tensor(1.0)},
        lambda w: w + m / 4 * by_hand,
        STEM_CONV,
    )
    out["locon mid"] = (
        {
            "lora_down.weight": down[:, :, None, None],
            "lora_up.weight": up[:, :, None, None],
            "lora_mid.weight": mid,
        },
        lambda w: w + m * tucker,
        STEM_CONV,
    )
    out["squeezed"] = (
        {
            "lora_down.weight": down[:, :, None, None],
            "lora_up.weight": up[:, :, None, None],
            "alpha": torch.tensor(8.0),
        },
        lambda w: w + m * 2 * up @ down,
        STEM,
    )
    w1a, w1b, w2a, w2b = a(32, 4, seed=5), a(4, 32, seed=6), a(32, 4, seed=7), a(4, 32, seed=8)
    hada = {
        "hada_w1_a": w1a,
        "hada_w1_b": w1b,
        "hada_w2_a": w2a,
        "hada_w2_b": w2b,
        "alpha": torch.tensor(2.0),
    }
    out["loha"] = (hada, lambda w: w + m * 0.5 * (w1a @ w1b) * (w2a @ w2b), STEM)
    flat = {"hada_w1_b": a(4, 288, seed=9), "hada_w2_b": a(4, 288, seed=10)}
    out["loha conv"] = (
        hada | flat,
        lambda w: w + m * 0.5 * ((w1a @ flat["hada_w1_b"]) * (w2a @ flat["hada_w2_b"])).reshape(32, 32, 3, 3),
        STEM_CONV,
    )
    t1, t2 = a(4, 4, 3, 3, seed=11), a(4, 4, 3, 3, seed=12)
    both = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            both[:, :, y, x] = (w1a @ t1[:, :, y, x] @ w1b) * (w2a @ t2[:, :, y, x] @ w2b)
    out["loha tucker"] = (
        hada | {"hada_w1_a": w1a.mT, "hada_w2_a": w2a.mT, "hada_t1": t1, "hada_t2": t2},
        lambda w: w + m * 0.5 * both,
        STEM_CONV,
    )
    one, two = a(4, 8, seed=13), a(8, 4, seed=14)
    out["lokr full"] = (
        {"lokr_w1": one, "lokr_w2": two, "alpha": torch.tensor(3.0)},
        lambda w: w + m * kron(one, two),
        STEM,
    )
    k2a, k2b, k1a, k1b = a(8, 2, seed=15), a(2, 4, seed=16), a(4, 2, seed=17), a(2, 8, seed=18)
    out["lokr w2 factored"] = (
        {"lokr_w1": one, "lokr_w2_a": k2a, "lokr_w2_b": k2b, "alpha": torch.tensor(3.0)},
        lambda w: w + m * 1.5 * kron(one, k2a @ k2b),
        STEM,
    )
    out["lokr both factored"] = (
        {"lokr_w1_a": k1a, "lokr_w1_b": k1b, "lokr_w2_a": k2a, "lokr_w2_b": k2b, "alpha": torch.tensor(1.0)},
        lambda w: w + m * 0.5 * kron(k1a @ k1b, k2a @ k2b),
        STEM,
    )
    conv2 = a(8, 4, 3, 3, seed=19)
    whole = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    core = a(2, 2, 3, 3, seed=20)
    tucked = torch.zeros(32, 32, 3, 3, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            whole[:, :, y, x] = kron(one, conv2[:, :, y, x])
            tucked[:, :, y, x] = kron(one, k2a @ core[:, :, y, x] @ k2b)
    out["lokr conv"] = ({"lokr_w1": one, "lokr_w2": conv2}, lambda w: w + m * whole, STEM_CONV)
    out["lokr tucker"] = (
        {"lokr_w1": one, "lokr_w2_a": k2a.mT, "lokr_w2_b": k2b, "lokr_t2": core, "alpha": torch.tensor(2.0)},
        lambda w: w + m * tucked,
        STEM_CONV,
    )
    flat2 = a(2, 36, seed=21)
    spread = torch.stack(
        [kron(one, (k2a @ flat2).reshape(8, 4, 9)[:, :, i]) for i in range(9)], dim=-1
    ).reshape(32, 32, 3, 3)
    out["lokr conv factored"] = (
        {
            "lokr_w1": one,
            "lokr_w2_a": k2a,
            "lokr_w2_b": flat2.reshape(2, 4, 3, 3),
            "alpha": torch.tensor(2.0),
        },
        lambda w: w + m * spread,
        STEM_CONV,
    )
    out["full"] = ({"diff": a(32, 32, seed=22)}, lambda w: w + m * a(32, 32, seed=22), STEM)
    out["set"] = ({"set_weight": a(32, 32, seed=22)}, lambda w: 0.3 * w + m * a(32, 32, seed=22), STEM)
    out["scalar"] = (
        {"lora_down.weight": down, "lora_up.weight": up, "scalar": torch.tensor(0.25)},
        lambda w: w + m * 0.25 * up @ down,
        STEM,
    )
    ia3 = a(32, seed=23)
    out["ia3 in"] = ({"weight": ia3, "on_input": torch.tensor(True)}, lambda w: w * (1 + m * ia3), STEM)
    out["ia3 out"] = (
        {"weight": ia3, "on_input": torch.tensor(False)},
        lambda w: w * (1 + m * ia3[:, None]),
        STEM,
    )
    g = {"a1": a(4, 32, seed=24), "a2": a(32, 4, seed=25), "b1": a(4, 32, seed=26), "b2": a(32, 4, seed=27)}
    stored = {f"{key}.weight": value for key, value in g.items()} | {"alpha": torch.tensor(2.0)}
    out["glora old"] = (stored, lambda w: w + m * 0.5 * (g["b2"] @ g["b1"] + w @ g["a2"] @ g["a1"]), STEM)
    n = {"a1": a(32, 4, seed=24), "a2": a(4, 32, seed=25), "b1": a(32, 4, seed=26), "b2": a(4, 32, seed=27)}
    stored = {f"{key}.weight": value for key, value in n.items()} | {"alpha": torch.tensor(2.0)}
    out["glora new"] = (stored, lambda w: w + m * 0.5 * (n["b1"] @ n["b2"] + w @ n["a1"] @ n["a2"]), STEM)
    skew = a(4, 8, 8, seed=28)

    def rotate(w: Tensor, bound: float | None = None) -> Tensor:
        q = skew - skew.mT
        if bound is not None:
            q = q * min(1.0, bound * 32 / float(q.norm()))
        r = torch.linalg.solve(
            torch.eye(8, dtype=torch.float64) - q, torch.eye(8, dtype=torch.float64) + q
        )  # the factors commute
        turned = torch.cat([r[i].mT @ w[8 * i : 8 * i + 8].flatten(1) for i in range(4)]).reshape(w.shape)
        return w + m * (turned - w)

    out["oft"] = ({"oft_blocks": skew, "alpha": torch.tensor(0.0)}, rotate, STEM)
    out["coft"] = ({"oft_blocks": skew, "alpha": torch.tensor(0.001)}, lambda w: rotate(w, 0.001), STEM)
    out["oft conv"] = ({"oft_blocks": skew}, rotate, STEM_CONV)
    for name, (tensors, new, stem) in {
        key: out[key] for key in ("squeezed", "loha", "lokr both factored", "locon")
    }.items():
        rows, columns = a(32, seed=30).abs() + 1, a(32, seed=31).abs() + 1

        def dora(
            w: Tensor, new: Callable[[Tensor], Tensor] = new, axis: int = 0, scale: Tensor = rows
        ) -> Tensor:
            v = (new(w) - w) / m + w
            flat = v.transpose(0, axis).flatten(1)
            flat = scale[:, None] * flat / flat.norm(dim=1, keepdim=True)
            whole = flat.reshape(v.transpose(0, axis).shape).transpose(0, axis)
            return w + m * (whole - w)

        ones = (1,) * (2 if stem != STEM_CONV and name != "locon" else 4)
        out[f"dora rows, {name}"] = (tensors | {"dora_scale": rows.reshape(32, *ones[1:])}, dora, stem)
        out[f"dora columns, {name}"] = (
            tensors | {"dora_scale": columns.reshape(1, 32, *ones[2:])},
            lambda w, dora=dora, s=columns: dora(w, axis=1, scale=s),
            stem,
        )
    return out


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_formula(
    kind: str, tmp_path: Path, record_property: Record
) -> None:
    tensors, formula, stem = KINDS[kind]
    module = Q if stem == STEM else CONV
    model = Model()
    assert model.put((saved(tmp_path, {f"{stem}.{key}": value for key, value in tensors.items()}), 0.7)) == []
    weight = weight_of(model, module)
    found = only(model, f"unet:{module}.weight", formula(weight) - weight)
    record_property("adapter, against its written formula", found)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_changes_nothing_and_removal_is_exact(kind: str, tmp_path: Path) -> None:
    tensors, _, stem = KINDS[kind]
    path = saved(tmp_path, {f"{stem}.{key}": value for key, value in tensors.items()})
    model = Model(dtype=torch.float16)
    model.put((path, 0.0))
    assert model.changes() == {}
    model.put((path, 1.0))
    assert len(model.changes()) == 1
    model.adapted.clear()
    assert model.changes() == {}


def test_norms_and_biases(tmp_path: Path) -> None:
    norm = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1"
    tensors = {
        f"{norm}.w_norm": a(32),
        f"{norm}.b_norm": a(32, seed=1),
        f"{STEM_CONV}.diff": a(32, 32, 3, 3),
        f"{STEM_CONV}.diff_b": a(32),
    }
    model = Model()
    assert model.put((saved(tmp_path, tensors), 0.5)) == []
    changes = model.changes()
    place = "unet:input_blocks.1.1.transformer_blocks.0.norm1"
    expected = {
        f"{place}.weight": a(32),
        f"{place}.bias": a(32, seed=1),
        f"unet:{CONV}.weight": a(32, 32, 3, 3),
        f"unet:{CONV}.bias": a(32),
    }
    assert set(changes) == set(expected)
    assert all((changes[key] - 0.5 * expected[key]).abs().max() < CLOSE for key in expected)


def test_more_input_channels_than_the_adapter_knew(tmp_path: Path) -> None:
    model = Model(replace(ARCH1, unet=replace(SD1, in_channels=9)))
    path = saved(
        tmp_path,
        {
            f"{STEM_ENTRY}.lora_down.weight": a(4, 4, 3, 3),
            f"{STEM_ENTRY}.lora_up.weight": a(32, 4, 1, 1, seed=1),
        },
    )
    assert model.put((path, 1.0)) == []
    change = model.changes()[f"unet:{ENTRY}.weight"]
    product = (a(32, 4, seed=1) @ a(4, 4, 3, 3).flatten(1)).reshape(32, 4, 3, 3)
    assert (change[:, :4] - product).abs().max() < CLOSE and not change[:, 4:].any()


def test_several_at_once_in_any_order_and_one_taken_off(tmp_path: Path) -> None:
    first = saved(tmp_path, {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP})
    second = saved(
        tmp_path, {f"{STEM}.diff": a(32, 32), f"{STEM_CONV}.diff": a(32, 32, 3, 3)}, name="m.safetensors"
    )
    model = Model()
    model.put((first, 0.5), (second, 2.0))
    both = model.changes()
    assert (both[f"unet:{Q}.weight"] - (0.5 * UP @ DOWN + 2 * a(32, 32))).abs().max() < CLOSE
    model.put((second, 2.0), (first, 0.5))
    assert all((model.changes()[key] - both[key]).abs().max() < CLOSE for key in both)
    model.put((first, 0.5))
    only(model, f"unet:{Q}.weight", 0.5 * UP @ DOWN)
    model.adapted.clear()
    assert model.changes() == {}


def test_the_comparison_with_the_formula_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            lora_maths,
            "_along",
            lambda values, weight, axis: values.reshape(
                [-1 if d == 1 - axis else 1 for d in range(weight.ndim)]
            ),
        )
        with pytest.raises((AssertionError, RuntimeError)):
            test_every_kind_is_its_formula("dora rows, squeezed", tmp_path, lambda name, value: None)
