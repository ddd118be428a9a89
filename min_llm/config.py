"""Configuration: frozen dataclasses <- YAML file <- `key=value` on the command line.

Every run is described by nested frozen dataclasses whose defaults are the documentation. A YAML file overrides the
defaults and `section.key=value` overrides the file. Unknown keys name the nearest valid one; wrong types say what
was given and what was expected. `dump` writes the complete, re-runnable configuration back.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")


class UserError(ValueError):
    """Something the user can fix: bad input, a missing file, a broken checkpoint. The message is a sentence that
    says what was given, what was expected and what to do; the command line prints it and exits with status 2."""


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the sentence that `--help` prints."""
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def nearest(given: str, valid: Sequence[str]) -> str:
    """ " Did you mean 'x'?" or the list of what is valid."""
    close = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Valid: {', '.join(sorted(valid))}."


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Resolved type of each field."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in dataclasses.fields(cls)}


def build(cls: type[Config], given: Mapping[str, Any], path: str = "") -> Config:
    """A `cls` from a nested mapping. A class that defines `from_mapping(given, path)` builds itself (the model
    section does: its fields depend on the family)."""
    if isinstance(given, cls):
        return given
    if not isinstance(given, Mapping):
        raise UserError(f"{path or 'the configuration'} must be a section with keys, but it is {given!r}.")
    if hasattr(cls, "from_mapping"):
        return cls.from_mapping(given, path)  # type: ignore[attr-defined]
    return build_fields(cls, given, path)


def build_fields(cls: type[Config], given: Mapping[str, Any], path: str = "") -> Config:
    """`build` for a plain dataclass: every key must be a field, every value must fit its type."""
    fields, prefix = hints(cls), f"{path}." if path else ""  # type: ignore[arg-type]
    for key in given:
        if key not in fields:
            raise UserError(f"Unknown configuration key '{prefix}{key}'.{nearest(str(key), list(fields))}")
    values = {key: convert(value, fields[key], prefix + key) for key, value in given.items()}
    required = [f.name for f in dataclasses.fields(cls) if _is_required(f) and f.name not in values]  # type: ignore
    if required:
        raise UserError(f"The configuration needs '{prefix}{required[0]}', which has no default. Add it.")
    return cls(**values)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def convert(value: Any, kind: Any, path: str) -> Any:
    """`value` as type `kind`, or a sentence. Integers become floats, lists become tuples, nothing else is coerced."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "from_mapping"):
        return build(kind, value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option_ in (a for a in args if a is not type(None)):
            try:
                return convert(value, option_, path)
            except UserError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
    elif origin is typing.Literal:
        if value in args:
            return value
        raise UserError(f"'{path}' is {value!r}; it must be one of: {', '.join(map(str, args))}.")
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        return origin(convert(v, args[0] if args else object, f"{path}[{i}]") for i, v in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        return {k: convert(v, args[1], f"{path}.{k}") for k, v in value.items()}
    elif kind in (object, Any):
        return value
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # YAML reads 1e5 as a float
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UserError(f"'{path}' is {value!r} ({type(value).__name__}); expected {describe(kind)}.")


def describe(kind: Any) -> str:
    """A type as a person would write it."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if kind is type(None):
        return "null"
    return getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind)


def read(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain nested mapping of a YAML file with `key.sub=value` overrides merged in."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    merged: Any = OmegaConf.create({})
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise UserError(f"There is no configuration file {str(path)!r}. Give the path of a YAML file.")
        try:
            loaded = OmegaConf.load(file)
        except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
            raise UserError(f"{file} is not readable YAML: {error}") from error
        if not OmegaConf.is_dict(loaded):
            raise UserError(f"{file} must hold sections with keys, like 'train: {{steps: 100}}'.")
        merged = loaded
    for text in overrides:
        key, separator, _ = text.partition("=")
        if not separator or not key:
            raise UserError(f"{text!r} is not a setting; write key=value, for example train.steps=100.")
    try:
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(overrides)))
        return typing.cast("dict[str, Any]", OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"These settings cannot be merged: {error}") from error


def load(cls: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """A `cls` from its defaults, a YAML file and `key=value` overrides."""
    return build(cls, read(path, overrides))


def from_words(cls: type[Config], words: Sequence[str]) -> Config:
    """A `cls` from the words of a command line: at most one YAML file, and `key=value` overrides."""
    paths = [word for word in words if "=" not in word]
    if len(paths) > 1:
        raise UserError(f"One configuration file at a time; given: {', '.join(paths)}.")
    return load(cls, paths[0] if paths else None, [word for word in words if "=" in word])


def dump(config: Any) -> dict[str, Any]:
    """The complete configuration as plain data; `build(type(config), dump(config)) == config`."""

    def plain(value: Any) -> Any:
        if hasattr(value, "to_mapping"):
            return {k: plain(v) for k, v in value.to_mapping().items()}
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return value

    return plain(config)


def to_yaml(config: Any) -> str:
    """The text of a YAML file that `load` reads back to the same configuration."""
    from omegaconf import OmegaConf

    def literal(value: Any) -> Any:  # "${" in a prompt is text, not a reference to another key
        if isinstance(value, str):
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        if isinstance(value, list):
            return [literal(v) for v in value]
        return {k: literal(v) for k, v in value.items()} if isinstance(value, dict) else value

    return OmegaConf.to_yaml(OmegaConf.create(literal(dump(config))))


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `tree`, section by section."""

    def over(old: Any, new: Any) -> Any:
        return merge(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new

    return {**tree, **{key: over(tree.get(key), value) for key, value in changes.items()}}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"steps": 1}} -> {"train.steps": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def fields_help(cls: type, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(key, type, default, help) of every setting of a nested configuration class, for `--help`."""
    rows = []
    for field in dataclasses.fields(cls):
        kind = hints(cls)[field.name]
        if dataclasses.is_dataclass(kind):
            rows += fields_help(typing.cast(type, kind), f"{prefix}{field.name}.")
            continue
        default = (
            field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        )
        shown = "" if default is dataclasses.MISSING else "null" if default is None else str(default)
        rows.append((prefix + field.name, describe(kind), shown, field.metadata.get("help", "")))
    return rows
