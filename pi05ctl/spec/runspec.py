"""What to run: a RunSpec (kind, task, preset, overrides) -> Options, every value a job can be told, checked.

A preset is a TOML file beside this module with the sections of `Options`, and overrides for single tasks under
[tasks.NAME]; "none" is no value. An override is `section.field=value`, the same path in a preset, on the command line
and in job.json. This module reads presets and knows no storage, no target and no clock.
"""

import difflib
import json
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, Field, JsonValue, ValidationError

from pi05 import tasks
from pi05.config import (
    ComputeConfig,
    Convention,
    DemosConfig,
    EvalConfig,
    ModelConfig,
    Natural,
    Section,
    TrainConfig,
    explain,
)
from pi05.errors import nearest
from pi05ctl.errors import UsageError, unknown

Kind = Literal["demos", "train", "eval", "pipeline"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT_PRESET = {"local": "tiny", "cluster": "full"}
"""A laptop learns tiny, a cluster the real model; `--preset` says otherwise."""

_PRESETS = Path(__file__).with_name("presets")


class Options(Section):
    """Every value a job can be told, by section; a preset is these sections as TOML."""

    convention: Convention
    demos: DemosConfig
    model: ModelConfig
    compute: ComputeConfig
    train: TrainConfig
    eval: EvalConfig


class RunSpec(Section):
    """What was asked for, as the user says it; run.json keeps it.

    Attributes:
        kind: demos, train, eval or pipeline.
        task: Name of the task.
        preset: Where the values come from.
        target: Where it runs; no part of the run's name.
        overrides: Values that differ from the preset, by path (`train.steps`).
        again: 0, or the how-many-th repetition on purpose.
        train_run: For an evaluation: the training run whose checkpoints it takes; None means the one that the same
            preset and overrides name.
        goal: For a pipeline: the run that was asked for and comes with what it needs; None: the pipeline itself.
    """

    v: Literal[1] = 1
    kind: Kind
    task: str
    preset: str
    target: str = "local"
    overrides: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    again: Natural = 0
    train_run: str | None = None
    goal: Literal["train", "eval"] | None = None

    def sibling(self, kind: Kind, again: int = 0, train_run: str | None = None) -> "RunSpec":
        """Return the spec of another kind with the same options: a stage, or what this run reads."""
        return self.model_copy(update={"kind": kind, "again": again, "train_run": train_run, "goal": None})

    def command(self, kind: Kind | None = None) -> str:
        """Return the command line that asks for this run again, or for another kind with the same options."""
        words = ["pi05ctl", "submit", kind or self.goal or self.kind, self.task, "--target", self.target]
        if self.train_run and kind in (None, "eval"):
            words += ["--of", self.train_run]
        words += ["--preset", self.preset]
        if self.again and kind in (None, self.kind):
            words.append("--again")
        for path, value in sorted(self.overrides.items()):
            words += ["--set", f"{path}={format_value(value)}"]
        return shlex.join(words)


def presets() -> list[str]:
    """Return the names of the presets, smallest model first."""
    order = ["tiny", "micro", "small", "lora", "full"]
    names = sorted(path.stem for path in _PRESETS.glob("*.toml"))
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def resolve(spec: RunSpec) -> Options:
    """Return the preset with the overrides and the task's own numbers put in, checked as a whole.

    Raises:
        ConfigError: The task does not exist.
        UsageError: The preset or a path does not exist, or a value is impossible.
    """
    task = tasks.find(spec.task)
    data = _read_preset(spec.preset)
    of_task = data.pop("tasks", {}).get(task.name, {})
    for path, value in (of_task | spec.overrides).items():
        assign(data, path, value)
    try:
        options = Options.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        origin = "--set" if spec.overrides else f"preset {spec.preset}"
        raise UsageError(f"{origin}: {explain(error)}") from error
    options = _fill(options, task)
    _check(options)
    return options


def parse_assignment(text: str) -> tuple[str, JsonValue]:
    """Return path and value of `section.field=value`.

    Raises:
        UsageError: There is no `=`, or no option has this path.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals:
        raise UsageError(f"--set {text!r} has no value; write it as --set train.steps=1000")
    _check_path(path)
    return path, parse_value(value.strip())


def parse_value(text: str) -> JsonValue:
    """Return a number, true or false, list or string written as in TOML; the quotes of a string may be left out.

    `none` stands for no value, which TOML has no word for.
    """
    if text.lower() in ("none", "null"):
        return None
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return _unquoted(text)
    value = table.get("value")
    if set(table) != {"value"} or not _is_plain(value):
        return text
    return cast("JsonValue", value)


def format_value(value: JsonValue) -> str:
    """Return the shortest text that parse_value reads as `value`."""
    if value is None:
        return "none"
    if isinstance(value, str) and parse_value(value) == value and value == value.strip():
        return value
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON has as it is, and TOML not


def _unquoted(text: str) -> JsonValue:
    """Return a list or string whose strings lack their quotes: `[base_camera, hand_camera]`."""
    if text.startswith("[") and text.endswith("]"):
        return [parse_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    return text


def _is_plain(value: object) -> bool:
    """Return whether JSON can say it (TOML also has dates, infinities and tables)."""
    if isinstance(value, list):
        return all(_is_plain(item) for item in cast("list[object]", value))
    if isinstance(value, float):
        return value - value == 0.0
    return isinstance(value, bool | int | str)


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield the path of every value below a section, the section that it is directly in, and its name there."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", section, name


def _check_path(path: str) -> None:
    """Raise UsageError, naming the nearest path, when no value has this one."""
    known = [name for name, *_ in fields(Options)]
    if path in known:
        return
    inside = [name for name in known if name.startswith(f"{path}.")]
    if inside:
        raise UsageError(f"{path} is a section; set one of its values: {', '.join(inside)}")
    hint = _nearest_path(path.lower(), known) or "; pi05ctl options lists all"
    raise UsageError(f"unknown option {path!r}{hint}")


_OTHER_WORDS = {
    "lr": "train.optimizer.peak_lr",
    "learning_rate": "train.optimizer.peak_lr",
    "warmup": "train.optimizer.warmup_steps",
    "grad_clip": "train.optimizer.clip_norm",
    "max_grad_norm": "train.optimizer.clip_norm",
    "epochs": "train.steps",
    "iterations": "train.steps",
    "num_train_steps": "train.steps",
    "save_interval": "train.save_every",
    "save_freq": "train.save_every",
    "log_freq": "train.log_every",
    "precision": "compute.dtype",
    "remat": "compute.recompute",
    "gradient_checkpointing": "compute.recompute",
    "gradient_accumulation_steps": "compute.microbatches",
    "pretrained_path": "train.weights",
    "num_demos": "demos.count",
    "num_traj": "demos.count",
    "chunk_size": "model.action_horizon",
    "n_action_steps": "eval.execute_steps",
    "replan_steps": "eval.execute_steps",
    "num_steps": "eval.sampling_steps",
    "num_envs": "eval.environments",
    "num_episodes": "eval.episodes",
    "n_episodes": "eval.episodes",
}
"""What openpi, LeRobot, ManiSkill and others call an option of ours."""


def _nearest_path(path: str, known: list[str]) -> str:
    """Return a hint: as others call it, within the section that was named, by the last name, then anywhere."""
    section, last = path.partition(".")[0], path.rpartition(".")[2]
    if last not in {name.rpartition(".")[2] for name in known}:
        theirs = difflib.get_close_matches(last, _OTHER_WORDS, n=1, cutoff=0.85)
        if theirs:
            return f"; did you mean {_OTHER_WORDS[theirs[0]]!r}?"
    same_section = [name for name in known if name.startswith(f"{section}.")]
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    both = [name for name in same_section if name in same_name]
    hints = (nearest(path, names) for names in (both, same_section, same_name, known))
    return next((hint for hint in hints if hint), "")


def _read_preset(name: str) -> dict[str, Any]:
    """Return a preset's sections; raise UsageError naming the nearest one when it does not exist."""
    known = presets()
    if name not in known:
        raise unknown("preset", name, known)
    return _with_none(tomllib.loads((_PRESETS / f"{name}.toml").read_text()))


def _with_none(value: Any) -> Any:
    """Return what a preset says with None for "none", as in an assignment: TOML has no word for no value."""
    if isinstance(value, dict):
        return {name: _with_none(inner) for name, inner in cast("dict[str, Any]", value).items()}
    return None if value == "none" else value


def assign(data: dict[str, Any], path: str, value: JsonValue) -> None:
    """Put one value into sections, in place; raise UsageError when no option has its path."""
    _check_path(path)
    *sections, field = path.split(".")
    for section in sections:
        data = data.setdefault(section, {})
    data[field] = value


def _fill(options: Options, task: tasks.Task) -> Options:
    """Put in what None stands for, so that job.json shows it and both spellings name the same run."""
    demos, train, evaluation = options.demos, options.train, options.eval
    optimizer = train.optimizer.model_copy(update={"decay_steps": train.optimizer.decay_steps or train.steps})
    return options.model_copy(
        update={
            "demos": demos.model_copy(update={"count": demos.count or task.demos}),
            "train": train.model_copy(update={"optimizer": optimizer}),
            "eval": evaluation.model_copy(update={"max_steps": evaluation.max_steps or task.eval_limit}),
        }
    )


def _check(options: Options) -> None:
    """Raise UsageError when sections contradict each other; what one section can see, it checks itself."""
    batch, devices = options.train.batch_size, options.train.fsdp_devices
    if devices and batch % devices:
        below = batch - batch % devices
        use = f"{below} or {below + devices}" if below else str(devices)
        raise UsageError(
            f"train.batch_size {batch} is not divisible by {devices} devices (train.fsdp_devices); use {use}"
        )
    horizon = options.model.action_horizon
    if options.eval.execute_steps > horizon:
        raise UsageError(
            f"eval.execute_steps {options.eval.execute_steps} is more than the "
            f"{horizon} actions of a chunk (model.action_horizon); use {horizon // 2}"
        )
    demos = options.demos
    last = demos.first_seed + (demos.count or 0) * demos.max_attempts_per_demo - 1
    if last not in tasks.DEMO_SEEDS:
        raise UsageError(
            f"demonstrations may try the seeds {demos.first_seed} to {last}, but only those to "
            f"{tasks.DEMO_SEEDS.stop - 1} are theirs; lower demos.first_seed or demos.count"
        )
