"""Every option as a person asks about it: path, what it may be, what each preset says, and its sentence.

All of it is read from where it is decided: bounds from the sections' types, sentences from their docstrings, values
from the presets. Knows no terminal.
"""

import functools
import inspect
import re
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, JsonValue

from pi05.errors import nearest
from pi05ctl.errors import UsageError
from pi05ctl.spec.runspec import Options, RunSpec, fields, presets, resolve

_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "none"}
_ITEM = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<sentence>.*)")


@dataclass(frozen=True)
class Option:
    """One value that a job can be told.

    Attributes:
        path: As `--set` takes it.
        kind: What it may be, in words.
        values: What each preset says, by its name, for the task that was asked about.
        sentence: What it is.
    """

    path: str
    kind: str
    values: dict[str, JsonValue]
    sentence: str


def options(task: str, section: str = "") -> list[Option]:
    """Return all options, or those whose path is `section` or begins with it.

    Args:
        task: Whose presets' values are shown; they differ in steps and limits.
        section: A section (`train`, `train.optimizer`) or the path of one option.

    Raises:
        ConfigError: The task does not exist.
        UsageError: No option is called so.
    """
    values = {
        name: resolve(RunSpec(kind="train", task=task, preset=name)).model_dump(mode="json") for name in presets()
    }
    found = [
        Option(
            path,
            _kind(_schema(of)[name]),
            {preset: _at(said, path) for preset, said in values.items()},
            _sentences(of)[name],
        )
        for path, of, name in fields(Options)
    ]
    chosen = [one for one in found if f"{one.path}.".startswith(f"{section}.") or not section]
    if not chosen:
        sections = list(dict.fromkeys(one.path.rpartition(".")[0] for one in found))
        hint = nearest(section, [*sections, *(one.path for one in found)])
        raise UsageError(f"no section or option is called {section!r}{hint or ';'} sections are {', '.join(sections)}")
    return chosen


def _at(values: dict[str, Any], path: str) -> JsonValue:
    for name in path.split("."):
        values = values[name]
    return cast("JsonValue", values)


# ---- What a section says of itself -----------------------------------------------------------------------------------
@functools.cache
def _schema(section: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of each field."""
    return section.model_json_schema()["properties"]


@functools.cache
def _sentences(section: type[BaseModel]) -> dict[str, str]:
    """Return what the Attributes of a docstring say of each field."""
    _, _, attributes = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")
    found = dict.fromkeys(section.model_fields, "")
    for item in re.split(r"\n(?= {4}\w)", f"\n{attributes}"):
        if match := _ITEM.match(" ".join(item.split())):
            found |= dict.fromkeys(match["names"].split(", "), match["sentence"])
    return found


def _kind(schema: dict[str, Any]) -> str:
    """Return what a value may be, from its JSON schema."""
    if alternatives := schema.get("anyOf"):
        return " or ".join(map(_kind, alternatives))
    if known := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " | ".join(map(str, known))
    if schema["type"] == "array":
        if fixed := schema.get("prefixItems"):
            return f"[{', '.join(map(_kind, fixed))}]"
        return f"list of {_kind(schema['items'])}"
    bounds = " and ".join(f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema)
    return f"{_WORDS[schema['type']]} {bounds}".strip()
