"""The text model: Qwen2's decoder with M-RoPE, over packed tokens."""

from __future__ import annotations

from torch import Tensor, nn

from qwenvl.config import Qwen2_5_VLTextConfig, Qwen2VLTextConfig
from qwenvl.model.attention import Backend, Plan, attend, plan
from qwenvl.model.layers import GatedMLP, RMSNorm
from qwenvl.model.rope import rotate, text_rotation
from qwenvl.types import KVView, SeqInfo

TextConfig = Qwen2_5_VLTextConfig | Qwen2VLTextConfig


class TextAttention(nn.Module):
    """Grouped-query attention; q, k and v with bias, o without."""

    def __init__(self, config: TextConfig, layer: int, backend: Backend) -> None:
        super().__init__()
        self._layer, self._head, self._backend = layer, config.head_dim, backend
        heads, kv_heads = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, heads)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], layout: Plan, kv: KVView | None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self._head)) for f in (self.q_proj, self.k_proj, self.v_proj))
        rotation = (rotation[0].to(q.dtype), rotation[1].to(q.dtype))
        q, k = rotate(q, rotation), rotate(k, rotation)
        return self.o_proj(attend(q, k, v, layout, self._backend, causal=True, kv=kv, layer=self._layer).flatten(1))


class TextLayer(nn.Module):
    def __init__(self, config: TextConfig, layer: int, backend: Backend) -> None:
        super().__init__()
        self.self_attn = TextAttention(config, layer, backend)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=False)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], layout: Plan, kv: KVView | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, layout, kv)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    """Embeddings [T, D] and positions [3, T] -> hidden states [T, D] after the last norm."""

    def __init__(self, config: TextConfig, backend: Backend) -> None:
        super().__init__()
        if config.use_sliding_window:
            raise ValueError("use_sliding_window=True is not supported yet: set it to False")
        kind = (config.rope_scaling or {}).get("rope_type", (config.rope_scaling or {}).get("type", "default"))
        if kind not in ("default", "mrope"):
            raise ValueError(f"rope_type {kind!r} is not supported yet: expected default (M-RoPE)")
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TextLayer(config, i, backend) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        seq: SeqInfo,
        kv: KVView | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """`rows`: int64 [N], only these leave the last norm (None = all)."""
        config = self.config
        rotation = text_rotation(positions, config.head_dim, config.rope_theta, config.mrope_section)
        layout = plan(seq, embeds.device, cached=kv is not None)
        x = embeds
        for layer in self.layers:
            x = layer(x, rotation, layout, kv)
        return self.norm(x if rows is None else x.index_select(0, rows))


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
