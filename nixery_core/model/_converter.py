"""The one cattrs converter: strict on the way in, specification names and no empty fields on the way out."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from nixery_core.errors import InvalidDocument, NixeryError
from nixery_core.model.digest import Digest

_T = TypeVar("_T")

# image-spec config.md writes the run configuration in Docker's capitals; everything else is camelCase or snake_case
_CAPITALS = {
    "ContainerConfig": {
        "user": "User",
        "exposed_ports": "ExposedPorts",
        "env": "Env",
        "entrypoint": "Entrypoint",
        "cmd": "Cmd",
        "volumes": "Volumes",
        "working_dir": "WorkingDir",
        "labels": "Labels",
        "stop_signal": "StopSignal",
    }
}
# and our own documents, whose names are those of the code
_SNAKE = {
    "RootFS",
    "History",
    "BuiltLayer",
    "CachedImage",
    "Pin",
    "Sweep",
    "ServedPart",
    "PackagesOfImage",
}
_SETS = {("ContainerConfig", "exposed_ports"), ("ContainerConfig", "volumes")}


def _json_name(cls: type, field: str) -> str:
    if cls.__name__ in _CAPITALS:
        return _CAPITALS[cls.__name__][field]
    if cls.__name__ in _SNAKE:
        return field
    head, *rest = field.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _exactly(expected: type[_T]) -> Callable[[object, object], _T]:
    def structure_exactly(value: object, _: object) -> _T:
        if type(value) is not expected:
            raise ValueError(f"expected {expected.__name__}, got {type(value).__name__}")
        return value

    return structure_exactly


def _structure_digest(value: object, _: object) -> Digest:
    if not isinstance(value, str):
        raise ValueError(f"expected a digest, got {type(value).__name__}")
    return Digest.parse(value)


def _structure_set(value: object, _: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return tuple(sorted(value))


def _is_tuple(hint: object) -> bool:
    return typing.get_origin(hint) is tuple


def _is_text_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is Mapping


def _structure_tuple(value: object, hint: Any) -> tuple[Any, ...]:
    # Go writes empty lists as null
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {type(value).__name__}")
    item = typing.get_args(hint)[0]
    return tuple(_CONVERTER.structure(element, item) for element in value)


def _structure_mapping(value: object, _: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    for key, text in value.items():
        if type(key) is not str or type(text) is not str:
            raise ValueError(f"expected texts, got {key!r}: {text!r}")
    return dict(value)


def _structure_hook(cls: type) -> Callable[[Any, Any], Any]:
    names = {
        field.name: override(
            rename=_json_name(cls, field.name),
            struct_hook=_structure_set if (cls.__name__, field.name) in _SETS else None,
        )
        for field in attrs.fields(cls)
    }
    generated: Callable[[Any, Any], Any] = make_dict_structure_fn(cls, _CONVERTER, **names)  # type: ignore[arg-type]

    def structure_document(value: Any, hint: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected an object, got {type(value).__name__}")
        return generated(value, hint)

    return structure_document


def _unstructure_hook(cls: type) -> Callable[[Any], dict[str, Any]]:
    fields: Any = attrs.fields(cls)
    overrides = {field.name: override(rename=_json_name(cls, field.name)) for field in fields}
    generated: Callable[[Any], dict[str, Any]] = make_dict_unstructure_fn(cls, _CONVERTER, **overrides)  # type: ignore[arg-type]
    required = {_json_name(cls, field.name) for field in fields if field.default is attrs.NOTHING}
    # these have defaults in Python for convenience, and are required or expected in the document
    required |= {"schemaVersion", "mediaType", "format_version"} | ({"type"} if cls.__name__ == "RootFS" else set())
    sets = {_json_name(cls, field) for owner, field in _SETS if owner == cls.__name__}

    def unstructure_document(document: Any) -> dict[str, Any]:
        values = {
            key: value
            for key, value in generated(document).items()
            if key in required or value not in (None, "", (), [], {}, False)
        }
        for key in sets & values.keys():
            values[key] = {item: {} for item in values[key]}
        return values

    return unstructure_document


def _is_optional(hint: object) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType) and type(None) in typing.get_args(hint)


def _structure_optional(value: object, hint: Any) -> Any:
    if value is None:
        return None
    inner = next(argument for argument in typing.get_args(hint) if argument is not type(None))
    return _CONVERTER.structure(value, inner)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True)
    for primitive in (str, int, bool, float):
        converter.register_structure_hook(primitive, _exactly(primitive))
    converter.register_structure_hook(Digest, _structure_digest)
    converter.register_unstructure_hook(Digest, str)
    converter.register_structure_hook_func(_is_tuple, _structure_tuple)
    converter.register_structure_hook_func(_is_text_mapping, _structure_mapping)
    converter.register_structure_hook_func(_is_optional, _structure_optional)
    converter.register_structure_hook_factory(attrs.has, _structure_hook)
    converter.register_unstructure_hook_factory(attrs.has, _unstructure_hook)
    return converter


_CONVERTER = _make_converter()


def unstructure(value: object) -> Any:
    """Return *value* as plain JSON values."""
    return _CONVERTER.unstructure(value)


def structure(value: object, cls: type[_T]) -> _T:
    """Read plain JSON values as *cls*; raises InvalidDocument with one reason for each wrong field."""
    try:
        return _CONVERTER.structure(value, cls)
    except cattrs.BaseValidationError as error:
        reasons = "; ".join(cattrs.transform_error(error, format_exception=_describe))
        raise InvalidDocument(f"not a valid {cls.__name__}: {reasons}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidDocument(f"not a valid {cls.__name__}: {_describe(error, cls)}") from None


def _describe(error: BaseException, _: object) -> str:
    if isinstance(error, KeyError):
        return f"required field {error.args[0]!r} missing"
    if isinstance(error, NixeryError):
        return error.message
    return str(error.args[0]) if error.args else str(error)
