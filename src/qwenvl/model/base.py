"""What every documented model class can do beside its forward(): load, save, resize, count, checkpoint gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qwenvl.model.layers import Recompute
from qwenvl.model.text import TextModel
from qwenvl.model.vision import VisionTower

CHECKPOINT_OPTIONS = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")
SPREAD = 1e-9  # variance of new embedding rows, in units of that of the old ones, with mean_resizing


class PreTrained(nn.Module):
    """Base of the documented classes.

    config: the configuration the model was built from. quantization: what `quantize` did to its weights, or None.
    hf_device_map: module -> place, as it was loaded; main_device: where inputs go, if the model lies on several.
    weights_prefix: where this class's tensors lie among those of the whole model ("" is the whole,
    "model.language_model." the text model).
    """

    config: Any
    generation_config: Any = None
    quantization: Any = None
    config_class: ClassVar[type]
    weights_prefix: ClassVar[str] = ""
    hf_device_map: dict[str, Any] | None = None
    main_device: torch.device | None = None

    def _take_config(self, config: Any) -> None:
        if not isinstance(config, self.config_class):
            raise ValueError(
                f"{type(self).__name__} is built from a {self.config_class.__name__}, not from a "
                f"{type(config).__name__}"
            )
        self.config = config

    @property
    def text(self) -> TextModel:
        """The decoder, wherever it sits."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        return self.text.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.main_device or self.text.norm.weight.device

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> Self:
        """The model of a folder or hub id with its weights; options as load_pretrained takes them."""
        from qwenvl.checkpoint.pretrained import load_pretrained

        return load_pretrained(cls, model, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write config and safetensors into `folder`; options as checkpoint.save.save_pretrained takes them."""
        from qwenvl.checkpoint.save import save_pretrained

        save_pretrained(self, folder, **options)

    def tie_weights(self) -> None:
        """Share the embedding with the head where the config says so; nothing to do without a head."""

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights hold; a tied head counts once. exclude_embeddings leaves out the token
        embedding."""
        table = self.text.embed_tokens.weight if exclude_embeddings else None
        packed = 0 if only_trainable else sum(getattr(part, "packed_numbers", 0) for part in self.modules())
        return packed + sum(
            p.numel() for p in self.parameters() if p is not table and (p.requires_grad or not only_trainable)
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.text.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding; a tied head follows. resize_token_embeddings() also adapts the config."""
        self.text.embed_tokens = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head; None where there is none."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head. ValueError for a model without one."""
        raise ValueError(f"{type(self).__name__} has no output embeddings to replace")

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Give embedding and head new_num_tokens rows (None: as many as now), rounded up to pad_to_multiple_of.

        Rows that stay keep their values. New ones: near the mean of the old ones with mean_resizing, else normal with
        the config's initializer_range. config.vocab_size follows. Returns the embedding.
        """
        old = self.text.embed_tokens
        wanted = old.num_embeddings if new_num_tokens is None else int(new_num_tokens)
        if wanted < 1:
            raise ValueError(f"new_num_tokens={new_num_tokens!r} is not valid: expected 1 or more")
        if pad_to_multiple_of is not None:
            if not isinstance(pad_to_multiple_of, int) or pad_to_multiple_of < 1:
                raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of!r} is not valid: expected 1 or more")
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted == old.num_embeddings:
            return old
        std = self.text.config.initializer_range
        table = nn.Embedding(wanted, old.embedding_dim, device="meta")
        table.weight = _resized(old.weight, wanted, std, mean_resizing)
        head = self.get_output_embeddings()
        if head is not None and head.weight is not old.weight:
            head.weight = _resized(head.weight, wanted, std, mean_resizing)
        if head is not None:
            head.out_features = wanted
        self.set_input_embeddings(table)
        self._set_vocab_size(wanted)
        return table

    def _set_vocab_size(self, size: int) -> None:
        for part in self.modules():
            if isinstance(part, PreTrained):
                part.config = part.config.replace(vocab_size=size)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """In training, compute the activations of every block again in the backward pass in place of keeping them:
        less memory, about a third more time, the same gradients.

        gradient_checkpointing_kwargs: options of torch.utils.checkpoint.checkpoint; use_reentrant is False if not set.
        """
        options = dict(gradient_checkpointing_kwargs or {})
        unknown = [name for name in options if name not in CHECKPOINT_OPTIONS]
        if unknown:
            raise ValueError(
                f"gradient_checkpointing_kwargs has {', '.join(unknown)}: expected some of "
                f"{', '.join(CHECKPOINT_OPTIONS)}"
            )
        self._set_recompute(Recompute(options))

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._set_recompute(None)

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.text.recompute is not None

    def _set_recompute(self, value: Recompute | None) -> None:
        for part in self.modules():
            if isinstance(part, TextModel | VisionTower):
                part.recompute = value

    def enable_input_require_grads(self) -> None:
        """Make embeddings require gradients even when their table is frozen: adapters behind reentrant gradient
        checkpointing need it."""
        self.disable_input_require_grads()
        self._input_hook = self.text.embed_tokens.register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo enable_input_require_grads()."""
        hook = self.__dict__.pop("_input_hook", None)
        if hook is not None:
            hook.remove()

    def prune_heads(self, heads_to_prune: dict[int, list[int]]) -> None:
        """Not available: NotImplementedError. Query heads share key heads in groups, which have to stay equal."""
        raise NotImplementedError(
            "prune_heads is not available for these models: query heads share their keys in equal groups "
            "(num_attention_heads / num_key_value_heads), which pruning single heads would break"
        )


def _require_grad(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.requires_grad_(True)


@torch.no_grad()
def _resized(weight: Tensor, rows: int, std: float, near_mean: bool) -> nn.Parameter:
    """A copy of weight [n, D] with `rows` rows."""
    old = weight.shape[0]
    out = weight.new_empty(rows, weight.shape[1])
    out[: min(old, rows)] = weight[:rows]
    if rows > old and near_mean:
        mean = weight.float().mean(0)
        # A random mix of the centred old rows has their covariance.
        mix = torch.randn(rows - old, old, device=weight.device) @ (weight.float() - mean)
        out[old:] = mean + mix * (SPREAD / old) ** 0.5
    elif rows > old:
        out[old:].normal_(std=std)
    return nn.Parameter(out, weight.requires_grad)
