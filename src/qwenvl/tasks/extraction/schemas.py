"""What is wanted, as the caller has it -> a JSON Schema that an answer can be held to, and a check of what comes.

In: a pydantic model class (or any class with model_json_schema and model_validate), a JSON Schema, or names of fields.
Out: Wanted. Does not know models, pictures or grammars.

The schema is taken as it is but for what only the writing of an answer needs: objects have no properties beside those
named (unless the schema says which), dates and times are real ones, and arrays named bbox_2d and point_2d (as the model
names them) are places in the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

BOX, POINT = "bbox_2d", "point_2d"
ANY_ONE = ("anyOf", "oneOf", "allOf")
# Formats that llguidance writes; every other one is a remark, as JSON Schema has it, and what is read is checked.
FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", BOX, POINT})
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LITERAL = ("enum", "const", "default", "examples")

_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_FOURTH = "(0[48]|[2468][048]|[13579][26])"
_DAYS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
DATE = f"({_YEAR}-({_DAYS})|([0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"  # the last: leap years
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
OFFSET = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
PATTERNS = {"date": f"^{DATE}$", "time": f"^{TIME}{OFFSET}?$", "date-time": f"^{DATE}T{TIME}{OFFSET}$"}


@runtime_checkable
class ModelClass(Protocol):
    """What is needed of a pydantic model class."""

    def model_json_schema(self) -> dict[str, Any]: ...

    def model_validate(self, data: Any) -> Any: ...


Schema = ModelClass | Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Wanted:
    """schema: what an answer is held to. check(data) -> the caller's object, from data with places in original pixels;
    for a plain schema the data itself. valid(data): raises ValueError for data, as the model wrote it, that a plain
    schema does not allow."""

    schema: dict[str, Any]
    check: Callable[[Any], Any]
    valid: Callable[[Any], None]

    @property
    def columns(self) -> list[str]:
        """Names of the top level's fields, none where it is no object."""
        return list(self.resolve(self.schema).get("properties", {}))

    def resolve(self, schema: Any) -> Mapping[str, Any]:
        """The schema that a reference leads to; {} for what says nothing."""
        for _ in range(32):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                break
            node: Any = self.schema
            for step in filter(None, str(schema["$ref"]).removeprefix("#").split("/")):
                node = node.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
            schema = node
        return schema if isinstance(schema, Mapping) else {}

    def branches(self, schema: Any) -> Iterator[Mapping[str, Any]]:
        """A schema and what it is made of by $ref, anyOf, oneOf and allOf, without those words themselves."""
        schema = self.resolve(schema)
        yield schema
        for union in ANY_ONE:
            for one in schema.get(union, ()):
                yield from self.branches(one)

    @property
    def has_places(self) -> bool:
        """Whether boxes or points are among the fields."""
        return any(isinstance(node, Mapping) and node.get("format") in (BOX, POINT) for node in _nodes(self.schema))


def wanted(schema: Schema) -> Wanted:
    """What is wanted. ValueError for what is none of a model class, a JSON Schema and names."""
    if isinstance(schema, ModelClass):
        return Wanted(writable(_schema_of(schema)), schema.model_validate, lambda data: None)
    if isinstance(schema, Mapping):
        if not isinstance(schema.get("type", "object"), str | list):
            raise ValueError(f"the schema's type is {schema['type']!r}: expected a JSON Schema, or a list of names")
        plain = dict(schema)
        return Wanted(writable(plain), lambda data: data, lambda data: _hold_to(plain, data))
    names = [schema] if isinstance(schema, str) else list(schema)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"fields {names!r} are no names: give at least one, none of them empty")
    if len(set(names)) < len(names):
        raise ValueError(f"fields {names!r} has a name twice")
    return wanted({"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names})


def writable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with what is said of it at the top of this file."""
    changed = _written(schema)
    assert isinstance(changed, dict)
    return changed


def _written(node: Any) -> Any:
    if isinstance(node, list):
        return [_written(one) for one in node]
    if not isinstance(node, Mapping):
        return node
    new: dict[str, Any] = {}
    for key, value in node.items():
        if key in _NAMED and isinstance(value, Mapping):
            new[key] = {name: _place(name, _written(one)) for name, one in value.items()}
        else:
            new[key] = value if key in _LITERAL else _written(value)
    if "properties" in new and "additionalProperties" not in new and "patternProperties" not in new:
        new["additionalProperties"] = False
    form = new.get("format")
    if form in PATTERNS and "pattern" not in new:
        new["pattern"] = PATTERNS[form]
    if form not in FORMATS and isinstance(form, str):
        del new["format"]
    return new


def _place(name: str, schema: Any) -> Any:
    """An array that is named as the model names a place is one."""
    marked = name in (BOX, POINT) and isinstance(schema, Mapping) and schema.get("type") == "array"
    return {**schema, "format": name} if marked else schema


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key not in _LITERAL:
                yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def _schema_of(model: Any) -> dict[str, Any]:
    """The class's JSON Schema. Of pydantic's: decimals are numbers (its own also has any text at all), and sets are
    lists, as they drop by themselves what comes twice."""
    try:
        from pydantic import BaseModel
        from pydantic.json_schema import GenerateJsonSchema
    except ImportError:
        return dict(model.model_json_schema())
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return dict(model.model_json_schema())

    class Generator(GenerateJsonSchema):
        def decimal_schema(self, schema: Any) -> dict[str, Any]:
            bounds = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
            return {"type": "number", **{new: float(schema[old]) for old, new in bounds.items() if old in schema}}

        def set_schema(self, schema: Any) -> dict[str, Any]:
            return {key: value for key, value in super().set_schema(schema).items() if key != "uniqueItems"}

        def frozenset_schema(self, schema: Any) -> dict[str, Any]:
            return {key: value for key, value in super().frozenset_schema(schema).items() if key != "uniqueItems"}

    return model.model_json_schema(schema_generator=Generator)


def _hold_to(schema: Mapping[str, Any], data: Any) -> None:
    try:
        import jsonschema
    except ImportError:
        raise ValueError('checking data needs jsonschema: pip install "qwenvl[grammar]"') from None
    try:
        jsonschema.validate(data, schema)
    except jsonschema.ValidationError as error:
        at = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
        raise ValueError(f"{at.lstrip('.') or 'the data'}: {error.message}") from None
    except jsonschema.SchemaError as error:
        raise ValueError(f"this is no valid JSON Schema: {error.message}") from None
