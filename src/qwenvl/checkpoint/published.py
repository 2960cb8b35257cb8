"""Checkpoints that others quantized: quantization_config -> the tensors of the model, whatever they are made of.

What config.json says is only how integers are to be read; which linears have them is decided by the tensors there are.
So the tower stays as it is where the files have it so, and biases, norms and embeddings are plain tensors as ever.

    quant_method         layouts
    awq                  AutoAWQ's gemm and gemv, 4 bits                        awq.py
    gptq                 checkpoint_format gptq and gptq_v2, 4 and 8 bits       gptq.py
    compressed-tensors   pack-quantized, int-quantized, naive-quantized         compressed.py

Everything else is refused by its name. Example, of Qwen/Qwen2.5-VL-7B-Instruct-AWQ: {"quant_method": "awq", "bits": 4,
"group_size": 128, "version": "gemm", "zero_point": true, "modules_to_not_convert": ["visual"]}.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.checkpoint import awq, compressed, gptq
from qwenvl.checkpoint.names import DECODER, module_name
from qwenvl.checkpoint.stored import CheckpointError, Entry, Stored, plain_tensors, read_object

SETTINGS_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # of early files, beside config.json
AWQ_VERSIONS = {"gemm": awq.AwqWeight, "exllama": awq.AwqWeight, "gemv": awq.AwqVectorWeight}
GPTQ_FORMATS = {"gptq": True, "gptq_v2": False}  # are zeros stored less one?
COMPRESSED_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision", "dense")
_INSTEAD = "take the full weights, or those in AWQ, GPTQ or compressed-tensors with 4 or 8 bits"

Parts = dict[str, Entry]  # the tensors of a module, by the ends of their names


@dataclass(frozen=True)
class Plan:
    """How the tensors of a module become its weight.

    A module that has a tensor of `marks` (one called "weight" in int8) is quantized; build(module, parts) makes its
    weight of those in `leaves`. unused: what belongs to no tensor of the model.
    """

    marks: tuple[str, ...]
    leaves: frozenset[str]
    build: Callable[[str, Parts], Stored]
    unused: frozenset[str] = frozenset()

    def marked(self, parts: Parts) -> bool:
        return any(leaf in parts and (leaf != "weight" or parts[leaf].kind == "I8") for leaf in self.marks)


def settings_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a checkpoint says of its quantization: in config.json, read already, or in a file of its own; None for one
    that says nothing. CheckpointError for something that is no object."""
    text = config.get("text_config")
    for values in (config, text if isinstance(text, Mapping) else {}):
        said = values.get("quantization_config") or values.get("compression_config")
        if said is not None and not isinstance(said, Mapping):
            raise CheckpointError(f"{folder}: quantization_config is {said!r}; expected an object with quant_method")
        if said:
            return dict(said)
    for name, method in SETTINGS_FILES.items():
        if (folder / name).is_file():
            return {"quant_method": method, **read_object(folder / name)}
    return None


def published_tensors(folder: Path, settings: Mapping[str, Any], entries: Sequence[Entry]) -> list[Stored]:
    """Every tensor of the model: linears with integers as one weight each, all else as it is. CheckpointError for a
    quantization that cannot be read, and for tensors that do not belong together."""
    method = settings.get("quant_method")
    plans = {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed}
    if method not in plans:
        raise CheckpointError(f"{folder} is quantized by {method!r}, which is not supported: {_INSTEAD}")
    plan = plans[method](folder, settings)
    modules: dict[str, Parts] = {}
    for entry in entries:
        module, _, leaf = entry.key.rpartition(".")
        modules.setdefault(module, {})[leaf] = entry
    out, plain = [], []
    for module, parts in modules.items():
        taken = plan.leaves if plan.marked(parts) else frozenset()
        if taken:
            out.append(plan.build(module, {leaf: entry for leaf, entry in parts.items() if leaf in taken}))
        plain += [entry for leaf, entry in parts.items() if leaf not in taken | plan.unused]
    return out + (plain_tensors(plain) if plain else [])


def mlp_width(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The width of the text MLP by the tensors there are, with a warning, where it is larger than config.json says and
    the same in all layers; None where it is not: then what config.json says holds.

    Quantized weights of the 72B models were padded with zeros, from 29568 to 29696, so that they can be split, and
    some config.json beside them still say 29568. shapes: of the plain tensors, by the names of our modules. config: of
    a model or of its text part.
    """
    text = getattr(config, "text_config", config)
    ends = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    found = set()
    for layer in range(text.num_hidden_layers):
        for end, axis in ends.items():
            shape = shapes.get(f"{DECODER}layers.{layer}.mlp.{end}.weight", ())
            found.add(shape[axis] if len(shape) == 2 and shape[1 - axis] == text.hidden_size else -1)
    width = found.pop()
    if found or width <= text.intermediate_size:
        return None
    warnings.warn(
        f"config.json says intermediate_size {text.intermediate_size}, and all layers have {width}: {width} is taken, "
        "as in checkpoints whose weights were padded with zeros before they were quantized",
        stacklevel=2,
    )
    return width


def _awq(folder: Path, settings: Mapping[str, Any]) -> Plan:
    bits = settings.get("bits", settings.get("w_bit"))
    group = _integer(folder, "group_size", settings.get("group_size", settings.get("q_group_size")))
    version = str(settings.get("checkpoint_format") or settings.get("version") or "gemm").lower()
    if bits != 4:
        raise CheckpointError(f"{folder} is quantized by awq to {bits!r} bits, which is not supported: {_INSTEAD}")
    if version not in AWQ_VERSIONS or settings.get("backend", "autoawq") == "llm-awq":
        raise CheckpointError(
            f"{folder} is quantized by awq in version {version!r}, backend {settings.get('backend', 'autoawq')!r}: "
            f"expected a version of autoawq, {' or '.join(AWQ_VERSIONS)}; {_INSTEAD}"
        )
    return Plan(("qweight",), awq.LEAVES, lambda module, parts: AWQ_VERSIONS[version](module, parts, group))


def _gptq(folder: Path, settings: Mapping[str, Any]) -> Plan:
    form = str(settings.get("checkpoint_format") or settings.get("format") or "gptq")
    if form not in GPTQ_FORMATS or settings.get("is_marlin_format"):
        said = form if form not in GPTQ_FORMATS else "marlin"
        raise CheckpointError(
            f"{folder} is quantized by gptq in the format {said!r}, which is not supported: {_INSTEAD}"
        )
    for name, fine in (("rotation", (None, "")), ("adapter", (None,)), ("pack_dtype", (None, "int32"))):
        if settings.get(name) not in fine:
            raise CheckpointError(f"{folder}: {name}={settings[name]!r} of gptq is not supported: {_INSTEAD}")

    borrows = "gptqmodel" in str((settings.get("meta") or {}).get("quantizer")).lower()

    def build(module: str, parts: Parts) -> Stored:
        own = {**settings, **_override(settings.get("dynamic"), module)}
        bits = own.get("bits")
        if bits not in (4, 8):
            raise CheckpointError(
                f"{folder} is quantized by gptq to {bits!r} bits ({module}), which is not supported: {_INSTEAD}"
            )
        group = _integer(folder, "group_size", own.get("group_size"))
        desc_act, symmetric = bool(own.get("desc_act")), bool(own.get("sym"))
        return gptq.GptqWeight(
            module, parts, gptq.Settings(bits, group, desc_act, symmetric, GPTQ_FORMATS[form], borrows)
        )

    return Plan(("qweight",), gptq.LEAVES, build)


def _override(dynamic: Mapping[str, Any] | None, module: str) -> Mapping[str, Any]:
    """What GPTQModel's `dynamic` says of one module: {"+:pattern": {"bits": 8}}; "-:" are modules left as they are."""
    for pattern, values in (dynamic or {}).items():
        if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), module):
            return values if isinstance(values, Mapping) else {}
    return {}


def _compressed(folder: Path, settings: Mapping[str, Any]) -> Plan:
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise CheckpointError(f"{folder}: compressed-tensors without config_groups, but {groups!r}: {_INSTEAD}")
    sparse = (settings.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense" or settings.get("transform_config"):
        what = f"sparsity {sparse!r}" if sparse != "dense" else "a transform_config"
        raise CheckpointError(f"{folder}: compressed-tensors with {what} is not supported: {_INSTEAD}")
    for form in {settings.get("format"), *(group.get("format") for group in groups.values())} - {None}:
        if form not in COMPRESSED_FORMATS:
            raise CheckpointError(f"{folder}: compressed-tensors in the format {form!r} is not supported: {_INSTEAD}")
    kinds = {(group.get("weights") or {}).get("type", "int") for group in groups.values()}
    if kinds - {"int"}:
        raise CheckpointError(
            f"{folder}: compressed-tensors with weights of the type {', '.join(sorted(kinds))} (such as FP8) is not "
            f"supported: {_INSTEAD}"
        )
    if settings.get("kv_cache_scheme"):
        warnings.warn(f"{folder} asks for a quantized cache; it is kept in the model's dtype", stacklevel=4)

    def build(module: str, parts: Parts) -> Stored:
        weights = _weights(folder, groups, module)
        bits, group = weights.get("num_bits"), weights.get("group_size")
        strategy = weights.get("strategy") or ("group" if group and group > 0 else "channel")
        if bits not in (4, 8) or strategy not in ("group", "channel", "tensor"):
            raise CheckpointError(
                f"{folder}: compressed-tensors with {bits!r} bits, strategy {strategy!r} ({module}) is not supported: "
                f"{_INSTEAD}"
            )
        size = _integer(folder, "group_size", group) if strategy == "group" else -1
        return compressed.CompressedWeight(module, parts, bits, size, bool(weights.get("symmetric", True)))

    return Plan(("weight_packed", "weight"), compressed.LEAVES, build, compressed.UNUSED)


def _weights(folder: Path, groups: Mapping[str, Mapping[str, Any]], module: str) -> Mapping[str, Any]:
    """The `weights` of the group that a module belongs to: one that names it, else one for all linears."""
    names = {module, (module_name(f"{module}.weight") or "").removesuffix(".weight")}
    for wanted in (names, {"Linear"}):
        for group in groups.values():
            if any(_names(target, wanted) for target in group.get("targets") or ()) and group.get("weights"):
                return dict(group["weights"])
    raise CheckpointError(
        f"{folder}: no group of config_groups has the target {module}, which is quantized: {_INSTEAD}"
    )


def _names(target: str, names: Iterable[str]) -> bool:
    if target.startswith("re:"):
        return any(re.match(target[3:], name) for name in names)
    return any(name == target or name.endswith(f".{target}") for name in names)


def _integer(folder: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{folder}: {name}={value!r} of quantization_config: expected a whole number, or -1")
    return value
