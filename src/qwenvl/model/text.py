"""The text model: Qwen2's decoder with M-RoPE, over packed tokens."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLTextConfig, Qwen2VLTextConfig
from qwenvl.kernels.rows import rotate_rows
from qwenvl.model.attention import Backend, Plan, attend, plan
from qwenvl.model.few_rows import FewRows
from qwenvl.model.layers import GatedMLP, Linear, Recompute, RMSNorm, add_norm
from qwenvl.model.rope_types import packed_rotation
from qwenvl.types import KVView, PackedBatch

TextConfig = Qwen2_5_VLTextConfig | Qwen2VLTextConfig


@dataclass
class Trace:
    """What a caller wants to see of the inside; a list that is None is not filled and costs nothing.

    hidden_states: the embeddings, what each layer but the last gives, and the last after the norm; each [T, D].
    attentions: per layer a list with the probabilities of every sequence, each [H, q_len, k_len].
    """

    hidden_states: list[Tensor] | None = None
    attentions: list[list[Tensor]] | None = None


class TextAttention(nn.Module):
    """Grouped-query attention; q, k and v with bias, o without."""

    def __init__(self, config: TextConfig, layer: int, backend: Backend) -> None:
        super().__init__()
        self._layer, self._head, self.backend = layer, config.head_dim, backend
        self.window = config.sliding_window if config.layer_types[layer] == "sliding_attention" else None
        heads, kv_heads = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = Linear(config.hidden_size, heads)
        self.k_proj = Linear(config.hidden_size, kv_heads)
        self.v_proj = Linear(config.hidden_size, kv_heads)
        self.o_proj = Linear(heads, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        layout: Plan,
        kv: KVView | None,
        weights: list[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """`weights`: a list to put the attention probabilities of each sequence into. `rows`: int64 [N], the tokens
        whose output is wanted (None = all)."""
        q, k, v = (f(x).unflatten(-1, (-1, self._head)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate_rows(q, *rotation), rotate_rows(k, *rotation)
        out = attend(
            q,
            k,
            v,
            layout,
            self.backend,
            causal=True,
            kv=kv,
            layer=self._layer,
            window=self.window,
            weights=weights,
        )
        out = out.flatten(1)
        return self.o_proj(out if rows is None else out.index_select(0, rows))


class TextLayer(nn.Module):
    def __init__(self, config: TextConfig, layer: int, backend: Backend) -> None:
        super().__init__()
        self.self_attn = TextAttention(config, layer, backend)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=False)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        layout: Plan,
        kv: KVView | None,
        weights: list[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """`rows`: only these tokens leave the layer (None = all); the keys of all are written."""
        attended = self.self_attn(self.input_layernorm(x), rotation, layout, kv, weights, rows)
        x = x if rows is None else x.index_select(0, rows)
        x, normed = add_norm(self.post_attention_layernorm, x, attended)
        return x + self.mlp(normed)


class TextModel(nn.Module):
    """A packed batch -> hidden states [T, D] after the last norm."""

    recompute: Recompute | None = None  # gradient checkpointing, when it is on

    def __init__(self, config: TextConfig, backend: Backend) -> None:
        super().__init__()
        if config.attention_dropout:
            warnings.warn(
                f"attention_dropout={config.attention_dropout} has no effect: attention drops nothing, in training "
                "neither",
                stacklevel=2,
            )
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TextLayer(config, i, backend) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._few_rows = FewRows()

    def hidden(self, batch: PackedBatch, rows: Tensor | None = None, trace: Trace | None = None) -> Tensor:
        """`rows`: int64 [N], only these leave the last norm (None = all T). `trace`: what to note on the way."""
        config, positions, seq, kv = self.config, batch.positions, batch.seq, batch.kv
        trace = trace or Trace()
        x = self._embed(batch)
        rotation = batch.rotation or packed_rotation(positions, config, seq.q_lens, batch.reach)
        layout: Plan = batch.layout or plan(seq, x.device, cached=kv is not None)
        if trace.hidden_states is None and trace.attentions is None:
            done = self._few_rows.run(self, x, rotation, layout, kv)
            if done is not None:
                return done if rows is None or len(rows) == len(done) else done.index_select(0, rows)
        narrow = rows is not None and len(rows) < len(x) and trace.hidden_states is None
        for layer in self.layers:
            last = rows if narrow and layer is self.layers[-1] else None  # the others' MLP would be for nothing
            if trace.hidden_states is not None:
                trace.hidden_states.append(x)
            weights: list[Tensor] | None = None
            if trace.attentions is not None:
                trace.attentions.append(weights := [])
            if self.recompute is not None and self.training:
                x = self.recompute(layer, x, rotation, layout, kv, weights, last)
            else:
                x = layer(x, rotation, layout, kv, weights, last)
        x = self.norm(x if rows is None or narrow else x.index_select(0, rows))
        if trace.hidden_states is not None:
            trace.hidden_states.append(x)
        return x

    def _embed(self, batch: PackedBatch) -> Tensor:
        """[T, D], vision tokens in their places."""
        embeds = self.embed_tokens(batch.token_ids) if batch.inputs_embeds is None else batch.inputs_embeds
        if batch.vision_embeds is None:
            return embeds
        assert batch.vision_index is not None
        return embeds.index_copy(0, batch.vision_index, batch.vision_embeds.to(embeds.dtype))


def init_weights(module: nn.Module, std: float) -> None:
    """Fresh random weights: normal with `std` for matrices, zero biases, norms at one."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv3d | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            bias = getattr(part, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)
        elif isinstance(part, nn.LayerNorm | RMSNorm):
            nn.init.ones_(part.weight)
