"""A run -> its report: one HTML page that needs nothing else, readable on a phone, in light and dark.

`write` reads storage through a target; `page` is pure.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

from pi05 import tasks
from pi05.config import EvalJob
from pi05.events import Event, parse
from pi05.storage import RunPaths
from pi05ctl import drawing, report, results
from pi05ctl.errors import UsageError
from pi05ctl.render import Rendered, stages
from pi05ctl.results import Episode, Evaluation
from pi05ctl.status import RunStatus, fold
from pi05ctl.targets.target import Target

_DRAWN = 12
"""Episodes that are drawn, failures first."""


@dataclass(frozen=True)
class Report:
    """What the page says.

    Attributes:
        status: The run.
        parts: The runs it is made of or rests on, itself included, in their order.
        losses: (step, loss) of the training.
        evaluation: What the evaluation found; None without one.
        command: What makes it again.
        job_json: Its full configuration.
        written: When the page was written.
    """

    status: RunStatus
    parts: tuple[RunStatus, ...]
    losses: tuple[tuple[int, float], ...]
    evaluation: Evaluation | None
    command: str
    job_json: str
    written: str


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
    key = f"{RunPaths(run).root}/report/index.html"
    content = gather(target, run, now)
    if state is not None:
        content = replace(content, status=replace(content.status, state=state, why=""))
    target.storage.write(key, page(content).encode())
    return f"{target.storage.url}/{key}"


def gather(target: Target, run: str, now: float) -> Report:
    """Return what is known of a run, of the training it rests on and of the newest evaluation of it."""
    rendered = target.load(run)
    if rendered.spec.kind == "demos":
        raise UsageError(f"{run} made demonstrations; a report is of a train, eval or pipeline run")
    names = _parts(target, rendered, now)
    statuses = {name: status for name in (run, *names) if (status := _status(target, name, now))}
    train = next((name for name in names if statuses[name].kind == "train"), None)
    evaluation = next((name for name in names if statuses[name].kind == "eval"), None)
    return Report(
        status=statuses[run],
        parts=tuple(statuses[name] for name in names),
        losses=losses(_events(target, train)) if train else (),
        evaluation=results.read(target.storage, evaluation) if evaluation else None,
        command=rendered.spec.command(),
        job_json=rendered.job_json.decode(),
        written=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
    )


def losses(events: Iterable[Event]) -> tuple[tuple[int, float], ...]:
    """Return the loss by step; a resumed run repeats some steps, of which the last counts."""
    by_step = {
        event.step: event.metrics["loss"]
        for event in events
        if event.kind == "progress" and event.step is not None and "loss" in (event.metrics or {})
        if event.metrics is not None
    }
    return tuple(sorted(by_step.items()))


def page(content: Report) -> str:
    """Return the page."""
    status = content.status
    sentence = tasks.TASKS[status.task].sentence
    sections = [
        _success(content),
        _training(content),
        _episodes(content.evaluation.episodes if content.evaluation else ()),
        _runs(content.parts),
        _section("Again", f"<pre>{escape(content.command)}</pre>"),
        f"<details><summary>Full configuration (job.json)</summary><pre>{escape(content.job_json)}</pre></details>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(status.run)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><header><h1>{escape(status.run)}</h1>"
        f"<p>{escape(sentence)}</p><p class=quiet>{escape(status.state)}"
        f"{escape(': ' + status.why) if status.why else ''} · written {escape(content.written)}</p></header>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


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
    statuses = (_status(target, name, now) for name in target.runs() if name.startswith("eval-"))
    done = [s for s in statuses if s and s.train_run == train and s.state == "Done"]
    return max(done, key=lambda s: s.created or 0.0).run if done else None


def _status(target: Target, run: str, now: float) -> RunStatus | None:
    snapshot = target.snapshot(run)
    return fold(snapshot, now) if snapshot else None


def _events(target: Target, run: str) -> list[Event]:
    """Return every event in a run's log."""
    lines = target.log(run).decode(errors="replace").splitlines()
    return [event for line in lines if (event := parse(line)) is not None]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _success(content: Report) -> str:
    """Return the rate, its interval and what it is of."""
    if content.evaluation is None or not content.evaluation.episodes:
        return _section("Success", "<p>Not evaluated yet.</p>")
    if not content.evaluation.complete:
        return _section("Success", f"<p>Not evaluated yet: {content.evaluation.progress} episodes are there.</p>")
    numbers, subject = content.evaluation.metrics, content.evaluation.subject
    rate, low, high = numbers["success_once"], numbers["wilson_low"], numbers["wilson_high"]
    total = len(content.evaluation.episodes)
    which = "replayed" if subject == "oracle" else "unseen"
    words = (
        f"{round(rate * total)} of {total} {which} episodes solved"
        f"{f' by {escape(subject)}' if subject else ''}; 95 % interval {100 * low:.0f} to {100 * high:.0f} % (Wilson). "
        f"Still solved at the last step: {100 * numbers['success_at_end']:.0f} %."
    )
    return _section("Success", f"<p class=big>{100 * rate:.0f} %</p>{drawing.interval(rate, low, high)}<p>{words}</p>")


def _training(content: Report) -> str:
    """Return the loss curve."""
    if len(content.losses) < 2:
        return ""
    first, last = content.losses[0], content.losses[-1]
    words = f"From {first[1]:.4g} at step {first[0]:,} to {last[1]:.4g} at step {last[0]:,}."
    return _section("Loss", f"{drawing.curve(content.losses, 'loss')}<p class=quiet>{words}</p>")


def _episodes(episodes: Sequence[Episode]) -> str:
    """Return drawings of some episodes, failures first, and a table of all."""
    if not episodes:
        return ""
    first = sorted(episodes, key=lambda episode: episode.success_once)
    drawn = [episode for episode in first if episode.tracks.get("object") or episode.tracks.get("tcp")][:_DRAWN]
    figures = "".join(
        f"<figure>{svg}<figcaption>{episode.seed} {_outcome(episode)}</figcaption></figure>"
        for episode, svg in zip(drawn, drawing.episodes(drawn) if drawn else [], strict=True)
    )
    legend = (
        "<p class=quiet>From above, the robot below. <b class=object-key>object</b>, from ring to dot; "
        "<b class=tcp-key>gripper</b>; <b class=goal-key>goal</b>.</p>"
    )
    rows = "".join(
        f"<tr><td>{episode.seed}<td>{_outcome(episode)}<td>{'yes' if episode.success_at_end else 'no'}"
        f"<td>{_number(episode.first_success_step)}<td>{_number(episode.steps)}"
        for episode in episodes
    )
    head = "<tr><th>Seed<th>Outcome<th>At end<th>First solved at step<th>Steps"
    table = f"<div class=scroll><table>{head}{rows}</table></div>"
    return _section("Episodes", (legend + f"<div class=grid-of>{figures}</div>" if drawn else "") + table)


def _runs(parts: Sequence[RunStatus]) -> str:
    """Return the runs behind the numbers."""
    rows = "".join(
        f"<tr><td>{escape(part.run)}<td>{part.state}<td>{escape(report.progress(part))}"
        f"<td>{escape(report.speed(part.seconds_per_step))}<td>{escape(report.metric(part))}"
        for part in parts
    )
    head = "<tr><th>Run<th>State<th>Progress<th>Time each<th>Result"
    return _section("Runs", f"<div class=scroll><table>{head}{rows}</table></div>")


def _outcome(episode: Episode) -> str:
    return "<span class=good>solved</span>" if episode.success_once else "<span class=bad>not solved</span>"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1c1e21; --quiet: #646a73; --rule: #dcdee2;
  --accent: #1f5fd0; --good: #18794e; --bad: #c0392b; --goal: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e6e7e9; --quiet: #9aa1ab; --rule: #33373d;
  --accent: #7ea9ff; --good: #5fc694; --bad: #ff8a7a; --goal: #e0b050; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 46rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
header p { margin: .2rem 0 } .quiet { color: var(--quiet); font-size: .9rem }
.big { font-size: 3rem; line-height: 1.1; font-weight: 650; margin: 0; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto; display: block } .scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { color: var(--quiet); font-weight: 500 }
pre { background: color-mix(in srgb, var(--ink) 6%, transparent); padding: .8rem; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere }
details { margin-top: 2rem } summary { cursor: pointer }
.grid-of { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem; margin-bottom: 1rem }
figure { margin: 0; border: 1px solid var(--rule); border-radius: .4rem; overflow: hidden }
figcaption { font-size: .8rem; padding: .1rem .5rem .3rem; color: var(--quiet) }
.good { color: var(--good) } .bad { color: var(--bad); font-weight: 600 }
.grid { stroke: var(--rule) } .tick { fill: var(--quiet); font-size: 12px }
.line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round }
.hover { fill: transparent } .hover:hover { fill: var(--accent) }
.interval { stroke: var(--accent); stroke-width: 6; stroke-linecap: round; opacity: .45 } .rate { fill: var(--accent) }
.tcp { fill: none; stroke: var(--quiet); stroke-width: 1; opacity: .7 } .tcp-key { color: var(--quiet) }
.object { fill: none; stroke: var(--accent); stroke-width: 2 } .object-key { color: var(--accent) }
.start { fill: var(--paper); stroke: var(--accent); stroke-width: 1.5 } .end { fill: var(--accent) }
.goal { fill: none; stroke: var(--goal); stroke-width: 2 } .goal-key { color: var(--goal) }
"""
