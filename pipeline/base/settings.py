"""Settings: frozen dataclasses filled from a YAML file and the command line.

A setting has one dotted name, `head.hidden`: nested in YAML, `--head.hidden 512` on the command line, which wins.
pydantic checks the types.
"""

import dataclasses
import difflib
import os
import types
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pydantic
import pydantic.dataclasses
import yaml

from pipeline.base.errors import ConfigError


def settings(cls: type) -> type:
    """Make a class a frozen, keyword-only dataclass; the string below a field is its help text."""
    config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=config)


class Setting(NamedTuple):
    """One field of a settings class."""

    type: Any
    default: Any
    help: str

    @property
    def values(self) -> str:
        """What can be given, for help texts: `{a,b}`, `INT`, `PATH`."""
        kinds = get_args(self.type) or (self.type,)
        return "{" + ",".join(kinds) + "}" if isinstance(kinds[0], str) else kinds[0].__name__.upper()

    @property
    def default_text(self) -> str:
        return "null" if self.default is None else str(self.default)

    @property
    def nullable(self) -> bool:
        """Whether `null` is a value."""
        return types.NoneType in get_args(self.type)


def flatten(cls: type) -> dict[str, Setting]:
    """Map every dotted name of a settings class to its `Setting`."""
    flat = {}
    for name, field in cls.__pydantic_fields__.items():
        if dataclasses.is_dataclass(field.annotation):
            flat |= {f"{name}.{key}": setting for key, setting in flatten(field.annotation).items()}
        else:
            flat[name] = Setting(field.annotation, field.default, field.description or "")
    return flat


def is_among(name: str, names: tuple[str, ...]) -> bool:
    """Whether a setting, or a section that it is in, is among `names`."""
    return any(f"{name}.".startswith(f"{other}.") for other in names)


def build(cls: type, file: Path | None, overrides: dict[str, Any], allowed: tuple[str, ...] | None = None) -> Any:
    """Build a settings object from a YAML file (None: defaults) and overrides by dotted name.

    `allowed` restricts the overrides to these settings and sections. `cls.OUTDATED` maps former names and former
    `name=value` pairs to what became of them.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, or a value is invalid.
    """
    known = flatten(cls)
    sections = {name.rpartition(".")[0] for name in known} - {""}
    for name in overrides:
        if allowed is not None and name in known and not is_among(name, allowed):
            raise ConfigError(f"{name} cannot be changed here, only {', '.join(allowed)}")
    values = _read_yaml(file) if file else {}
    values |= {name: (value, "command line") for name, value in overrides.items()}
    nested: dict[str, Any] = {}
    for name, (value, where) in values.items():
        if name in sections:
            if value is None:  # A section with all its lines commented out.
                continue
            raise ConfigError(f"{where}: '{name}' is a section, expected settings below it, got {value!r}")
        for former in (name, f"{name}={value}"):
            if former in cls.OUTDATED:
                raise ConfigError(f"{where}: {former}: {cls.OUTDATED[former]}")
        if name not in known:
            raise ConfigError(f"{where}: unknown setting '{name}'{nearest(name, known)}")
        if value == "null" and known[name].nullable:
            value = None
        section, _, leaf = name.rpartition(".")
        node = nested.setdefault(section, {}) if section else nested
        node[leaf] = os.path.expanduser(value) if isinstance(value, str) else value
    try:
        return pydantic.TypeAdapter(cls).validate_python(nested)
    except pydantic.ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(str(part) for part in wrong["loc"][: 1 + (wrong["loc"][0] in sections)])
        raise ConfigError(f"{values[name][1]}: {name}: {wrong['msg'].lower()}, got {wrong['input']!r}") from None


def nearest(name: str, names: Any) -> str:
    """Return "; did you mean '...'?" for the closest of `names`, or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def to_yaml(obj: Any) -> str:
    """Return a settings object as YAML that `build` reads back."""
    content = pydantic.TypeAdapter(type(obj)).dump_python(obj, mode="json")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def yaml_differences(before: str, after: str, ignore: tuple[str, ...]) -> list[str]:
    """Compare two texts of `to_yaml`, except sections and settings in `ignore`: ["head.hidden: 3, now 4"]."""
    old, new = (_flatten_yaml(text, "") for text in (before, after))
    names = [name for name in old | new if not is_among(name, ignore)]
    values = [(name, *(texts.get(name, (None,))[0] for texts in (old, new))) for name in names]
    return [f"{name}: {was}, now {now}" for name, was, now in values if was != now]


def _read_yaml(file: Path) -> dict[str, tuple[Any, str]]:
    try:
        return _flatten_yaml(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the config: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None


def _flatten_yaml(text: str, file: str) -> dict[str, tuple[Any, str]]:
    """Map the dotted name of each value to (value, 'file:line')."""
    loader = yaml.SafeLoader(text)
    flat: dict[str, tuple[Any, str]] = {}

    def visit(node: yaml.MappingNode, prefix: str) -> None:
        names = set()
        for key, value in node.value:
            name = prefix + str(loader.construct_object(key, deep=True))
            if name in names:  # PyYAML would drop the first without a word.
                raise yaml.MarkedYAMLError(problem=f"'{name}' is given twice", problem_mark=key.start_mark)
            names.add(name)
            if isinstance(value, yaml.MappingNode) and value.tag.endswith(":map"):
                visit(value, f"{name}.")
            else:
                flat[name] = loader.construct_object(value, deep=True), f"{file}:{key.start_mark.line + 1}"

    root = loader.get_single_node()
    if isinstance(root, yaml.MappingNode):
        visit(root, "")
    elif root is not None:
        raise ConfigError(f"{file}:{root.start_mark.line + 1}: expected 'name: value' lines")
    return flat
