"""Frozen dataclasses of `Annotated[type, bounds, help text]` fields, filled from a YAML file and the command line."""

import dataclasses
import difflib
import functools
import json
import os
from pathlib import Path
from typing import Any, get_args

import yaml

from pipeline.base.errors import ConfigError, first_line


def flatten(cls: type) -> dict[str, tuple[str, str, str]]:
    """Map every dotted name of a settings class to its values, such as `INT` or `{a,b}`, its default and its help."""
    flat = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            flat |= {f"{field.name}.{name}": setting for name, setting in flatten(field.type).items()}
        else:
            kind, *_, text = get_args(field.type)
            kind = next(iter(get_args(kind)), kind) if field.default is None else kind  # Of `INT | None`.
            kinds = get_args(kind) or (kind,)
            values = "{" + ",".join(kinds) + "}" if isinstance(kinds[0], str) else kinds[0].__name__.upper()
            flat[field.name] = values, "null" if field.default is None else str(field.default), text
    return flat


def flat_values(settings: Any) -> dict[str, Any]:
    """Map every dotted name of a settings object to its value."""
    return {name: functools.reduce(getattr, name.split("."), settings) for name in flatten(type(settings))}


def is_among(name: str, names: tuple[str, ...]) -> bool:
    """Whether a setting, or the section that it is in, is among `names`."""
    return any(f"{name}.".startswith(f"{other}.") for other in names)


def build(cls: type, file: Path | None, overrides: dict[str, Any], allowed: tuple[str, ...] | None = None) -> Any:
    """Build a settings object from a YAML file (None: defaults) and overrides by dotted name.

    `allowed` restricts the overrides to these settings and sections. `cls.RENAMED` maps former names to new ones."""
    from pydantic import TypeAdapter, ValidationError  # Takes 0.1 s, which `--help` does not need.

    if file and not file.exists():
        raise ConfigError(f"{file}: no such config file")
    known = flatten(cls)
    values = _read_yaml(file.read_bytes(), str(file)) if file else {}
    values |= {name: (value, "command line") for name, value in overrides.items()}
    nested: dict[str, Any] = {}
    for name, (value, where) in values.items():
        if any(setting.startswith(f"{name}.") for setting in known):
            raise ConfigError(f"{where}: '{name}' is a section, expected settings below it, got {value!r}")
        if name not in known:
            raise ConfigError(f"{where}: unknown setting '{name}'{nearest(cls.RENAMED.get(name, name), known)}")
        if allowed is not None and name in overrides and not is_among(name, allowed):
            raise ConfigError(f"{name} cannot be set here, only {', '.join(allowed) or 'in training'}")
        section, _, leaf = name.rpartition(".")
        node = nested.setdefault(section, {}) if section else nested
        node[leaf] = None if value in (None, "", "~", "null") else os.path.expanduser(str(value))
    try:
        return TypeAdapter(cls).validate_python(nested)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(map(str, wrong["loc"]))
        raise ConfigError(f"{values[name][1]}: {name}: {wrong['msg'].lower()}, got {wrong['input']!r}") from None


def nearest(name: str, names: Any) -> str:
    """Return "; did you mean '...'?" for the closest of `names`, or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def to_yaml(settings: Any) -> str:
    """Return a settings object as YAML that `build` reads back."""
    content = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def yaml_differences(before: str, after: str, ignore: tuple[str, ...]) -> list[str]:
    """Compare two texts of `to_yaml`, except sections and settings in `ignore`: ["head.hidden: 3, now 4"]."""
    old, new = ({name: value for name, (value, _) in _read_yaml(text, "config").items()} for text in (before, after))
    changed = [name for name in old | new if old.get(name) != new.get(name) and not is_among(name, ignore)]
    return [f"{name}: {old.get(name)}, now {new.get(name)}" for name in changed]


def _read_yaml(text: str | bytes, file: str) -> dict[str, tuple[str, str]]:
    """Map the dotted name of each value to its text and its place, 'file:line'."""
    flat: dict[str, tuple[str, str]] = {}

    def visit(node: yaml.Node, section: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem="expected 'name: value' lines", problem_mark=node.start_mark)
        for key, value in node.value:
            name = section + str(key.value)
            if name in flat:
                raise yaml.MarkedYAMLError(problem=f"'{name}' is given twice", problem_mark=key.start_mark)
            if not isinstance(value, yaml.ScalarNode):
                visit(value, f"{name}.")
            elif section or value.value:  # Else a section with all its lines commented out.
                flat[name] = value.value, f"{file}:{key.start_mark.line + 1}"

    try:
        visit(yaml.compose(text, yaml.BaseLoader) or yaml.MappingNode("", []), "")
    except (yaml.YAMLError, RecursionError) as error:
        line = f":{error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise ConfigError(f"{file}{line}: not valid YAML: {getattr(error, 'problem', first_line(error))}") from None
    return flat
