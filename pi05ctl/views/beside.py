"""A comparison of runs -> tables, JSON and sentences. Pure."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pi05.intervals import Interval
from pi05.results import interval
from pi05ctl.runs.comparison import Comparison, Pair, Subject
from pi05ctl.spec.runspec import format_value
from pi05ctl.views import tables

RUNS_HEADER = ("RUN", "EVALUATION", "POLICY", "EPISODES", "SUCCESS ONCE", "AT END", "95 % INTERVAL", "STEPS TO SUCCESS")
PAIRS_HEADER = (
    *("RUN", "AGAINST", "SEEDS", "BOTH", "ONLY RUN", "ONLY AGAINST", "NEITHER"),
    *("DIFFERENCE", "95 % INTERVAL", "P", "STEPS", "RUN IS"),
)


def run_row(subject: Subject) -> tuple[str, ...]:
    """Return a run as the cells under RUNS_HEADER."""
    found = subject.evaluation
    numbers = found.metrics
    return (
        subject.run,
        subject.evaluated,
        found.described,
        found.progress,
        f"{100 * numbers['success_once']:.0f} %",
        f"{100 * numbers['success_at_end']:.0f} %",
        tables.percents(interval(numbers)),
        tables.steps(found.steps_to_success),
    )


def pair_row(pair: Pair) -> tuple[str, ...]:
    """Return a pair as the cells under PAIRS_HEADER."""
    return (
        pair.run,
        pair.against,
        str(pair.seeds),
        *(str(number) for number in (pair.both, pair.only_run, pair.only_against, pair.neither)),
        f"{100 * pair.difference.value:+.0f}",
        f"{100 * pair.difference.low:+.0f} to {100 * pair.difference.high:+.0f}",
        f"{pair.p:.2g}",
        tables.steps(pair.steps, "+"),
        pair.verdict,
    )


def settings_table(found: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the settings that differ: the header, and a row a setting."""
    header = ("SETTING", *(subject.run for subject in found.subjects))
    return header, [(path, *map(format_value, values)) for path, values in found.differing.items()]


def sentence(pair: Pair) -> str:
    """Return what a pair says, with its numbers."""
    value, low, high = (100 * one for one in pair.difference)
    what = {"better": "is better than", "worse": "is worse than", "equal": "equals"}[pair.verdict]
    alone = f"{pair.only_run} of {pair.seeds} seeds it alone solved, {pair.only_against} the other alone"
    return (
        f"{pair.run} {what} {pair.against}, as far as these seeds tell: {value:+.0f} points [{low:+.0f}, {high:+.0f}]; "
        f"{alone} (p = {pair.p:.2g})."
    )


def comparison_json(found: Comparison) -> str:
    """Return a comparison as JSON, rates as shares and times in control steps."""
    content: dict[str, Any] = {
        "task": found.subjects[0].task,
        "runs": [_told(subject) for subject in found.subjects],
        "pairs": [
            {**asdict(pair), "difference": _plain(pair.difference), "steps": _plain(pair.steps)} for pair in found.pairs
        ],
        "settings": {path: list(values) for path, values in found.differing.items()},
        "remarks": list(found.remarks),
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _told(subject: Subject) -> dict[str, Any]:
    found = subject.evaluation
    return {
        "run": subject.run,
        "evaluation": subject.evaluated,
        "policy": found.policy,
        "checkpoint": found.step,
        "metrics": found.metrics,
        "steps_to_success": _plain(found.steps_to_success),
        "failures": found.failures,
        "solved": {str(seed): solved for seed, solved in subject.solved.items()},
        "success_over_steps": [asdict(rate) for rate in subject.course],
        "loss": [list(point) for point in subject.losses],
        "loss_held_out": [list(point) for point in subject.held_out],
    }


def _plain(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else found._asdict()


def rows(found: Comparison) -> Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]:
    """Return the tables of a comparison, each its header and rows: runs, pairs, settings that differ."""
    runs = RUNS_HEADER, [run_row(one) for one in found.subjects]
    pairs = PAIRS_HEADER, [pair_row(one) for one in found.pairs]
    return [runs, pairs, settings_table(found)] if found.differing else [runs, pairs]
