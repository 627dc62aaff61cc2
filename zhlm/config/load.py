"""YAML file and --set overrides -> RunConfig, with errors that name the path in the file and the remedy."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from zhlm.config.objective import BY_NAME
from zhlm.config.schema import RunConfig
from zhlm.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.1 wants 1.0e-4) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|\.(?:inf|nan))$", re.I),
    list("-+0123456789."),
)
# No setting is a date; without this, `name: 2026-11-20` would not be text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the words that _Loader would take for numbers."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's config and apply `a.b=value` overrides.

    Raises: ConfigError for an unreadable file, bad YAML, an unknown key, a wrong type or a contradiction.
    """
    return make_config(_parse(_read(Path(path)), str(path)), overrides, str(path))


def make_config(data: dict[str, Any], overrides: Sequence[str], origin: str) -> RunConfig:
    """Plain data and `a.b=value` overrides -> RunConfig; `origin` names them in messages.

    Raises: ConfigError as load_config does.
    """
    for override in overrides:
        _apply(data, override)
    try:
        # Through JSON, because strict models take a list for a tuple only there.
        return RunConfig.model_validate_json(json.dumps(data, default=_refuse))
    except ValidationError as error:
        raise ConfigError(_explain(error, origin), path=origin) from None


def dump_config(config: RunConfig) -> str:
    """The resolved config, every default written out, as YAML that load_config reads back."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config: {path} does not exist; name a file such as configs/sample.yaml") from None
    except IsADirectoryError:
        raise ConfigError(f"config: {path} is a folder; name one YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config: {path} has a byte at offset {error.start} that is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"config: {path} cannot be read ({error.strerror}); check its permissions") from None


def _parse(text: str, origin: str) -> dict[str, Any]:
    data = _load_yaml(text, origin)
    if not isinstance(data, dict):
        raise ConfigError(f"config: {origin} holds {type(data).__name__}, expected sections such as name, base, streams, train")
    return data


def _load_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"config: {origin}{line} is not valid YAML: {error.problem}; correct that line") from None
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"config: {origin} is not valid YAML: {reason}; remove that character") from None


def _refuse(value: Any) -> Any:
    """What YAML can hold and a setting cannot: !!binary, !!set, !!timestamp."""
    raise ConfigError(
        f"config: {value!r} is {type(value).__name__}, expected text, a number, true or false, a list or a section; rewrite it"
    )


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"config: --set {override!r} has no value; write --set train.steps=100")
    *parents, last = key.split(".")
    node: Any = data
    for step, parent in enumerate(parents):
        child = _child(node, parent, key)
        if child is None:
            child = {}
            node[parent] = child
        if not isinstance(child, dict | list):
            place = ".".join(parents[: step + 1])
            raise ConfigError(f"config: --set {key}: {place} is {child!r}, which has no fields; set {place} itself")
        node = child
    parsed = _load_yaml(value, f"--set {override!r}")
    if isinstance(node, list):
        _child(node, last, key)
        node[int(last)] = parsed
    else:
        node[last] = parsed


def _child(node: Any, name: str, key: str) -> Any:
    if isinstance(node, list):
        if not name.isdigit() or int(name) >= len(node):
            raise ConfigError(f"config: --set {key}: {name!r} is not an entry of a list of {len(node)}; count from 0")
        return node[int(name)]
    return node.get(name)


def _explain(error: ValidationError, origin: str) -> str:
    """The first problem as one line; a union reports one line per member, so the deepest place wins."""
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    members = [p for p in problems if _place(p["loc"])[: len(_place(first["loc"]))] == _place(first["loc"])]
    first = max(members, key=lambda p: len(_place(p["loc"])))  # the first of equals
    place = ".".join(_place(first["loc"])) or "the file"
    more = len({str(p["loc"][:2]) for p in problems}) - 1
    tail = f" (and {more} more)" if more > 0 else ""
    if first["type"] == "extra_forbidden":
        return f"config: {origin}: unknown key {place}{_near(first['loc'])}{tail}"
    if first["type"] == "missing":
        return f"config: {origin}: {place} is missing; add it{tail}"
    message = " or ".join(p["msg"].removeprefix("Value error, ") for p in members if _place(p["loc"]) == _place(first["loc"]))
    if first["type"] == "value_error":  # ours says it all, also beside what another member of a union expected
        return f"config: {origin}: {place}: {first['msg'].removeprefix('Value error, ')}{tail}"
    return f"config: {origin}: {place} is {first['input']!r}; {message[0].lower()}{message[1:]}{tail}"


def _place(loc: tuple[str | int, ...]) -> list[str]:
    """Keys and list positions, without pydantic's names for the members of a union."""
    if loc[:1] == ("objective",) and loc[-1] != "objective" and loc[1] in BY_NAME:
        loc = ("objective", *loc[2:])
    return [str(part) for part in loc if not (isinstance(part, str) and ("[" in part or part in ("int", "constrained-int")))]


def _near(loc: tuple[int | str, ...]) -> str:
    """`; did you mean ...?` or the keys that exist at this place."""
    model: Any = RunConfig
    for part in loc[:-1]:
        model = _model_below(model, part)
    keys = sorted(model.model_fields) if model else []
    close = difflib.get_close_matches(str(loc[-1]), keys, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(keys)}"


def _model_below(model: Any, part: int | str) -> Any:
    """The section model under a field, through `| None`, `list[...]` and the names of objectives; an index stays where it is."""
    if model is None or isinstance(part, int):
        return model
    if model in BY_NAME.values():
        return BY_NAME.get(part)
    field = model.model_fields.get(part)
    queue = [field.annotation] if field else []
    while queue:
        kind = queue.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        queue += get_args(kind)
    return None
