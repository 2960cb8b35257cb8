"""Configurations of Qwen2.5-VL and Qwen2-VL: any vintage of config.json in, frozen and checked objects out.

In: keyword arguments, a dict, or a folder with config.json. Read are the flat layout the checkpoints were
published in, the nested layout (`text_config`), and both spellings of the rotary fields (`rope_scaling`,
`rope_parameters`). Out: objects whose fields the model code reads, and config.json in the published layout.
Errors: every wrong value is a ValueError that names the field. Keys that no field is made for are kept in
`extra`, can be read as attributes, and are written back. This file imports no torch.

Example: `load_config("Qwen2.5-VL-3B-Instruct").hidden_size` is 2048, a field of its `text_config`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from qwenvl.config_base import (
    CONFIG_NAME,
    LAYER_TYPES,
    PLAIN_SECTION,
    Activation,
    Config,
    Natural,
    check_rope,
    expect,
    join_rope,
    plain_rope,
    read_config,
)


@dataclass(frozen=True, init=False)
class _TextConfig(Config):
    """The decoder of both families. Defaults are those documented for the classes, not a checkpoint's.

    num_key_value_heads: as many as num_attention_heads is multi-head, 1 multi-query, else grouped-query.
    max_window_layers: with use_sliding_window the FIRST so many layers see everything, the others
        sliding_window tokens; without it every layer sees everything. layer_types says it layer by layer.
    rope_scaling: None, or a dict with rope_type (default, linear, dynamic, yarn, longrope, llama3),
        mrope_section and the numbers of that type. "mrope" given as a type means default. What the numbers mean:
        model/rope_types.py.
    """

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: Natural = 0  # 0 becomes hidden_size / num_attention_heads
    hidden_act: Activation = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-05
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: float = 1000000.0
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: Natural = 80
    layer_types: tuple[str, ...] = ()  # nothing becomes what the three fields above say
    attention_dropout: float = 0.0
    rope_scaling: dict[str, Any] | None = None
    bos_token_id: Natural | None = 151643
    eos_token_id: Natural | tuple[Natural, ...] | None = 151645
    pad_token_id: Natural | None = None

    @property
    def mrope_section(self) -> tuple[int, int, int]:
        """How many of the head_dim / 2 frequencies turn with time, height and width."""
        time, height, width = (self.rope_scaling or {}).get("mrope_section", PLAIN_SECTION)
        return time, height, width

    @property
    def rope_type(self) -> str:
        """The kind of rotary scaling; "default" is none."""
        return (self.rope_scaling or {}).get("rope_type", "default")

    @property
    def context_length(self) -> int:
        """The largest number of positions that the rotary fields are made for: max_position_embeddings, or factor
        times the length before scaling where that is more."""
        scaling = self.rope_scaling or {}
        before = scaling.get("original_max_position_embeddings", self.max_position_embeddings)
        return max(self.max_position_embeddings, int(before * scaling.get("factor", 1)))

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary fields in the newer spelling: rope_scaling and rope_theta in one dict."""
        section = list(self.mrope_section)
        plain = {"rope_type": self.rope_type, "mrope_section": section, "rope_theta": self.rope_theta}
        return {**(self.rope_scaling or {}), **plain}

    def _read(self, values: dict[str, Any]) -> None:
        join_rope(values)
        if values.get("num_key_value_heads", 1) is None:
            values["num_key_value_heads"] = values.get("num_attention_heads", type(self).num_attention_heads)

    def _check(self) -> None:
        heads = self.num_attention_heads
        if not self.head_dim:
            wanted = f"a multiple of num_attention_heads={heads}, or head_dim given"
            expect(self.hidden_size % heads == 0, "hidden_size", self.hidden_size, wanted)
            self._set("head_dim", self.hidden_size // heads)
        if not self.layer_types:
            self._set("layer_types", self._layer_types())
        self._set("rope_scaling", plain_rope(self.rope_scaling, self.max_position_embeddings))
        divisor = f"a divisor of num_attention_heads={heads}"
        expect(heads % self.num_key_value_heads == 0, "num_key_value_heads", self.num_key_value_heads, divisor)
        expect(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number (the positions turn pairs)")
        expect(self.attention_dropout < 1, "attention_dropout", self.attention_dropout, "a number below 1")
        expect(self.rope_theta > 0, "rope_theta", self.rope_theta, "a number above 0")
        check_rope(self.rope_scaling or {}, self.head_dim // 2)
        layers, known = self.layer_types, set(self.layer_types) <= set(LAYER_TYPES)
        wanted = f"{self.num_hidden_layers} names, each one of {', '.join(LAYER_TYPES)}"
        expect(known and len(layers) == self.num_hidden_layers, "layer_types", layers, wanted)
        fits = LAYER_TYPES[1] not in layers or (self.use_sliding_window and self.sliding_window is not None)
        expect(fits, "layer_types", layers, "use_sliding_window=True and a sliding_window beside it")

    def _layer_types(self) -> tuple[str, ...]:
        windows = self.use_sliding_window and self.sliding_window is not None
        full = self.max_window_layers if windows else self.num_hidden_layers
        return tuple(LAYER_TYPES[layer >= full] for layer in range(self.num_hidden_layers))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """From the content of a config.json (of which it takes its part), or from that part."""
        return super().from_dict(_part_of(values, cls), **changes)

    def _values(self) -> dict[str, Any]:
        values = super()._values()
        for name in self._derived():
            del values[name]
        return values

    def _derived(self) -> list[str]:
        """The fields that need not be said, as they follow from the others."""
        plain_head = self.head_dim * self.num_attention_heads == self.hidden_size
        plain_layers = self.layer_types == self._layer_types()
        return ["head_dim"] * plain_head + ["layer_types"] * plain_layers

    def to_dict(self) -> dict[str, Any]:
        out = super().to_dict()
        for name in self._derived():
            del out[name]
        if self.rope_scaling is not None:
            kind = "mrope" if self.rope_type == "default" else self.rope_type
            rest = {key: value for key, value in self.rope_scaling.items() if key != "rope_type"}
            out["rope_scaling"] = copy.deepcopy({"type": kind, **rest})
        return out


class Qwen2_5_VLTextConfig(_TextConfig):
    __doc__ = _TextConfig.__doc__
    model_type = "qwen2_5_vl_text"


class Qwen2VLTextConfig(_TextConfig):
    __doc__ = _TextConfig.__doc__
    model_type = "qwen2_vl_text"


@dataclass(frozen=True, init=False)
class _VisionConfig(Config):
    """The vision tower. width, mlp_width, out_width, norm and gated_mlp are names that both families have."""

    depth: int = 32
    hidden_size: int = 3584
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    hidden_act: Activation = "silu"
    initializer_range: float = 0.02

    _aliases: ClassVar[dict[str, str]] = {**Config._aliases, "in_chans": "in_channels"}
    _out_field: ClassVar[str] = "hidden_size"
    _width_field: ClassVar[str] = "hidden_size"

    @property
    def width(self) -> int:
        """Width of the blocks."""
        return getattr(self, self._width_field)

    @property
    def out_width(self) -> int:
        """Width of what comes out of the merger: the text model's hidden_size."""
        return getattr(self, self._out_field)

    def _check_model_type(self, given: Any) -> None:
        family = self.model_type.removesuffix("_vision")  # which is what the published files give here
        super()._check_model_type(self.model_type if given == family else given)

    def _check(self) -> None:
        wanted = f"a multiple of 4 * num_heads = {4 * self.num_heads} (rows and columns turn pairs)"
        expect(self.width % (4 * self.num_heads) == 0, self._width_field, self.width, wanted)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """From the content of a config.json (of which it takes its part), or from that part."""
        return super().from_dict(_part_of(values, cls), **changes)

    def to_dict(self) -> dict[str, Any]:
        family = self.model_type.removesuffix("_vision")
        return {**super().to_dict(), "in_chans": self.in_channels, "model_type": family}


@dataclass(frozen=True, init=False)
class Qwen2_5_VLVisionConfig(_VisionConfig):
    """Tower of Qwen2.5-VL: RMSNorm, gated MLP, window attention but for the blocks of fullatt_block_indexes.

    hidden_size and tokens_per_second default to the documented class values; published files say 1280 and 2.
    window_size is in pixels. tokens_per_second: steps of the temporal position in one second of video.
    """

    intermediate_size: int = 3420
    tokens_per_second: float = 4
    window_size: int = 112
    out_hidden_size: int = 3584
    fullatt_block_indexes: tuple[Natural, ...] = (7, 15, 23, 31)

    model_type: ClassVar[str] = "qwen2_5_vl_vision"
    norm: ClassVar[str] = "rms"
    gated_mlp: ClassVar[bool] = True
    _out_field: ClassVar[str] = "out_hidden_size"

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size

    def _check(self) -> None:
        super()._check()
        unit = self.patch_size * self.spatial_merge_size
        wanted = f"a multiple of patch_size * spatial_merge_size = {unit}"
        expect(self.window_size % unit == 0, "window_size", self.window_size, wanted)
        wanted = f"block numbers from 0 to depth - 1 = {self.depth - 1}"
        good = all(index < self.depth for index in self.fullatt_block_indexes)
        expect(good, "fullatt_block_indexes", self.fullatt_block_indexes, wanted)


@dataclass(frozen=True, init=False)
class Qwen2VLVisionConfig(_VisionConfig):
    """Tower of Qwen2-VL: LayerNorm, plain MLP, full attention everywhere. hidden_size is what comes out."""

    hidden_act: Activation = "quick_gelu"
    embed_dim: int = 1280
    mlp_ratio: float = 4

    model_type: ClassVar[str] = "qwen2_vl_vision"
    norm: ClassVar[str] = "layer"
    gated_mlp: ClassVar[bool] = False
    window_size: ClassVar[None] = None
    tokens_per_second: ClassVar[None] = None
    _width_field: ClassVar[str] = "embed_dim"

    @property
    def mlp_width(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def fullatt_block_indexes(self) -> tuple[int, ...]:
        return tuple(range(self.depth))


@dataclass(frozen=True, init=False)
class _TopConfig(Config):
    """A whole model. Both documented signatures are taken: text_config and vision_config (objects or dicts),
    and text fields given flat, which win over text_config. Text fields are read flat too: cfg.hidden_size.

    Without vision_config, or without out_hidden_size (Qwen2-VL: hidden_size) in it, the tower's output is as
    wide as the text model. What else a vision_config leaves out takes the class default.
    """

    text_config: Any = None
    vision_config: Any = None
    image_token_id: Natural = 151655
    video_token_id: Natural = 151656
    vision_start_token_id: Natural = 151652
    vision_end_token_id: Natural = 151653
    tie_word_embeddings: bool = False
    architectures: tuple[str, ...] = ()

    _text_class: ClassVar[type[_TextConfig]]
    _vision_class: ClassVar[type[_VisionConfig]]

    def _read(self, values: dict[str, Any]) -> None:
        text = _part("text_config", self._text_class, values.pop("text_config", None))
        vision = _part("vision_config", self._vision_class, values.pop("vision_config", None))
        self._text_class._unalias(text)
        join_rope(text)
        join_rope(values)
        names = {item.name for item in fields(self._text_class)} - {"extra"}
        text.update({name: values.pop(name) for name in names & set(values)})
        for name in set(text) - names - {"model_type"}:
            value = text.pop(name)
            if value is not None:  # a key without a field lives on the top, where the flat layout writes it
                values.setdefault(name, value)
        values["text_config"] = self._text_class(**text)
        values["dtype"] = values["text_config"].dtype
        values["tie_word_embeddings"] = values["text_config"].tie_word_embeddings
        vision.setdefault(self._vision_class._out_field, values["text_config"].hidden_size)
        values["vision_config"] = self._vision_class(**vision)

    def _check(self) -> None:
        if not self.architectures:
            name = type(self).__name__.replace("Config", "ForConditionalGeneration")
            self._set("architectures", (name,))

    def __getattr__(self, name: str) -> Any:
        text = self.__dict__.get("text_config")
        if text is None or name in self.__dict__.get("extra", {}) or not hasattr(text, name):
            return super().__getattr__(name)
        return getattr(text, name)

    def replace(self, **changes: Any) -> Self:
        if "text_config" in changes:  # its dtype and tie_word_embeddings are wanted, not those of before
            self._unalias(changes)
            whole = {
                name: value for name, value in self._values().items() if name not in ("dtype", "tie_word_embeddings")
            }
            return type(self)(**{**whole, **changes})
        return super().replace(**changes)

    def to_dict(self) -> dict[str, Any]:
        parts = {"vision_config": self.vision_config.to_dict()}
        top = {name: value for name, value in super().to_dict().items() if name != "text_config"}
        return {**self.text_config.to_dict(), **top, **parts}


def _part(name: str, kind: type[Config], given: Any) -> dict[str, Any]:
    """Keywords for `kind` from what was given as text_config or vision_config."""
    if isinstance(given, kind):
        return given._values()
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    raise ValueError(f"{name}={given!r} is not valid: expected null, an object of keys, or {kind.__name__}")


def _part_of(values: Mapping[str, Any], kind: type[Config]) -> Mapping[str, Any]:
    """The text or vision part of `values`, when they are those of a whole model, as keywords for `kind`."""
    if "text_config" not in values and "vision_config" not in values:
        return values
    whole = config_from_dict(values)
    for part in (whole.text_config, whole.vision_config):
        if isinstance(part, kind):
            return part._values()
    raise ValueError(f"model_type={whole.model_type!r} has no part that {kind.__name__} describes")


class Qwen2_5_VLConfig(_TopConfig):
    __doc__ = _TopConfig.__doc__
    text_config: Qwen2_5_VLTextConfig
    vision_config: Qwen2_5_VLVisionConfig
    model_type = "qwen2_5_vl"
    _text_class = Qwen2_5_VLTextConfig
    _vision_class = Qwen2_5_VLVisionConfig


class Qwen2VLConfig(_TopConfig):
    __doc__ = _TopConfig.__doc__
    text_config: Qwen2VLTextConfig
    vision_config: Qwen2VLVisionConfig
    model_type = "qwen2_vl"
    _text_class = Qwen2VLTextConfig
    _vision_class = Qwen2VLVisionConfig


def config_from_dict(values: Mapping[str, Any]) -> Qwen2_5_VLConfig | Qwen2VLConfig:
    """The configuration that the content of a config.json describes, of either family, by its model_type."""
    if not isinstance(values, Mapping):
        raise ValueError(f"a configuration is an object of keys, not a {type(values).__name__}")
    for kind in (Qwen2_5_VLConfig, Qwen2VLConfig):
        if values.get("model_type") == kind.model_type:
            return kind.from_dict(values)
    found = values.get("model_type")
    raise ValueError(f"model_type={found!r} is not valid: expected qwen2_5_vl or qwen2_vl, the models run here")


def load_config(folder: str | Path) -> Qwen2_5_VLConfig | Qwen2VLConfig:
    """The configuration in `folder`/config.json. Every failure is a ValueError that names the file."""
    values = read_config(folder)
    try:
        return config_from_dict(values)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / CONFIG_NAME}: {error}") from error
