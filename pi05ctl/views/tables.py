"""RunStatus and results -> tables and JSON. Pure: no disk, no clock, no terminal."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pi05 import tasks
from pi05.results import interval
from pi05ctl.runs.pooling import Pool
from pi05ctl.runs.status import RunStatus, success
from pi05ctl.stored.evaluations import Evaluation
from pi05ctl.views import published

HEADER = ("RUN", "TASK", "KIND", "STATE", "PROGRESS", "SPEED", "METRIC", "LEFT", "AGE", "WHY")
RESULTS_HEADER = (
    *("TASK", "RUN", "PRESET", "POLICY", "TRAININGS", "EPISODES", "SUCCESS ONCE", "AT END", "95 % INTERVAL"),
    *("STEPS TO SUCCESS", "FAILED", "OTHERS REPORT", "AIM"),
)
POLICIES_HEADER = ("TASK", "SUCCESS", "95 % INTERVAL", "EPISODES", "CHECKPOINT", "STATE", "RUN", "WHY")
_DROP = (
    *("OTHERS REPORT", "FAILED", "STEPS TO SUCCESS", "AT END", "TASK", "KIND", "SPEED", "AGE", "METRIC", "LEFT"),
    *("AGAINST", "STEPS", "BOTH", "NEITHER", "EVALUATION"),
)
"""Columns that a narrow terminal does without, in this order; task and kind are in the run's name anyway."""
_COLOURS = {
    "Running": "32",
    "Done": "1;32",
    "Failed": "1;31",
    "Stalled": "1;33",
    "Retrying": "33",
    "Cancelled": "35",
}
"""How a terminal shows a state (SGR codes); other states have its own colour."""


@dataclass(frozen=True)
class Result:
    """What one finished evaluation found, or several of one recipe that differ in the training seed.

    Attributes:
        task: Name of the task.
        run: The evaluation; of several the newest.
        preset: What it was submitted with.
        policy: `checkpoint 2400`, `oracle` or `untrained`; with `, no camera` when it does not see.
        train_run: Whose checkpoint it was.
        metrics: success_once, success_at_end, episodes and, of one, the ends of its interval; empty while episodes are
            missing. Of several the means.
        interval: Of success_once, 95 %; of several over episodes and trainings.
        steps_to_success: Median and its interval, in control steps; of several the mean and range of their medians.
        episodes: How many there are: `50`, or `31 of 50` while some are missing.
        failures: How many failed where.
        others: What other methods report on the task, in %.
        aim: Of a full run, in %.
        runs: All of them.
        seeds: success_once by training seed, where there are several.
    """

    task: str
    run: str
    preset: str
    policy: str
    train_run: str | None
    metrics: dict[str, float]
    interval: tuple[float, float] | None
    steps_to_success: tuple[float, float, float] | None
    episodes: str
    failures: dict[str, int]
    others: dict[str, float]
    aim: float
    runs: tuple[str, ...]
    seeds: dict[int, float]


@dataclass(frozen=True)
class Policy:
    """What has become of a task: a row of the one table of all tasks.

    Attributes:
        task: Name of the task.
        run: The newest run that is to end with a success rate (or, without one, the newest of any kind); None: none.
        state: How that stands.
        metrics: success_once, success_at_end, wilson_low, wilson_high, episodes; empty without a result.
        checkpoint: Step of what was evaluated.
        why: Why there is no result: a reason with its remedy, or how far it is.
    """

    task: str
    run: str | None
    state: str
    metrics: dict[str, float]
    checkpoint: int | None
    why: str


def row(status: RunStatus) -> tuple[str, ...]:
    """Return a run as the cells under HEADER."""
    why = status.why
    if status.state in ("Failed", "Stalled", "Pending") and status.remedy:
        why = f"{why}; {status.remedy}" if why else status.remedy
    skipped = int(status.metrics.get("skipped", 0))
    why = "; ".join(filter(None, (why, f"{skipped} steps skipped" if skipped else "", *status.changed[-1:])))
    return (
        status.run,
        status.task,
        status.kind,
        status.state,
        progress(status),
        ", ".join(filter(None, (speed(status.seconds_per_step), _used(status.metrics)))),
        metric(status),
        "" if status.left is None else duration(status.left),
        "" if status.age is None else duration(status.age),
        " ".join(why.split()),
    )


def progress(status: RunStatus) -> str:
    """Return `12,500/30,000  42 %`; of a run that is done only how much it was."""
    if status.step is None:
        return ""
    of_stage = f"{status.stage.partition('-')[0]} " if status.stage and status.state != "Done" else ""
    unit = f" {status.unit}" if status.unit and status.unit != "steps" else ""
    if not status.total or status.state == "Done":
        return f"{of_stage}{status.step:,}{unit}"
    percent = 100 if status.step >= status.total else min(round(100 * status.step / status.total), 99)
    return f"{of_stage}{status.step:,}/{status.total:,}{unit}  {percent} %"


def speed(seconds: float | None) -> str:
    """Return the seconds a step (a demonstration, an episode) took."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2g} s"


def metric(status: RunStatus) -> str:
    """Return the number that matters most for this kind of run."""
    if text := success(status.metrics):
        return f"success {text}"
    if "loss" in status.metrics and status.kind != "demos":
        held_out = status.metrics.get("loss_held_out")
        return f"loss {status.metrics['loss']:.4f}" + ("" if held_out is None else f", held out {held_out:.4f}")
    if "yield" in status.metrics:
        return f"yield {100 * status.metrics['yield']:.0f} %"
    return ""


def _used(metrics: dict[str, float]) -> str:
    """Return which share of the chips' peak a training uses, where that is known."""
    return f"{100 * metrics['mfu']:.0f} % MFU" if "mfu" in metrics else ""


def duration(seconds: float) -> str:
    """Return `42 s`, `3 m`, `1 h 10`, `9 h` or `3 d`, as precise as a table needs.

    What lies in the future, because a clock was set back, has an age of 0 s.
    """
    seconds = max(seconds, 0.0)
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes == 0:
        return f"{int(seconds)} s"
    if hours == 0:
        return f"{minutes} m"
    if hours < 6:
        return f"{hours} h {minutes % 60:02d}"
    return f"{hours} h" if hours < 48 else f"{hours // 24} d"


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return aligned columns for a file or a pipe: no line is cut, no space at its end."""
    return "\n".join(_lines(header, list(rows), header)) + "\n"


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int, colour: bool = True) -> str:
    """Return the same for a terminal: states in colour, and no line longer than it is wide.

    A reason that does not fit goes under its run; then columns are left out rather than cut.
    """
    columns = [name for name in header if any(row[header.index(name)] for row in rows)]
    reasons = [""] * len(rows)
    lines = _lines(header, rows, columns)
    if max(map(len, lines)) > width and "WHY" in columns:
        columns.remove("WHY")
        reasons = [row[header.index("WHY")] for row in rows]
    for name in _DROP:
        lines = _lines(header, rows, columns)
        if max(map(len, lines)) > width and name in columns:
            columns.remove(name)
    title, *body = _lines(header, rows, columns)
    text = [_painted(title, "1", colour)]
    for line, row, reason in zip(body, rows, reasons, strict=True):
        text.append(_with_state(line, row, colour))
        text += [_painted(f"    {reason}", "2", colour)] if reason else []
    return "\n".join(text) + "\n"


def status_json(statuses: Sequence[RunStatus]) -> str:
    """Return the statuses as a JSON list, every field of RunStatus, times in seconds."""
    return _json([asdict(status) for status in statuses])


def submissions_json(submissions: Iterable[tuple[str, str]], storage: str) -> str:
    """Return what became of submissions as a JSON list."""
    return _json([{"run": run, "outcome": outcome, "writes": f"{storage}/runs/{run}"} for run, outcome in submissions])


def results(found: Iterable[Pool]) -> list[Result]:
    """Return what finished evaluations found, in the order of the task table and the newest first."""
    order = list(tasks.TASKS)
    rows = sorted(found, key=lambda pool: (order.index(pool.newest.status.task), -(pool.newest.status.created or 0.0)))
    return [_result(pool) for pool in rows if pool.newest.evaluation.episodes]


def _result(pool: Pool) -> Result:
    status, evaluation = pool.newest.status, pool.newest.evaluation
    return Result(
        task=status.task,
        run=status.run,
        preset=pool.newest.preset,
        policy=evaluation.described,
        train_run=status.train_run,
        metrics=pool.metrics,
        interval=pool.interval,
        steps_to_success=pool.steps_to_success,
        episodes=evaluation.progress,
        failures=pool.failures,
        others={anchor.name: anchor.rates[status.task] for anchor in published.of(status.task)},
        aim=published.AIM[status.task],
        runs=tuple(one.status.run for one in pool.members),
        seeds=pool.rates,
    )


def result_rows(found: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the cells under RESULTS_HEADER for every result, and for every task that has none yet."""
    rows = [(result.task, result_row(result)) for result in found]
    without = [(task, _no_result(task)) for task in tasks.TASKS if task not in {result.task for result in found}]
    order = list(tasks.TASKS)
    return [row for _, row in sorted(rows + without, key=lambda item: order.index(item[0]))]


def result_row(result: Result) -> tuple[str, ...]:
    """Return a result as the cells under RESULTS_HEADER."""
    numbers, count = result.metrics, len(result.runs)
    return (
        result.task,
        result.run + (f" and {count - 1} more" if count > 1 else ""),
        result.preset,
        result.policy,
        f"{count}: {_range(result.seeds)}" if result.seeds else "",
        f"{count} x {result.episodes}" if count > 1 else result.episodes,
        _percent(numbers.get("success_once")),
        _percent(numbers.get("success_at_end")),
        percents(result.interval),
        steps(result.steps_to_success),
        ", ".join(f"{count} {name}" for name, count in result.failures.items()),
        published.short(result.task),
        f"{result.aim:g} %",
    )


def _range(rates: Mapping[int, float]) -> str:
    """Return from where to where success goes over training seeds."""
    return f"{100 * min(rates.values()):.0f} to {100 * max(rates.values()):.0f} %"


def _no_result(task: str) -> tuple[str, ...]:
    """Return the cells of a task that was not evaluated."""
    empty = len(RESULTS_HEADER) - 4
    return (task, "none yet", *[""] * empty, published.short(task), f"{published.AIM[task]:g} %")


def policy(task: str, status: RunStatus | None, evaluation: Evaluation | None) -> Policy:
    """Return what has become of a task.

    Args:
        task: Its name.
        status: The run that stands for it.
        evaluation: What that has found, if it is done and an evaluation is a part of it.
    """
    if status is None:
        return Policy(task, None, "", {}, None, f"no run yet; pi05ctl submit pipeline {task}")
    metrics = evaluation.metrics if evaluation else {}
    why = "" if metrics else _without_result(status)
    return Policy(task, status.run, status.state, metrics, evaluation.step if evaluation else None, why)


def _without_result(status: RunStatus) -> str:
    """Return why a run has no success rate: what went wrong and the remedy, or how far it is."""
    if status.state == "Done":
        return f"not evaluated; pi05ctl submit eval {status.task}"
    return row(status)[-1] or progress(status)


def policy_row(found: Policy) -> tuple[str, ...]:
    """Return a policy as the cells under POLICIES_HEADER."""
    return (
        found.task,
        _percent(found.metrics.get("success_once")),
        percents(interval(found.metrics)),
        f"{found.metrics['episodes']:.0f}" if "episodes" in found.metrics else "",
        "" if found.checkpoint is None else str(found.checkpoint),
        found.state,
        found.run or "",
        found.why,
    )


def policies_json(found: Sequence[Policy]) -> str:
    """Return policies as a JSON list."""
    return _json([asdict(policy) for policy in found])


def results_json(found: Sequence[Result]) -> str:
    """Return the results as a JSON list."""
    return _json([asdict(result) for result in found])


def steps(found: tuple[float, float, float] | None, sign: str = "") -> str:
    """Return a number of control steps with its interval: `52 [48, 57]`."""
    return "" if found is None else f"{found[0]:{sign}.0f} [{found[1]:{sign}.0f}, {found[2]:{sign}.0f}]"


def percents(ends: tuple[float, float] | None) -> str:
    """Return the interval of a rate: `79 to 96 %`."""
    return "" if ends is None else f"{100 * ends[0]:.0f} to {100 * ends[1]:.0f} %"


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.0f} %"


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[str]) -> list[str]:
    """Return the header and the rows, of these columns, aligned."""
    places = [header.index(name) for name in columns]
    cells = [[line[place] for place in places] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return [line.rstrip() for line in padded]


def _with_state(line: str, row: Sequence[str], colour: bool) -> str:
    """Return a line with its state in colour."""
    state = next((cell for cell in row if cell in _COLOURS), None)
    return line if state is None else line.replace(f" {state}", f" {_painted(state, _COLOURS[state], colour)}", 1)


def _painted(text: str, code: str, colour: bool) -> str:
    return f"\033[{code}m{text}\033[0m" if colour else text
