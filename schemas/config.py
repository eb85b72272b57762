"""Configuration: frozen pydantic classes that hold every default, and TOML files that hold only what differs.

A field is *identity* unless it is declared with `execution(...)`. Identity is what the data depends on and is hashed into
fingerprints; execution is how and where the work is done (paths, workers, batch sizes, devices) and never changes a byte.
A field that joins a config whose data lie in stores is declared with `later(...)`.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from schemas.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="Config")
Compat = Literal["correct", "paper"]  # as it should be, or as the release of Pixel-SAIL does (docs/paper.md)


def execution(default: Any = ..., **constraints: Any) -> Any:
    """A field that says how or where the work is done; it is left out of `identity()`."""
    return Field(default, json_schema_extra={"execution": True}, **constraints)


def later(default: Any, **constraints: Any) -> Any:
    """A field that came when stores had been made without it: while it has its default it is left out of `identity()`, so that
    they stay what they are."""
    return Field(default, json_schema_extra={"later": True}, **constraints)


class Config(BaseModel):
    """Base of every config: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> dict[str, Any]:
        """The resolved fields that the made data depends on, as JSON types."""
        values = {name: (field, getattr(self, name)) for name, field in type(self).model_fields.items()}
        return {name: _plain(value) for name, (field, value) in values.items() if _counts(field, value)}


def _counts(field: FieldInfo, value: Any) -> bool:
    said = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return not (said.get("execution") or (said.get("later") and value == field.default))


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no identity: use str, int, float, bool, lists, dicts or a Config")


def fingerprint(identity: Mapping[str, Any]) -> str:
    """32 hex digits of SHA-256 over the canonical JSON of `identity`; key order does not matter, every value does."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """`field: old -> new` for each leaf at which two identities differ, fields dotted, in order of name."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted(old.keys() | new.keys())
        return [line for name in names for line in differences(old.get(name), new.get(name), f"{at}.{name}".lstrip("."))]
    return [] if old == new else [f"{at}: {json.dumps(old)} -> {json.dumps(new)}"]


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables merged over those of the file that its `extends` names, relative to itself."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such config file", str(path), "Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", str(path)) from None
    parent = data.pop("extends", None)
    return data if parent is None else _merge(read_toml(path.parent / parent), data)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key, and table by table."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(merged[key], value) if _adds_to(merged.get(key), value) else value
    return merged


def _adds_to(before: Any, value: Any) -> bool:
    """Whether both are tables; one of another `kind` takes the other's place, whose keys mean nothing to it."""
    if not (isinstance(before, Mapping) and isinstance(value, Mapping)):
        return False
    return "kind" not in value or value["kind"] == before.get("kind")


def override(data: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`data` with each `dotted.key=value` set; the value is read as TOML, and as a plain string where it is none."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError("an override needs the form key=value", f"--set {assignment}")
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for name in reversed(key.strip().split(".")):
            value = {name: value}
        data = _merge(data, value)
    return data


def parse(config: type[ConfigT], data: Mapping[str, Any], where: str) -> ConfigT:
    """`config` validated from `data`; each fault is a `ConfigError` that names the field and the nearest known key."""
    try:
        return config.model_validate(data)
    except ValidationError as error:
        faults = [_fault(config, fault) for fault in error.errors()]
        raise ConfigError("; ".join(faults), where) from None


def _fault(config: type[Config], fault: Any) -> str:
    loc = [str(part) for part in fault["loc"]]
    if fault["type"] != "extra_forbidden":
        return f"{'.'.join(loc)}: {fault['msg']}"
    near = difflib.get_close_matches(loc[-1], _keys_at(config, loc[:-1]), n=1, cutoff=0.5)
    return f"unknown key {'.'.join(loc)}" + (f" (did you mean {near[0]}?)" if near else "")


def _keys_at(annotation: Any, path: list[str]) -> list[str]:
    """The keys that may stand under `path`, through optional, union, dict and tuple annotations."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        if not path:
            return list(annotation.model_fields)
        field = annotation.model_fields.get(path[0])
        return _keys_at(field.annotation, path[1:]) if field else _keys_at(annotation, path[1:])
    return [key for part in get_args(annotation) for rest in (path, path[1:]) for key in _keys_at(part, rest)]
