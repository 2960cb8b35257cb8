"""Packing with an eye on what comes in: errors of rounding are made up for by the weights that are not rounded yet.

A linear's error is not how far its weights are off, but its outputs. What the outputs are off by depends on the inputs'
second moments, x.T @ x over the tokens of sample pictures and texts. Columns of the weight are rounded one after the
other, and each error is passed on to the columns behind it in the way that changes the outputs least (GPTQ: Frantar et
al. 2022, arXiv:2210.17323; after OBS, Hassibi & Stork 1992). The ranges of the groups are chosen when their turn comes,
and count each column by what its error will cost (`compensate`).

The text model is walked layer by layer (`packed_layers`): all samples go through a layer, its moments are taken, it is
packed, and its moments are dropped. So what it needs beside the model is the hidden states of all samples and the
moments of one layer. Inputs wider than SPAN are taken in pieces: errors are passed on within a piece only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qwenvl.kernels.linear import linear
from qwenvl.kernels.native import library
from qwenvl.kernels.quantized import PackedWeight
from qwenvl.kernels.rounding import choose, counts_of, exponent_of
from qwenvl.model.attention import plan
from qwenvl.model.rope_types import packed_rotation
from qwenvl.quantization.linear import swap
from qwenvl.quantization.schemes import Scheme
from qwenvl.types import PackedBatch

if TYPE_CHECKING:
    from qwenvl.model.base import PreTrained

SPAN = 2048  # inputs whose moments are taken together: 16 MB, and Cholesky's third power stays a second
DAMPING = 0.01  # of the mean moment, added to each input's: few samples say little about some directions
ROWS = 8192  # outputs that are rounded at a time: what that needs stays small for a head of 150,000
HEAD_NAME = "lm_head"
_SAME_INPUT = {
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}


class Moments:
    """Sums of x.T @ x for inputs x [T, K]: one float32 [<= SPAN, <= SPAN] for each span of inputs. rows: T in all."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self.sums = [torch.zeros(size, size) for size in _spans(width)]

    def add(self, x: Tensor) -> None:
        """Inputs [..., K] of any floating dtype."""
        rows = x.detach().reshape(-1, x.shape[-1])
        if library() is None or rows.dtype != torch.bfloat16:
            rows = rows.float()  # only the native product keeps the sums of bfloat16 in float32
        self.rows += len(rows)
        at = 0
        for total in self.sums:
            columns = rows[:, at : at + len(total)].T.contiguous()
            total += linear(columns, columns, None, torch.float32)
            at += len(total)


def compensate(weight: Tensor, moments: Moments, scheme: Scheme) -> PackedWeight:
    """weight [N, K] of any floating dtype, packed for inputs with these moments.

    ValueError for values that are not finite.
    """
    N, K = weight.shape
    largest = max(abs(float(end)) for end in weight.detach().aminmax())
    if not torch.isfinite(torch.tensor(largest)):
        raise ValueError("the weight has values that are not finite: load it again, or leave it in its own dtype")
    exponent, groups, start = exponent_of(largest), -(-K // scheme.group), 0
    q = torch.zeros(N, K, dtype=torch.uint8)
    scales, zeros = (torch.zeros(N, groups, dtype=torch.float16) for _ in range(2))
    for total in moments.sums:
        stop, factor = start + len(total), _factor(total / max(moments.rows, 1))
        span = slice(start // scheme.group, -(-stop // scheme.group))
        for first in range(0, N, ROWS):
            rows = slice(first, first + ROWS)
            part = torch.ldexp(weight[rows, start:stop].detach().float(), torch.tensor(-exponent))
            q[rows, start:stop], scales[rows, span], zeros[rows, span] = _rounded(part.T.contiguous(), factor, scheme)
        start = stop
    own = zeros if scheme.kind == "int4" else None
    packed = PackedWeight.from_values(q, scales, own, kind=scheme.kind, group=scheme.group)
    return replace(packed, exponent=exponent)


def _spans(width: int) -> list[int]:
    """SPAN and what is left."""
    return [min(SPAN, width - at) for at in range(0, width, SPAN)]


def _factor(moments: Tensor) -> Tensor:
    """The upper triangle U with U.T @ U = the inverse of the damped moments [K, K]; float32. With the order of the
    inputs turned round, U is the inverse of a lower Cholesky factor, so that the inverse itself is not needed."""
    exact = moments.double()
    mean = float(exact.diagonal().mean())
    damping = DAMPING * mean if mean > 0 else 1.0
    while True:
        damped = exact.clone()
        damped.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            eye = torch.eye(len(exact), dtype=exact.dtype)
            return torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1).float()
        damping *= 10


def _rounded(w: Tensor, factor: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor]:
    """w float32 [K, N], changed in place -> q uint8 [N, K], scales and zeros float16 [N, groups]."""
    K, N = w.shape
    bits, group = (8 if scheme.kind == "int8" else 4), scheme.group
    q, scales, zeros = torch.empty(K, N, dtype=torch.uint8), [], []
    cost = factor.diagonal().square().reciprocal()
    for start in range(0, K, group):
        stop = min(start + group, K)
        counts = counts_of(cost[start:stop], stop - start, group)
        _, scale, zero = choose(w[start:stop].T.contiguous(), bits, group, 0, counts, True)
        scale, zero = scale[:, 0].float(), (torch.full((N,), 128.0) if zero is None else zero[:, 0].float())
        inverse = torch.where(scale != 0, 1 / scale, 0)
        errors = torch.empty(stop - start, N)
        for k in range(start, stop):
            found = (w[k] * inverse + zero).round_().clamp_(0, 2**bits - 1)
            q[k] = found
            error = (w[k] - (found - zero) * scale) / factor[k, k]
            w[k + 1 : stop] -= factor[k, k + 1 : stop, None] * error
            errors[k - start] = error
        if stop < K:
            w[stop:] -= factor[start:stop, stop:].T @ errors
        scales.append(scale.half())
        zeros.append(zero.half())
    return q.T, torch.stack(scales, 1), torch.stack(zeros, 1)


@dataclass(frozen=True)
class _Sample:
    """A sample on its way through the layers. x: hidden states [T, D]."""

    batch: PackedBatch
    x: Tensor
    rotation: tuple[Tensor, Tensor]
    layout: Any


@torch.no_grad()
def packed_layers(
    model: PreTrained,
    batches: Sequence[PackedBatch],
    schemes: Mapping[str, Scheme],
    on_layer: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[str, PackedWeight]]:
    """The linears of the text layers, then the head, as `schemes` (module of the whole model -> scheme) has them.

    batches: samples, prompts with their answers, without a cache and with their vision embeddings; the more rows they
    have, the better the moments. Each layer sees what the packed layers before it give. The model is changed while this
    runs: its layers are packed one after the other. on_layer(layers done, all). ValueError without samples, and for
    groups that SPAN does not divide into.
    """
    if not batches:
        raise ValueError("there is nothing to calibrate with: give at least one sample")
    if odd := sorted({scheme.group for scheme in schemes.values() if SPAN % scheme.group}):
        raise ValueError(f"groups of {odd[0]} cannot be calibrated: expected a divisor of {SPAN}, such as 32 or 64")
    samples, text = [_sample(model, batch) for batch in batches], model.text
    prefix = next(name for name, part in model.named_modules() if part is text)
    for index, layer in enumerate(text.layers):
        beginning = f"{prefix}.layers.{index}." if prefix else f"layers.{index}."
        wanted = {
            name: schemes[model.weights_prefix + beginning + name]
            for name, part in layer.named_modules()
            if isinstance(part, nn.Linear) and model.weights_prefix + beginning + name in schemes
        }
        with _watched(layer, wanted) as moments:
            outputs = _through(layer, samples)
        for name, scheme in wanted.items():
            linear_, seen = layer.get_submodule(name), moments[_SAME_INPUT.get(name, name)]
            assert isinstance(linear_, nn.Linear)
            packed = compensate(linear_.weight, seen, scheme)
            swap(model, beginning + name, packed, model.dtype)
            yield model.weights_prefix + beginning + name, packed
        moments.clear()
        outputs = _through(layer, samples) if wanted else outputs
        samples = [replace(sample, x=x) for sample, x in zip(samples, outputs, strict=True)]
        if on_layer is not None:
            on_layer(index + 1, len(text.layers))
    if HEAD_NAME in schemes:
        yield HEAD_NAME, compensate(_head(model), _at_head(text, samples), schemes[HEAD_NAME])


def _head(model: PreTrained) -> Tensor:
    head = model.get_output_embeddings()
    assert head is not None, "schemes have a head"
    return head.weight


def _at_head(text: Any, samples: Sequence[_Sample]) -> Moments:
    """What comes into the head, where somebody asks for logits."""
    moments = Moments(samples[0].x.shape[1])
    for sample in samples:
        rows = sample.batch.logits_index
        moments.add(text.norm(sample.x if rows is None else sample.x.index_select(0, rows)))
    return moments


def _sample(model: PreTrained, batch: PackedBatch) -> _Sample:
    text = model.text
    rotation = batch.rotation or packed_rotation(batch.positions, text.config, batch.seq.q_lens, batch.reach)
    return _Sample(batch, text._embed(batch), rotation, plan(batch.seq, batch.positions.device, cached=False))


def _through(layer: nn.Module, samples: Sequence[_Sample]) -> list[Tensor]:
    return [layer(sample.x, sample.rotation, sample.layout, None) for sample in samples]


@contextmanager
def _watched(layer: nn.Module, names: Mapping[str, Scheme]) -> Iterator[dict[str, Moments]]:
    """The moments of what comes into these linears while this lasts; those that share an input share its moments."""
    moments: dict[str, Moments] = {}
    hooks = []
    for name in {_SAME_INPUT.get(name, name) for name in names}:
        part = layer.get_submodule(name)
        moments[name] = Moments(int(part.in_features))  # type: ignore[arg-type]
        hooks.append(part.register_forward_pre_hook(_adder(moments[name])))
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


def _adder(moments: Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moments.add(inputs[0])

    return add
