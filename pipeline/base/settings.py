"""How settings are declared, as frozen dataclasses, and read from YAML and the command line.

A setting has one dotted name everywhere, `head.hidden`: nested in a YAML file, flat as `--head.hidden 512`
on the command line, which wins. Types are checked by pydantic; a name that nobody knows is an error.
"""

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import pydantic.dataclasses
import yaml

from pipeline.base.errors import ConfigError


def settings(cls: type) -> type:
    """Class decorator: a frozen, keyword-only dataclass whose fields are documented by the string below each."""
    config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=config)


class Setting(NamedTuple):
    """One leaf of a settings class: its type, default and description."""

    type: Any
    default: Any
    help: str


def flatten(cls: type) -> dict[str, Setting]:
    """Maps every dotted name of a settings class to its `Setting`."""
    flat = {}
    for name, field in cls.__pydantic_fields__.items():
        if dataclasses.is_dataclass(field.annotation):
            flat |= {f"{name}.{key}": setting for key, setting in flatten(field.annotation).items()}
        else:
            flat[name] = Setting(field.annotation, field.default, field.description or "")
    return flat


def build(cls: type, file: Path | None, overrides: dict[str, str]) -> Any:
    """Builds a settings object from a YAML file (None: defaults alone) and overrides by dotted name.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, or a value has the wrong type.
    """
    known = flatten(cls)
    sections = {name.rpartition(".")[0] for name in known}
    values = {name: (value, str(file)) for name, value in _read_yaml(file).items()} if file else {}
    values = {name: given for name, given in values.items() if given[0] is not None or name not in sections}
    values |= {name: (value, "command line") for name, value in overrides.items()}
    for name, (value, source) in values.items():
        if name in sections:
            raise ConfigError(f"{source}: {name}: holds other settings, to be named below it, got {value!r}")
        if name not in known:
            raise ConfigError(f"{source}: unknown setting '{name}'{nearest(name, known)}")
        if isinstance(value, str) and value.startswith("~"):
            values[name] = os.path.expanduser(value), source
    try:
        return pydantic.TypeAdapter(cls).validate_python(
            unflatten({name: value for name, (value, _) in values.items()})
        )
    except pydantic.ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(wrong["loc"])
        raise ConfigError(f"{values[name][1]}: {name}: {wrong['msg'].lower()}, got {wrong['input']!r}") from None


def nearest(name: str, names: Any) -> str:
    """Returns '; did you mean ...?' for the likeliest of `names`, or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Nests a dict by the dots of its keys."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return nested


def to_yaml(obj: Any) -> str:
    """Writes a settings object as YAML text that `build` reads back."""
    return yaml.safe_dump(pydantic.TypeAdapter(type(obj)).dump_python(obj, mode="json"), sort_keys=False)


def yaml_differences(before: str, after: str, ignore: tuple[str, ...]) -> list[str]:
    """Names what differs between two texts of `to_yaml`, but for names that begin with one of `ignore`."""
    old, new = (_flatten_values(yaml.safe_load(text)) for text in (before, after))
    names = [name for name in old | new if old.get(name) != new.get(name)]
    names = [name for name in names if not any(f"{name}.".startswith(f"{other}.") for other in ignore)]
    return [f"{name}: {old.get(name)}, now {new.get(name)}" for name in names]


class _Loader(yaml.SafeLoader):
    """Refuses a name that is given twice, of which YAML's own would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: list[Any] = []
        for key, _ in node.value:
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is given twice", problem_mark=key.start_mark)
            names.append(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the config: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected 'name: value' lines, got {type(content).__name__}")
    return _flatten_values(content)


def _flatten_values(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= _flatten_values(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
