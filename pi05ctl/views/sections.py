"""The parts of a report: what is known of a run -> pieces of HTML. Pure."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from pi05.metrics import METRICS, written
from pi05.results import FAILURES, interval
from pi05ctl.runs.status import RunStatus
from pi05ctl.stored.evaluations import Episode, Evaluation
from pi05ctl.views import drawing, published, tables

_DRAWN = 12
"""Episodes that are drawn, failures first."""
_SETTINGS = {
    "dataset": "Dataset",
    "checkpoint": "Checkpoint",
    "renderer": "Renderer of what the policy saw",
    "dataset_renderer": "Renderer of what it learned from",
    "limit": "Steps of an episode (1/20 s)",
    "execute_steps": "Actions executed of a chunk",
    "sampling_steps": "Sampling steps of the flow",
    "temperature": "Scale of the sampling noise",
    "policy_seed": "Seed of the sampling noise",
    "batch_size": "Rows of a policy call",
}
"""What a result says of itself, in words."""


_SPEED = (
    *("seconds_per_step", "samples_per_second", "tflop_per_step", "mfu"),
    *("data_seconds", "save_seconds", "held_out_seconds", "compile_seconds", "skipped"),
    *("memory_peak_gb", "gpu_utilisation", "gpu_watts", "gpus_slowed", "gpu_ecc_errors"),
)
"""Metrics of a training that say how it was done, not what came of it."""
_GPU = {"gpu": "GPU", "gb": "GB in use", "use": "Utilisation", "watts": "W", "ecc": "ECC errors", "slowed": "Slowed by"}
"""What an event says of a GPU, in words."""


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
        by_hand: (step, loss) to compare the training with; empty when they do not compare.
        videos: mp4 files of episodes by seed, failures first.
        held_out: (step, loss) over the episodes kept apart.
        numbers: The latest metrics of the training; of those that count seconds the sum.
        gpus: What was said last of each GPU.
    """

    status: RunStatus
    parts: tuple[RunStatus, ...]
    losses: tuple[tuple[int, float], ...]
    evaluation: Evaluation | None
    command: str
    job_json: str
    written: str
    by_hand: tuple[tuple[int, float], ...] = ()
    videos: Mapping[int, bytes] = field(default_factory=dict[int, bytes])
    held_out: tuple[tuple[int, float], ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    gpus: tuple[Mapping[str, Any], ...] = ()


def success(content: Report) -> str:
    """Return the rate, its interval, what it is of, and what others reach."""
    found = content.evaluation
    if found is None or not found.episodes:
        return section("Success", "<p>Not evaluated yet.</p>")
    if not found.complete:
        return section("Success", f"<p>Not evaluated yet: {found.progress} episodes are there.</p>")
    rate, (low, high) = found.metrics["success_once"], interval(found.metrics) or (0.0, 1.0)
    total, subject = len(found.episodes), escape(found.subject)
    which = "replayed" if found.policy == "oracle" else "unseen"
    words = (
        f"{round(rate * total)} of {total} {which} episodes solved{f' by {subject}' if subject else ''}; "
        f"95 % interval {100 * low:.0f} to {100 * high:.0f} % ({_made(found)}). "
        f"Still solved at the last step: {100 * found.metrics['success_at_end']:.0f} %.{_time(found)}"
    )
    ours = rated("This run", "", f"{100 * rate:.0f} %", 100 * rate, (100 * low, 100 * high))
    rows = [ours, *others(content.status.task)]
    beside = f"<p class=quiet>{escape(_beside(found))}</p>"
    return section(
        "Success", f"<p class=big>{100 * rate:.0f} %</p><p>{words}</p><ul class=bars>{''.join(rows)}</ul>{beside}"
    )


def _made(found: Evaluation) -> str:
    """Return how the interval of a rate was made."""
    if found.until is None:
        return "Wilson"
    aim = f"exact; the evaluation was to end when it is {100 * found.until:g} points wide"
    return aim if found.ended else f"{aim}, and came to its largest number of episodes first"


def _time(found: Evaluation) -> str:
    """Return when episodes were solved."""
    steps = found.steps_to_success
    if steps is None:
        return ""
    return (
        f" Half of the solved ones were so after {steps.value:.0f} steps or fewer, "
        f"95 % interval {steps.low:.0f} to {steps.high:.0f}."
    )


def failures(found: Evaluation | None) -> str:
    """Return how many episodes failed where."""
    if found is None or not found.failures or not found.complete:
        return ""
    total = len(found.episodes)
    rows = [
        _bar(name, FAILURES.get(name, ""), str(count), 100 * count / total, "bad-bar")
        for name, count in found.failures.items()
    ]
    failed = sum(found.failures.values())
    words = f"<p>{failed} of {total} episodes; the bars are shares of all {total}.</p>"
    return section("Where it failed", f"{words}<ul class=bars>{''.join(rows)}</ul>")


def videos(content: Report) -> str:
    """Return the films of some episodes."""
    if not content.videos or content.evaluation is None:
        return ""
    by_seed = {episode.seed: episode for episode in content.evaluation.episodes}
    figures = "".join(
        f"<figure><video autoplay controls loop muted playsinline "
        f'src="data:video/mp4;base64,{base64.b64encode(video).decode()}"></video>'
        f"<figcaption>{seed} {_outcome(by_seed[seed])}</figcaption></figure>"
        for seed, video in content.videos.items()
        if seed in by_seed
    )
    words = (
        "<p class=quiet>What the cameras of base and hand see, failures first. The bar shows how far the episode is; "
        "it is green where the task is solved.</p>"
    )
    return section("Videos", f"{words}<div class=films>{figures}</div>")


def training(content: Report) -> str:
    """Return the loss curve."""
    if len(content.losses) < 2:
        return ""
    first, last = content.losses[0], content.losses[-1]
    words = f"From {first[1]:.4g} at step {first[0]:,} to {last[1]:.4g} at step {last[0]:,}."
    beside: list[str] = []
    if content.held_out:
        beside.append("<b class=held-out-key>episodes kept apart</b>, by the weights a policy uses")
        words += f" Over the episodes kept apart {content.held_out[-1][1]:.4g} at step {content.held_out[-1][0]:,}."
    if content.by_hand:
        beside.append(
            "<b class=by-hand-key>PickCube, run by hand</b>, which "
            f"ended at {content.by_hand[-1][1]:.4g} and solved 0 of 50 episodes: a low loss proves nothing"
        )
    legend = f"<p class=quiet>{'; '.join(['<b class=line-key>this run</b>', *beside])}.</p>" if beside else ""
    curve = drawing.curve(content.losses, "loss", content.by_hand, content.held_out)
    return section("Loss", f"{legend}{curve}<p class=quiet>{words}</p>")


def speed(content: Report) -> str:
    """Return how fast the training was, what it waited for, and how its GPUs were."""
    names = [name for name in _SPEED if name in content.numbers]
    if not names:
        return ""
    rows = "".join(
        f"<tr><td>{escape(written(name, content.numbers[name]))}<td>{escape(METRICS[name].words)}" for name in names
    )
    gpus = "".join("<tr>" + "".join(f"<td>{escape(str(gpu.get(name, '')))}" for name in _GPU) for gpu in content.gpus)
    head = "".join(f"<th>{words}" for words in _GPU.values())
    table = f"<div class=scroll><table><tr>{head}{gpus}</table></div>" if gpus else ""
    return section("Speed", f"<div class=scroll><table>{rows}</table></div>{table}")


def episodes(shown: Sequence[Episode]) -> str:
    """Return drawings of some episodes, failures first, and a table of all."""
    if not shown:
        return ""
    first = sorted(shown, key=lambda episode: episode.success_once)
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
        for episode in shown
    )
    head = "<tr><th>Seed<th>Outcome<th>At end<th>First solved at step<th>Steps"
    table = f"<div class=scroll><table>{head}{rows}</table></div>"
    folded = f"<details><summary>All {len(shown)} episodes</summary>{table}</details>"
    return section("Episodes", (legend + f"<div class=grid-of>{figures}</div>" if drawn else "") + folded)


def runs(parts: Sequence[RunStatus]) -> str:
    """Return the runs behind the numbers."""
    rows = "".join(
        f"<tr><td>{escape(part.run)}<td>{part.state}<td>{escape(tables.progress(part))}"
        f"<td>{escape(tables.speed(part.seconds_per_step))}<td>{escape(tables.metric(part))}"
        for part in parts
    )
    head = "<tr><th>Run<th>State<th>Progress<th>Time each<th>Result"
    return section("Runs", f"<div class=scroll><table>{head}{rows}</table></div>")


def again(content: Report) -> str:
    """Return how to make it again: the command, what it rests on, and every value."""
    found = content.evaluation
    settings = found.settings if found else {}
    rows = [(words, settings[name]) for name, words in _SETTINGS.items() if settings.get(name) is not None]
    if found and found.episodes:
        seeds = [episode.seed for episode in found.episodes]
        rows.append(("Environment seeds", f"{min(seeds)} to {max(seeds)}"))
    facts = "".join(f"<tr><td>{escape(words)}<td>{escape(str(value))}" for words, value in rows)
    changed = "".join(f"<li>{escape(words)}" for part in content.parts for words in part.changed)
    return section(
        "Again",
        f"<pre>{escape(content.command)}</pre>"
        + (f"<p>When it was resumed, it went on with other settings:</p><ul>{changed}</ul>" if changed else "")
        + (f"<div class=scroll><table>{facts}</table></div>" if facts else "")
        + f"<details><summary>Full configuration (job.json)</summary><pre>{escape(content.job_json)}</pre></details>",
    )


def others(task: str) -> list[str]:
    """Return what others reach on a task, and the two ends that are ours: the aim and the demonstrations."""
    reported = [
        rated(anchor.name, anchor.remark(task), f"{anchor.rates[task]:g} %", anchor.rates[task])
        for anchor in published.of(task)
    ]
    aim = rated("Aim", "of a full Pi0.5 run", f"{published.AIM[task]:g} %", published.AIM[task])
    oracle = rated("Demonstrations", "replayed through the evaluation", f"{published.ORACLE} %", published.ORACLE)
    return [*reported, aim, oracle]


def _beside(found: Evaluation) -> str:
    """Return what to know when the rates are compared."""
    text = "The others are public reports, not repeated here."
    ours, learned = (found.settings.get(name) for name in ("renderer", "dataset_renderer"))
    if ours and learned and ours != learned:
        text += f" The policy learned from images of {learned} and saw images of {ours}, which differ a little."
    if found.blind:
        text += (
            " They see through cameras; this policy does not: it is told where object and goal are, so its rate is no "
            "rate of theirs."
        )
    return text


def rated(name: str, note: str, value: str, rate: float, ends: tuple[float, float] | None = None) -> str:
    """Return one row of rates in %; ours has its interval drawn."""
    if ends is None:
        return _bar(name, note, value, rate, "theirs")
    low, high = ends
    marks = (
        f'<i class=range style="left:{low:.1f}%;width:{high - low:.1f}%"></i><i class=dot style="left:{rate:.1f}%"></i>'
    )
    small = f" <small>{escape(note)}</small>" if note else ""
    return f"<li class=ours><span>{escape(name)}{small}</span><span class=track>{marks}</span><span>{value}</span></li>"


def _bar(name: str, note: str, value: str, share: float, kind: str) -> str:
    """Return one row: what, a bar of so many per cent, and the number."""
    small = f" <small>{escape(note)}</small>" if note else ""
    return (
        f"<li><span>{escape(name)}{small}</span>"
        f'<span class=track><i class={kind} style="width:{share:.1f}%"></i></span><span>{escape(value)}</span></li>'
    )


def section(title: str, body: str) -> str:
    """Return a part of a page under its title."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _outcome(episode: Episode) -> str:
    """Return `solved`, or where it failed."""
    if episode.success_once:
        return "<span class=good>solved</span>"
    return f"<span class=bad>{escape(episode.failure or 'not solved')}</span>"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
