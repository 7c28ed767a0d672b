"""A run -> its report: one HTML page that needs nothing else, readable on a phone, in light and dark.

`write` reads storage through a target; `page` is pure; its parts are in sections.py.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from pi05 import tasks
from pi05.config import EvalJob
from pi05.events import Event, parse
from pi05.storage import RunPaths
from pi05ctl.errors import UsageError
from pi05ctl.runs.records import Records
from pi05ctl.runs.status import RunStatus, fold
from pi05ctl.runs.target import Target
from pi05ctl.spec.render import Rendered, stages
from pi05ctl.stored import evaluations
from pi05ctl.stored.evaluations import Evaluation
from pi05ctl.views import published, sections
from pi05ctl.views.sections import Report
from pi05ctl.views.style import STYLE

_OWN = ("index.html", "loss.png")
"""Files of which a run has one."""
_BY_HAND = "full"
"""The preset whose loss compares with that of the run by hand: the same model, batch and data."""


def write(target: Target, run: str, now: float, state: str | None = None) -> str:
    """Write the page of a run and return its address.

    Args:
        target: Where the run is.
        run: Its name.
        now: Seconds since 1970.
        state: What to call its state instead of what it still is: a pipeline writes its page just before it is Done.

    Raises:
        UsageError: It is a run of demonstrations, which has neither a loss nor a success rate.
        DataError: A result cannot be read.
    """
    content = gather(target, run, now)
    if state is not None:
        content = replace(content, status=replace(content.status, state=state, why=""))
    return publish(target, run, "index.html", page(content).encode())


def publish(target: Target, run: str, name: str, data: bytes) -> str:
    """Write a file of a run's report and return its address."""
    key = f"{RunPaths(run).root}/report/{name}"
    target.storage.write(key, data)
    return f"{target.storage.url}/{key}"


def copy(target: Target, run: str, name: str, folder: Path) -> Path | None:
    """Write a file of a run's report to this machine, too, and return where; None when it is here already."""
    if target.storage.url.startswith("file://"):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{run}{Path(name).suffix}" if name in _OWN else name)
    path.write_bytes(target.storage.read(f"{RunPaths(run).root}/report/{name}"))
    return path


def gather(target: Target, run: str, now: float) -> Report:
    """Return what is known of a run, of the training it rests on and of the newest evaluation of it."""
    rendered = target.load(run)
    if rendered.spec.kind == "demos":
        raise UsageError(f"{run} made demonstrations; a report is of a train, eval or pipeline run")
    names = _parts(target, rendered, now)
    statuses = {name: status for name in (run, *names) if (status := _status(target, name, now))}
    train = next((name for name in names if statuses[name].kind == "train"), None)
    evaluation = next((name for name in names if statuses[name].kind == "eval"), None)
    found = evaluations.read(target.storage, evaluation) if evaluation else None
    events = _events(target, train) if train else []
    return Report(
        status=statuses[run],
        parts=tuple(statuses[name] for name in names),
        losses=values(events, "loss"),
        held_out=values(events, "loss_held_out"),
        numbers=numbers(events),
        gpus=gpus(events),
        by_hand=published.LOSS_BY_HAND if rendered.spec.preset == _BY_HAND else (),
        evaluation=found,
        videos=_videos(target, evaluation, found) if evaluation and found else {},
        command=rendered.spec.command(),
        job_json=rendered.job_json.decode(),
        written=clock(now),
    )


def clock(now: float) -> str:
    """Return a moment as a page says it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(now))


def values(events: Iterable[Event], name: str) -> tuple[tuple[int, float], ...]:
    """Return a metric by step; a resumed run repeats some steps, of which the last counts."""
    told = ((event.step, event.metrics or {}) for event in events if event.kind == "progress")
    by_step = {step: metrics[name] for step, metrics in told if step is not None and name in metrics}
    return tuple(sorted(by_step.items()))


def numbers(events: Iterable[Event]) -> dict[str, float]:
    """Return the latest value of every metric; of those that count seconds the sum."""
    found: dict[str, float] = {}
    for event in events:
        for name, value in (event.metrics or {}).items() if event.kind == "progress" else ():
            found[name] = value + (found.get(name, 0.0) if name.endswith("_seconds") else 0.0)
    return found


def gpus(events: Iterable[Event]) -> tuple[Mapping[str, Any], ...]:
    """Return what was said last of each GPU."""
    told = [extra["gpus"] for event in events if (extra := event.model_extra or {}).get("gpus")]
    return tuple(told[-1]) if told else ()


def page(content: Report) -> str:
    """Return the page."""
    status = content.status
    state = status.state + (f": {status.why}" if status.why else "")
    return document(status.run, [tasks.TASKS[status.task].sentence], state, content.written, parts(content))


def parts(content: Report) -> list[str]:
    """Return the parts of the page; empty ones for what there is nothing to say of."""
    return [
        sections.success(content),
        sections.failures(content.evaluation),
        sections.videos(content),
        sections.training(content),
        sections.speed(content),
        sections.episodes(content.evaluation.episodes if content.evaluation else ()),
        sections.runs(content.parts),
        sections.again(content),
    ]


def document(title: str, sentences: Sequence[str], state: str, written: str, parts: Iterable[str]) -> str:
    """Return a page that needs nothing else.

    Args:
        title: Of the page.
        sentences: What it is about, below the title.
        state: How that stands.
        written: When.
        parts: Of the page, in HTML; empty ones are left out.
    """
    about = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><header><h1>{escape(title)}</h1>{about}"
        f"<p class=quiet>{escape(state)} · written {escape(written)}</p></header>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _videos(target: Target, run: str, evaluation: Evaluation) -> dict[int, bytes]:
    """Return the videos there are, failures first."""
    ordered = sorted(evaluation.episodes, key=lambda episode: episode.success_once)
    return evaluations.videos(target.storage, run, [episode.seed for episode in ordered])


def _parts(target: Target, run: Rendered, now: float) -> list[str]:
    """Return the names of the runs that the report is about, in the order they ran."""
    below = [stage.run for stage in stages(run)]
    if isinstance(run.job, EvalJob) and run.job.eval.policy == "oracle":
        below = [run.run]  # nothing was trained for it
    if not below:
        train = run.job.train_run if isinstance(run.job, EvalJob) else run.run
        evaluation = run.run if isinstance(run.job, EvalJob) else _newest_evaluation(target, train, now)
        below = [train, *([evaluation] if evaluation else [])]
    return [name for name in below if target.snapshot(name) is not None]


def _newest_evaluation(target: Target, train: str, now: float) -> str | None:
    """Return the newest finished evaluation of a training run."""
    evals = [name for name in target.storage.children("runs") if name.startswith("eval-")]
    own = [name for name, record in Records(target.storage).told(evals).items() if record.train_run == train]
    done = [s for name in own if (s := _status(target, name, now)) and s.state == "Done"]
    return max(done, key=lambda s: s.created or 0.0).run if done else None


def _status(target: Target, run: str, now: float) -> RunStatus | None:
    snapshot = target.snapshot(run)
    return fold(snapshot, now) if snapshot else None


def _events(target: Target, run: str) -> list[Event]:
    """Return every event in a run's log."""
    lines = target.log(run).decode(errors="replace").splitlines()
    return [event for line in lines if (event := parse(line)) is not None]
