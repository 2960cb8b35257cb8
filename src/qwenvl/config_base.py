"""What the configuration classes of config.py are made of: the checked base class, and the rotary fields.

In: keywords of any vintage. Out: filled frozen fields, or a ValueError that names the field. A field is
checked by its annotation (CHECKS); a class adds the checks that tie fields together. Imports no torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, cast

CONFIG_NAME = "config.json"
ACTIVATIONS = ("silu", "gelu", "quick_gelu", "gelu_pytorch_tanh")
DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYER_TYPES = ("full_attention", "sliding_attention")
PLAIN_SECTION = (16, 24, 24)  # of every published checkpoint: head_dim 128
_SCALE = ("attention_factor", "original_max_position_embeddings")
ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # by rope_type: the keys it needs, and may have
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "yarn": (("factor",), (*_SCALE, "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")),
    "longrope": (("short_factor", "long_factor"), (*_SCALE, "factor")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
}
_ROPE_NEUTRAL = {"partial_rotary_factor": 1, "mrope_interleaved": False}  # keys of other models that ask for nothing

Natural = int  # 0 or more; a field annotated `int` is 1 or more
Activation = str
DType = str


def _is_int(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _is_id_list(value: Any) -> bool:
    return all(_is_int(one, 0) for one in (value if isinstance(value, tuple) else (value,)))


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {  # by the annotation of the field
    "int": (_is_int, "a whole number, 1 or more"),
    "Natural": (lambda value: _is_int(value, 0), "a whole number, 0 or more"),
    "float": (_is_number, "a number, 0 or more"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "Activation": (lambda value: value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "DType": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "tuple[str, ...]": (
        lambda value: isinstance(value, tuple) and all(isinstance(v, str) for v in value),
        "names",
    ),
    "tuple[Natural, ...]": (lambda value: isinstance(value, tuple) and _is_id_list(value), "whole numbers"),
    "Natural | tuple[Natural, ...]": (_is_id_list, "a token id or several"),
}


def expect(good: bool, name: str, value: Any, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}={value!r} is not valid: expected {expected}")


@dataclass(frozen=True, init=False)
class Config:
    """What the six classes share: filling, checking, comparing and writing of fields.

    Built with keywords only. `dtype` (also `torch_dtype`) is a name such as "bfloat16", or None.
    """

    dtype: DType | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    model_type: ClassVar[str] = ""
    _aliases: ClassVar[dict[str, str]] = {"torch_dtype": "dtype"}

    def __init__(self, **values: Any) -> None:
        self._check_model_type(values.pop("model_type", self.model_type))
        self._unalias(values)
        self._read(values)
        for item in fields(self):
            if item.name == "extra":
                continue
            kind, optional, _ = cast(str, item.type).partition(" | None")
            value = values.pop(item.name, item.default)
            value = item.default if value is None and not optional else value
            value = tuple(value) if isinstance(value, list) else value
            self._set(item.name, value)
            if kind in CHECKS and not (optional and value is None):
                expect(CHECKS[kind][0](value), item.name, value, CHECKS[kind][1])
        self._set("extra", values)
        self._check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_model_type(self, given: Any) -> None:
        wanted = f"{self.model_type!r} for {type(self).__name__}"
        expect(given == self.model_type, "model_type", given, wanted)

    @classmethod
    def _unalias(cls, values: dict[str, Any]) -> None:
        """Bring other names of fields to the field names, in place."""
        for alias, name in cls._aliases.items():
            other = values.pop(alias, None)
            if values.get(name, other) != other and None not in (values[name], other):
                raise ValueError(f"{name}={values[name]!r} and {alias}={other!r} mean the same: give one")
            if other is not None:
                values[name] = other
        if values.get("dtype") is not None:  # a torch.dtype prints as torch.bfloat16
            values["dtype"] = str(values["dtype"]).removeprefix("torch.")

    def _read(self, values: dict[str, Any]) -> None:
        """Bring the content of other vintages to the fields, in place."""

    def _check(self) -> None:
        """Fill the fields that follow from others, and check those that belong together."""

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("extra", {}):
            return self.extra[name]
        if name in self._aliases:
            return getattr(self, self._aliases[name])
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def _values(self) -> dict[str, Any]:
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "extra"}
        return {**self.extra, **own}

    def replace(self, **changes: Any) -> Self:
        """The same configuration with some fields changed; checked again."""
        self._unalias(changes)
        return type(self)(**{**self._values(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict in the published layout; `from_dict` of it equals this object."""
        out: dict[str, Any] = {"model_type": self.model_type}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "extra" and not (value is None and item.default is None):
                out[item.name] = list(value) if isinstance(value, tuple) else value
        if "dtype" in out:
            out["torch_dtype"] = out.pop("dtype")
        return {**copy.deepcopy(self.extra), **out}

    def to_json_string(self) -> str:
        """The text of config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/config.json; the folder is made if it does not exist."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG_NAME).write_text(self.to_json_string(), encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """A configuration from the content of a config.json; `changes` win over it."""
        known = dict(values)
        cls._unalias(known)
        cls._unalias(changes)
        return cls(**{**known, **changes})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """A configuration from a local folder with config.json; `changes` win over the file."""
        values = read_config(folder)
        try:
            return cls.from_dict(values, **changes)
        except ValueError as error:
            raise ValueError(f"{Path(folder) / CONFIG_NAME}: {error}") from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """The content of `folder`/config.json. Every failure is a ValueError that names the file."""
    path = Path(folder) / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}): expected the folder of a checkpoint") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}: expected an object of keys")
    return values


def join_rope(values: dict[str, Any]) -> None:
    """Bring `rope_parameters` (theta inside) to `rope_scaling` and `rope_theta`, in place; also the lines of the
    README's YaRN block that stand beside the other keys, as it shows them, and not in rope_scaling."""
    parameters = values.pop("rope_parameters", None)
    scaling = values.get("rope_scaling")
    scaling = parameters if scaling is None else scaling
    beside = _keys_beside(values)
    if scaling is None and not beside:
        return
    scaling = {} if scaling is None else scaling
    flat = isinstance(scaling, Mapping) and not any(isinstance(value, Mapping) for value in scaling.values())
    expect(
        flat,
        "rope_scaling",
        scaling,
        'null or one object such as {"type": "mrope", "mrope_section": [16, 24, 24]}',
    )
    scaling = dict(scaling)
    theta = scaling.pop("rope_theta", None)
    if theta is not None and values.setdefault("rope_theta", theta) != theta:
        raise ValueError(f"rope_theta={values['rope_theta']!r} but {theta!r} in rope_parameters: give one")
    if beside:
        plain = {key: value for key, value in scaling.items() if key not in ("type", "rope_type")}
        given = _rope_type(scaling)
        expect(given in ("default", beside["type"]), "type", beside["type"], f"the rope_type {given!r} of rope_scaling")
        scaling = plain | beside
    values["rope_scaling"] = scaling or None


def _keys_beside(values: dict[str, Any]) -> dict[str, Any]:
    """Take the keys of a rotary scaling out of a whole config.json, when its "type" is one."""
    kind = values.get("type")
    if not isinstance(kind, str) or kind == "default" or kind not in ROPE_KEYS:
        return {}
    names = {"type", "mrope_section", *ROPE_KEYS[kind][0], *ROPE_KEYS[kind][1]}
    return {name: values.pop(name) for name in names & set(values)}


def _rope_type(scaling: Mapping[str, Any]) -> str:
    """The one name of its kind; rope_type and the older key type have to agree."""
    names = [scaling[key] for key in ("rope_type", "type") if scaling.get(key) is not None] or ["default"]
    kinds = ["default" if name == "mrope" else name for name in names]
    expect(kinds[0] in list(ROPE_KEYS), "rope_type", kinds[0], f"mrope or one of {', '.join(ROPE_KEYS)}")
    expect(kinds[0] == kinds[-1], "rope_type", names[0], f"the same as type={names[-1]!r} beside it")
    return str(kinds[0])


def plain_rope(scaling: dict[str, Any] | None, max_positions: int) -> dict[str, Any] | None:
    """rope_scaling with one key for its type, a section, and the trained length where its type needs one. Keys that
    are null or ask for nothing are left out."""
    if scaling is None:
        return None
    kind = _rope_type(scaling)
    out: dict[str, Any] = {"rope_type": kind, "mrope_section": list(PLAIN_SECTION)}
    if kind in ("yarn", "longrope", "llama3"):
        out["original_max_position_embeddings"] = max_positions
    for key, value in scaling.items():
        if value is not None and key not in ("type", "rope_type") and _ROPE_NEUTRAL.get(key, ()) != value:
            out[key] = list(value) if isinstance(value, tuple) else value
    return out


def check_rope(scaling: dict[str, Any], half: int) -> None:
    """Errors of the section (three parts of the `half` frequencies of a head) and of the type's keys."""
    section = scaling.get("mrope_section", PLAIN_SECTION)
    good = isinstance(section, list | tuple) and len(section) == 3 and all(_is_int(n, 0) for n in section)
    time, height = half // 4, (half - half // 4) // 2
    example = {"type": "mrope", "mrope_section": [time, height, half - time - height]}
    wanted = f"three whole numbers with the sum head_dim / 2 = {half}, as in rope_scaling={example}"
    expect(good and sum(section) == half, "mrope_section", section, wanted)
    kind = scaling.get("rope_type", "default")
    needed, others = ROPE_KEYS[kind]
    for name in needed:
        expect(name in scaling, f"rope_scaling[{name!r}]", None, f"a value: rope_type {kind!r} needs it")
    for name, value in scaling.items():
        if name in ("rope_type", "mrope_section"):
            continue
        known = f"one of the keys of rope_type {kind!r}: {', '.join(('mrope_section', *needed, *others))}"
        expect(name in needed + others, f"rope_scaling[{name!r}]", value, known)
        good, wanted = _rope_value(name, value, half)
        expect(good, f"rope_scaling[{name!r}]", value, wanted)
    for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        if low in needed + others:
            least = scaling.get(low, 1)
            wanted = f"above {low}={least!r}"
            expect(scaling.get(high, 32) > least, f"rope_scaling[{high!r}]", scaling.get(high, 32), wanted)


def _rope_value(name: str, value: Any, half: int) -> tuple[bool, str]:
    """(whether this value of a key of rope_scaling is fine, what is expected)."""
    if name in ("short_factor", "long_factor"):
        good = isinstance(value, list) and len(value) == half and all(_is_number(one) and one > 0 for one in value)
        return good, f"{half} numbers above 0, one for each frequency of a head"
    if name == "truncate":
        return isinstance(value, bool), "true or false"
    if name == "original_max_position_embeddings":
        return _is_int(value), "a whole number, 1 or more"
    if name == "factor":
        return _is_number(value) and value >= 1, "a number, 1 or more"
    return _is_number(value) and value > 0, "a number above 0"
