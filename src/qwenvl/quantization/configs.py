"""The quantization_config of the documents: TorchAoConfig and BitsAndBytesConfig -> QuantizeOptions.

The classes here have the documented names and arguments and need no other package; objects of transformers and of
torchao are read by their class names and attributes, and so are mappings. What such a setting means is done by the
kernels of this package, which choose their own integers and ranges:

    TorchAoConfig("int4_weight_only", group_size=128)   int4 in groups of 128
    BitsAndBytesConfig(load_in_4bit=True)               quantize="int4"

A setting that changes nothing here is accepted with the values for which that is true; any other is a ValueError that
names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

from qwenvl.quantization.schemes import WORDS, QuantizeOptions, Scheme

_GROUP = 128  # torchao's default, and that of int8 here
_INT4_GROUPS = (32, 64, 128, 256)
_TORCHAO = {
    "int4_weight_only": "int4",
    "int8_weight_only": "int8",
    "int8_dynamic_activation_int8_weight": "int8",
    "Int4WeightOnlyConfig": "int4",
    "Int8WeightOnlyConfig": "int8",
    "Int8DynamicActivationInt8WeightConfig": "int8",
}
# How torchao's own kernels lay integers out in memory or are compiled: no weight depends on it.
_LAYOUT = ("layout", "int4_packing_format", "packing_format", "inner_k_tiles", "int4_tile_packed_ntile")
_UNSEEN = ("set_inductor_config", "version")
# Other settings, with the values that ask for nothing else than what is done here; None and False never do.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_hqq": (),
    "preserve_zero": (),
    "zero_point_domain": ("none", "float"),
    "int4_choose_qparams_algorithm": ("tinygemm",),
    "act_mapping_type": ("symmetric",),
    "weight_only_decode": (),
    "include_input_output_embeddings": (),
    "untie_embedding_weights": (),
    "llm_int8_threshold": (6.0, 0.0),  # inputs beyond it in 16 bits: every group has a scale of its own here
    "llm_int8_enable_fp32_cpu_offload": (),
    "llm_int8_has_fp16_weight": (),
    "bnb_4bit_compute_dtype": ("float32",),  # the default, which stands for the model's dtype here
    "bnb_4bit_quant_type": ("fp4",),  # the default; 4 bits are evenly spaced here
    "bnb_4bit_use_double_quant": (),
    "bnb_4bit_quant_storage": ("uint8",),
}
_BITS = {"load_in_8bit": "int8", "load_in_4bit": "int4"}


class TorchAoConfig:
    """quant_type: "int4_weight_only" (with group_size 32, 64, 128 or 256; the default is 128), "int8_weight_only" or
    "int8_dynamic_activation_int8_weight", or a configuration object of torchao that means one of these.

    As there, every linear of the text model and of the tower is packed and the head is left as it is, unless
    modules_to_not_convert is given: then the head is packed too, and the modules whose names contain one of those are
    not ("visual", "lm_head", "layers.0.mlp"). Linears of the tower whose inputs do not fill whole groups of int4 stay
    as they are, also as there. int8 has a scale for 128 inputs of an output where torchao has one for all of them.
    """

    quant_method = "torchao"

    def __init__(
        self,
        quant_type: Any,
        modules_to_not_convert: Sequence[str] | None = None,
        include_input_output_embeddings: bool = False,
        untie_embedding_weights: bool = False,
        **quant_type_kwargs: Any,
    ) -> None:
        self.quant_type, self.modules_to_not_convert = quant_type, modules_to_not_convert
        self.include_input_output_embeddings = include_input_output_embeddings
        self.untie_embedding_weights = untie_embedding_weights
        self.quant_type_kwargs = quant_type_kwargs
        options_of_config(self)

    def __repr__(self) -> str:
        return f"TorchAoConfig({self.quant_type!r}, {self.modules_to_not_convert!r}, **{self.quant_type_kwargs!r})"


class BitsAndBytesConfig:
    """load_in_8bit or load_in_4bit mean the words "int8" and "int4" of quantize=, in which the head is packed too;
    llm_int8_skip_modules: modules whose names contain one of these are left as they are, with both."""

    quant_method = "bitsandbytes"

    def __init__(
        self,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: Sequence[str] | None = None,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False,
        bnb_4bit_compute_dtype: Any = None,
        bnb_4bit_quant_type: str = "fp4",
        bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: Any = None,
    ) -> None:
        self.load_in_8bit, self.load_in_4bit = load_in_8bit, load_in_4bit
        self.llm_int8_threshold, self.llm_int8_skip_modules = llm_int8_threshold, llm_int8_skip_modules
        self.llm_int8_enable_fp32_cpu_offload = llm_int8_enable_fp32_cpu_offload
        self.llm_int8_has_fp16_weight = llm_int8_has_fp16_weight
        self.bnb_4bit_compute_dtype, self.bnb_4bit_quant_type = bnb_4bit_compute_dtype, bnb_4bit_quant_type
        self.bnb_4bit_use_double_quant = bnb_4bit_use_double_quant
        self.bnb_4bit_quant_storage = bnb_4bit_quant_storage
        options_of_config(self)

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value)
        return f"BitsAndBytesConfig({said})"


def options_of_config(config: Any) -> QuantizeOptions:
    """What a quantization_config of the documents asks for: an object of the classes above, of their namesakes in
    transformers, or a mapping with the same keys. ValueError for anything else, and for a setting that is not built."""
    settings = _settings(config)
    method = settings.pop("quant_method", None)
    method = getattr(method, "value", method)  # of an enum
    if "quant_type" in settings:
        return _torchao(settings)
    if settings.keys() & _BITS.keys():
        return _bitsandbytes(settings)
    raise ValueError(
        f"quantization_config={config!r}{f' (quant_method {method})' if method else ''} is not known: expected "
        f"TorchAoConfig or BitsAndBytesConfig, or quantize= in its place; a checkpoint that is quantized needs none"
    )


def _torchao(settings: dict[str, Any]) -> QuantizeOptions:
    quant_type, skipped = settings.pop("quant_type"), settings.pop("modules_to_not_convert", None)
    settings.update(settings.pop("quant_type_kwargs", None) or {})
    name = quant_type if isinstance(quant_type, str) else type(quant_type).__name__
    if name == "autoquant":
        raise ValueError("quant_type 'autoquant' is not built, as it measures torch's kernels: name what you want")
    if name not in _TORCHAO:
        raise ValueError(f"quant_type {name!r} is not known: expected one of {', '.join(_TORCHAO)}")
    if not isinstance(quant_type, str):
        settings.update(_settings(quant_type))
    kind, group = _TORCHAO[name], settings.pop("group_size", None)
    group = _GROUP if group is None else group
    _check_group(kind, group)
    _check(settings, f"TorchAoConfig({name!r})")
    scheme = Scheme("int4" if kind == "int4" else "int8", group)
    head = None if skipped is None else scheme
    return QuantizeOptions(scheme, scheme, head, _left_alone(skipped), whole_groups=kind == "int4")


def _check_group(kind: str, group: Any) -> None:
    allowed = _INT4_GROUPS if kind == "int4" else range(32, 1025, 32)
    if not isinstance(group, int) or group not in allowed:
        said = ", ".join(map(str, _INT4_GROUPS)) if kind == "int4" else "a multiple of 32 up to 1024, or None"
        raise ValueError(f"group_size={group!r} of {kind}: expected {said}")


def _bitsandbytes(settings: dict[str, Any]) -> QuantizeOptions:
    asked = [word for name, word in _BITS.items() if settings.pop(name, None)]
    skipped = settings.pop("llm_int8_skip_modules", None)
    if len(asked) != 1:
        raise ValueError(f"quantization_config: expected one of {' and '.join(_BITS)} to be True, got {len(asked)}")
    _check(settings, "quantization_config")
    return replace(WORDS[asked[0]], exceptions={**WORDS[asked[0]].exceptions, **_left_alone(skipped)})


def _left_alone(names: Iterable[str] | None) -> dict[str, Scheme | None]:
    if isinstance(names, str):
        raise ValueError(f"modules that are left as they are: expected a list of names, got the text {names!r}")
    return dict.fromkeys(names or (), None)


def _check(settings: Mapping[str, Any], owner: str) -> None:
    """ValueError for a setting that asks for what is not done."""
    for name, value in settings.items():
        plain = getattr(value, "value", value)  # of an enum
        plain = (
            str(plain).removeprefix("torch.").lower()
            if not isinstance(plain, bool | int | float | type(None))
            else plain
        )
        if value is None or value is False or name in _UNSEEN or (name in _LAYOUT and "sparse" not in str(plain)):
            continue
        if name not in _NEUTRAL or plain not in _NEUTRAL[name]:
            raise ValueError(f"{owner}: {name}={value!r} is not built: leave it out")


def _settings(config: Any) -> dict[str, Any]:
    """The settings of a mapping; of an object those that its class would not have by itself."""
    if isinstance(config, Mapping):
        return {name.removeprefix("_"): value for name, value in config.items()}
    try:
        own = {name.removeprefix("_"): value for name, value in vars(config).items()}
    except TypeError:  # a word, a number
        return {}
    defaults = _defaults(type(config))
    needed = {"quant_type", *_BITS}
    return {name: value for name, value in own.items() if name in needed or not _same(value, defaults, name)}


def _same(value: Any, defaults: Mapping[str, Any], name: str) -> bool:
    return name in defaults and type(value) is type(defaults[name]) and bool(value == defaults[name])


def _defaults(kind: type) -> dict[str, Any]:
    """What an object of this class has when nothing is said."""
    if kind in (TorchAoConfig, BitsAndBytesConfig):
        return {}  # their settings are all known here
    if is_dataclass(kind):
        return {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    try:
        return {name.removeprefix("_"): value for name, value in vars(kind()).items()}
    except (TypeError, ValueError):  # it needs arguments
        return {}
