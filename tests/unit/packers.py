"""Writers of the layouts in which others publish quantized weights, from the layouts' definitions and a column at a
time, so that they share nothing with the readers: random integers or a rounded weight -> the tensors of a file.

Legend: N outputs, K inputs, G groups of a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from qwenvl.checkpoint.names import file_key

Tensors = dict[str, Tensor]
AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Values:
    """q [N, K], zeros [N, G] whole numbers of `bits`, scales [N, G] in a file's dtype; groups [K]: of every input."""

    bits: int
    q: np.ndarray
    zeros: np.ndarray
    scales: Tensor
    groups: np.ndarray

    def weight(self) -> Tensor:
        """float32 [N, K], by the definition, through float64."""
        scales = self.scales.double().numpy()[:, self.groups]
        exact = scales * (self.q.astype(np.float64) - self.zeros[:, self.groups])
        return torch.from_numpy(exact).float()


def natural(k: int, group: int) -> np.ndarray:
    return np.arange(k) // (k if group == -1 else group)


def shuffled(k: int, group: int, seed: int = 0) -> np.ndarray:
    """The groups of inputs under act-order: as many inputs each, mixed."""
    return np.random.default_rng(seed).permutation(natural(k, group))


def random_values(
    n: int, k: int, bits: int, groups: np.ndarray, symmetric: bool = False, dtype: torch.dtype = torch.float16
) -> Values:
    """Every integer and every zero that there is, 0 and the largest included."""
    draw = np.random.default_rng([n, k, bits])
    g, most = int(groups.max()) + 1, 2**bits - 1
    zeros = np.full((n, g), 2 ** (bits - 1)) if symmetric else draw.integers(0, most + 1, (n, g))
    scales = torch.from_numpy(draw.uniform(1e-3, 2e-2, (n, g))).to(dtype)
    return Values(bits, draw.integers(0, most + 1, (n, k)), zeros, scales, groups)


def rounded(weight: Tensor, bits: int, groups: np.ndarray, symmetric: bool, dtype: torch.dtype) -> Values:
    """A weight [N, K] rounded to the nearest integers of a group's range."""
    w, most = weight.detach().double().numpy(), 2**bits - 1
    g = int(groups.max()) + 1
    low = np.stack([np.minimum(w[:, groups == i].min(1), 0) for i in range(g)], 1)
    high = np.stack([np.maximum(w[:, groups == i].max(1), 0) for i in range(g)], 1)
    span = 2 * np.maximum(-low, high) if symmetric else high - low
    scales = torch.from_numpy(np.maximum(span / most, 1e-5)).to(dtype)
    s = scales.double().numpy()
    zeros = np.full((len(w), g), 2 ** (bits - 1)) if symmetric else np.rint(-low / s).clip(0, most).astype(np.int64)
    q = np.rint(w / s[:, groups] + zeros[:, groups]).clip(0, most).astype(np.int64)
    return Values(bits, q, zeros, scales, groups)


def words(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Whole numbers [R, C] -> int32 [R, ceil(C * bits / 32)]: place i of a word, from its lowest bits, has value
    order[i] of those that belong to it."""
    each = 32 // bits
    out = np.zeros((len(values), -(-values.shape[1] // each)), np.uint32)
    for column in range(values.shape[1]):
        place = column % each if order is None else order.index(column % each)
        out[:, column // each] |= (values[:, column] << (bits * place)).astype(np.uint32)
    return torch.from_numpy(out.view(np.int32))


def awq_gemm(v: Values) -> Tensors:
    qzeros = words(v.zeros.T, 4, AWQ_NIBBLES)
    return {"qweight": words(v.q.T, 4, AWQ_NIBBLES), "qzeros": qzeros, "scales": v.scales.t().contiguous()}


def awq_gemv(v: Values) -> Tensors:
    n, g = v.zeros.shape
    group = int((v.groups == 0).sum())
    width = -(-g // 8)
    width += -width % {64: 2, 32: 4}.get(group, 1)
    zeros, scales = np.zeros((n, width * 8), np.int64), torch.zeros(n, width * 8, dtype=v.scales.dtype)
    zeros[:, :g], scales[:, :g] = v.zeros, v.scales
    return {"qweight": words(v.q, 4), "qzeros": words(zeros, 4), "scales": scales}


def gptq(v: Values, less_one: bool = True, borrows: bool = False) -> Tensors:
    """borrows: the one is taken off whole words."""
    qzeros = words(((v.zeros - 1) % 2**v.bits if less_one and not borrows else v.zeros).T, v.bits)
    if less_one and borrows:
        ones = sum(1 << (v.bits * place) for place in range(32 // v.bits))
        qzeros = torch.from_numpy((qzeros.numpy().view(np.uint32) - np.uint32(ones)).view(np.int32))
    qweight = words(v.q, v.bits).t().contiguous()  # words run along the inputs, and lie beside those of other outputs
    g_idx = torch.from_numpy(v.groups.astype(np.int32))
    return {"qweight": qweight, "qzeros": qzeros, "scales": v.scales.t().contiguous(), "g_idx": g_idx}


def packed_quantized(v: Values, symmetric: bool, ordered: bool = False) -> Tensors:
    out = {"weight_packed": words(v.q, v.bits), "weight_scale": v.scales, "weight_shape": torch.tensor(v.q.shape)}
    if not symmetric:
        out["weight_zero_point"] = words(v.zeros.T, v.bits).t().contiguous()
    if ordered:
        out["weight_g_idx"] = torch.from_numpy(v.groups.astype(np.int32))
    return out


def int_quantized(v: Values, symmetric: bool) -> Tensors:
    half = 2 ** (v.bits - 1)
    out = {"weight": torch.from_numpy((v.q - half).astype(np.int8)), "weight_scale": v.scales}
    if not symmetric:
        out["weight_zero_point"] = torch.from_numpy((v.zeros - half).astype(np.int8))
    return out


@dataclass(frozen=True)
class Layout:
    """A way to publish a model: quantization_config, and its linears' tensors."""

    settings: dict[str, Any]
    bits: int
    group: int
    symmetric: bool
    write: Callable[[Values], Tensors]
    ordered: bool = False
    dtype: torch.dtype = torch.float16


def compressed_settings(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", **weights}, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:visual.*"],
    }


def layouts(group: int = 32) -> dict[str, Layout]:
    """One of every kind that official and popular checkpoints have."""
    awq = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    awq["modules_to_not_convert"] = ["visual"]
    old = {"quant_method": "gptq", "damp_percent": 0.1, "dataset": None, "group_size": group, "true_sequential": True}
    four = {"num_bits": 4, "strategy": "group", "group_size": group}
    eight = {"num_bits": 8, "strategy": "channel", "group_size": None, "symmetric": True}
    return {
        "awq": Layout({**awq, "version": "gemm"}, 4, group, False, awq_gemm),
        "awq-gemv": Layout({**awq, "version": "gemv"}, 4, group, False, awq_gemv),
        "gptq-int4": Layout({**old, "bits": 4, "desc_act": False, "sym": True}, 4, group, True, gptq),
        "gptq-int8": Layout({**old, "bits": 8, "desc_act": False, "sym": True}, 8, group, True, gptq),
        "gptq-act-order": Layout(
            {**old, "bits": 4, "desc_act": True, "sym": False}, 4, group, False, gptq, ordered=True
        ),
        "gptq-int8-act-order": Layout(
            {**old, "bits": 8, "desc_act": True, "sym": False}, 8, group, False, gptq, ordered=True
        ),
        "gptq-row": Layout(
            {**old, "bits": 4, "group_size": -1, "desc_act": False, "sym": False}, 4, -1, False, gptq
        ),
        "gptq-v2": Layout(
            {**old, "bits": 4, "desc_act": False, "sym": False, "checkpoint_format": "gptq_v2"},
            4, group, False, lambda v: gptq(v, less_one=False),
        ),
        "w4a16": Layout(
            compressed_settings("pack-quantized", **four, symmetric=True),
            4, group, True, lambda v: packed_quantized(v, True), dtype=torch.bfloat16,
        ),
        "w4a16-asymmetric": Layout(
            compressed_settings("pack-quantized", **four, symmetric=False),
            4, group, False, lambda v: packed_quantized(v, False), dtype=torch.bfloat16,
        ),
        "w4a16-act-order": Layout(
            compressed_settings("pack-quantized", **four, symmetric=True, actorder="group"),
            4, group, True, lambda v: packed_quantized(v, True, ordered=True), ordered=True,
        ),
        "w8a16": Layout(
            compressed_settings("pack-quantized", **eight),
            8, -1, True, lambda v: packed_quantized(v, True), dtype=torch.bfloat16,
        ),
        "w8a8": Layout(
            compressed_settings("int-quantized", **eight),
            8, -1, True, lambda v: int_quantized(v, True), dtype=torch.bfloat16,
        ),
    }  # fmt: skip


def is_text_linear(name: str) -> bool:
    return ".language_model.layers." in name and name.endswith("_proj.weight")


def save_published(
    model: Any,
    folder: Path,
    layout: Layout,
    chosen: Callable[[str], bool] = is_text_linear,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """Write `model` as a checkpoint of `layout`, the weights of `chosen` in integers, everything else in `dtype`.
    Returned: the state dict that a reader should end up with, in float32."""
    tensors, expected = {}, {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        key = file_key(name, "original")
        if not chosen(name):
            tensors[key], expected[name] = tensor.to(dtype), tensor.to(dtype).float()
            continue
        k = tensor.shape[1]
        groups = shuffled(k, layout.group, seed=len(expected)) if layout.ordered else natural(k, layout.group)
        values = rounded(tensor, layout.bits, groups, layout.symmetric, layout.dtype)
        expected[name] = values.weight()
        for leaf, part in layout.write(values).items():
            tensors[f"{key.removesuffix('weight')}{leaf}"] = part.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    model.config.replace(dtype=dtype).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": layout.settings}), "utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return expected


def with_group(layout: Layout, group: int) -> Layout:
    return replace(layout, group=group, settings={**layout.settings, "group_size": group})
