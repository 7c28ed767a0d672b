"""The commands that start runs: submit, render and resume. main.py adds them to its own."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from pi05.errors import AccessError, TemporaryError
from pi05.tasks import TASKS
from pi05ctl.cli import plan as cli_plan
from pi05ctl.cli import runs as cli_runs
from pi05ctl.cli import terminal
from pi05ctl.cli.options import Output, OutputOption, RunArgument, TargetOption, service_of
from pi05ctl.errors import RunFailed, TargetError, UsageError

if TYPE_CHECKING:
    from pi05ctl.local.target import Submission
    from pi05ctl.runs.status import RunStatus
    from pi05ctl.service import Request, Service
    from pi05ctl.spec.render import Rendered

app = typer.Typer()

KindArgument = Annotated[
    str, typer.Argument(metavar="KIND", help="demos, train, eval, or pipeline (all three, with a report).")
]
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help=f"{', '.join(TASKS)}, or all.")]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="tiny, micro (CPU), small, lora (1 GPU), full (8 GPUs). Default: tiny here, full in a cluster.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Replace a value of the preset: train.steps=1000. Repeatable."),
]
OfOption = Annotated[
    str | None, typer.Option("--of", metavar="RUN", help="eval: this training run, with the options it had.")
]
EveryOption = Annotated[
    bool, typer.Option("--every-checkpoint", help="eval: of each checkpoint kept, so success over training steps.")
]
OnlyOption = Annotated[
    bool, typer.Option("--only", help="train, eval: make nothing else first; what is missing is refused.")
]
UntilOption = Annotated[
    float | None,
    typer.Option("--until", metavar="WIDTH", help="eval: end when the 95 % interval is so narrow: 0.1."),
]
AgainOption = Annotated[bool, typer.Option("--again", help="Make a new run even though one with these values exists.")]
FollowOption = Annotated[bool, typer.Option("--follow", help="Show progress until it ends. Ctrl-C leaves it running.")]


@app.command()
def submit(
    kind: KindArgument,
    task: TaskArgument,
    target: TargetOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    of: OfOption = None,
    every_checkpoint: EveryOption = False,
    until: UntilOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print what would be made (job.json; for a cluster the manifests) and start nothing."
        ),
    ] = False,
    follow: FollowOption = False,
    again: AgainOption = False,
    only: OnlyOption = False,
    plan: Annotated[
        bool, typer.Option("--plan/--no-plan", help="Refuse a training that cannot fit its GPUs' memory.")
    ] = True,
    output: OutputOption = Output.text,
) -> None:
    """Start a run, or find that it is running or done.

    A training or evaluation comes with what it needs and is not there yet, as one run (--only: without). The same
    values are the same run, however they are spelled, so submitting twice is harmless.
    """
    service = service_of(target)
    request = _request(kind, task, preset, set_, of, every_checkpoint, until, again, only)
    if dry_run:
        _print_jobs(service, request)
        return
    runs = service.render(request)
    notes = cli_plan.admit(service, runs) if plan and service.target.name == "cluster" else []
    submitted = service.submit(runs)
    _say_stages(runs, kind)
    _say_until(runs)
    for text in notes:
        terminal.say(text)
    _after_submission(service, submitted, follow, output)


@app.command()
def render(
    kind: KindArgument,
    task: TaskArgument,
    target: TargetOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    of: OfOption = None,
    every_checkpoint: EveryOption = False,
    until: UntilOption = None,
    again: AgainOption = False,
    only: OnlyOption = False,
) -> None:
    """Print what submit would make.

    That is job.json, or for a cluster the manifests, which are those of helm template. It needs no cluster, and with
    --only no storage: without, it looks there for what a training or evaluation needs.
    """
    service = service_of(target)
    _print_jobs(service, _request(kind, task, preset, set_, of, every_checkpoint, until, again, only))


@app.command()
def resume(
    run: RunArgument,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Let a training go on with another value: train.steps=40000, train.seed=1, a lower "
            "train.optimizer.peak_lr, compute.recompute=layers. Repeatable; it keeps its name.",
        ),
    ] = None,
    follow: FollowOption = False,
    output: OutputOption = Output.text,
    target: TargetOption = None,
) -> None:
    """Start a run again from where it stopped."""
    service = service_of(target)
    going_on = service.going_on(service.find(run), set_ or ())
    submission = service.resume(going_on)
    for remark in service.remarks(going_on) if set_ and submission.outcome == "resumed" else ():
        terminal.say(remark)
    _after_submission(service, [submission], follow, output)


# ---- What is asked for, and what is said of it ----------------------------------------------------------------------
def _request(
    kind: str,
    task: str,
    preset: str | None,
    assignments: list[str] | None,
    of: str | None,
    every_checkpoint: bool,
    until: float | None,
    again: bool,
    only: bool,
) -> "Request":
    """Return what the words of submit and render ask for."""
    from pi05ctl.service import Request

    values = _with_until(kind, assignments, until) or ()
    return Request(kind, task, preset, values, of, again, every_checkpoint, only)


def _with_until(kind: str, assignments: list[str] | None, until: float | None) -> list[str] | None:
    """Return the assignments with the one that --until stands for."""
    if until is None:
        return assignments
    if kind in ("demos", "train"):
        raise UsageError(f"--until is about the success rate of an evaluation; leave it out for {kind}")
    return [*(assignments or ()), f"eval.until={until!r}"]


def _say_until(runs: "Sequence[Rendered]") -> None:
    """Say how many episodes evaluations take that end when their interval is narrow."""
    from pi05 import intervals
    from pi05.config import EvalJob
    from pi05ctl.spec.render import stages

    jobs = [job.eval for run in runs if isinstance(job := (stages(run) or (run,))[-1].job, EvalJob)]
    for until, episodes in dict.fromkeys((config.until, config.episodes) for config in jobs):
        if until is not None:
            fewest, most = intervals.fewest(until), intervals.most(until)
            enough = "" if most <= episodes else f" (--set eval.episodes={most} is enough for every rate)"
            terminal.say(
                f"an interval {until:g} wide takes {fewest} episodes when all end alike, {most} when half are solved; "
                f"at most eval.episodes={episodes} are run{enough}"
            )


def _print_jobs(service: "Service", request: "Request") -> None:
    """Print what would be made, byte for byte; where nobody can look what is there, the run alone, and say so."""
    looks = request.kind in ("train", "eval") and not request.only
    try:
        runs = service.render(request)
        unseen = f"{service.storage_url} is no storage yet" if looks and not service.has_storage else ""
    except (TargetError, AccessError, TemporaryError) as error:
        if not looks:
            raise
        runs, unseen = service.render(replace(request, only=True)), str(error)
    if unseen:
        terminal.say(
            f"shown is the run alone; what it needs may have to be made first, and nobody could look: {unseen}"
        )
    _say_stages(runs, request.kind)
    for run in runs:
        terminal.out(service.preview(run).decode())


def _say_stages(runs: "Sequence[Rendered]", kind: str) -> None:
    """Say of runs that come with what they need what that is."""
    from pi05ctl.spec.render import stages

    for run in runs if kind != "pipeline" else ():
        if below := [stage.run for stage in stages(run)]:
            terminal.say(
                f"{below[-1]} comes with what it needs, as one run, {run.run}: {', then '.join(below)}, each submitted "
                "when its turn comes (--only: it alone, refused while something is missing)"
            )


def _after_submission(service: "Service", submissions: "Sequence[Submission]", follow: bool, output: Output) -> None:
    """Say what became of a submission, and follow it when asked to."""
    if output is Output.text:
        for submission in submissions:
            terminal.out(_describe(service, submission, follow))
    elif not follow:
        from pi05ctl.views.tables import submissions_json

        terminal.out(submissions_json([(s.run, s.outcome) for s in submissions], service.storage.url))
    if follow:
        _follow(service, [submission.run for submission in submissions], output)


def _describe(service: "Service", submission: "Submission", follow: bool) -> str:
    """Return what a person wants to know after a submission."""
    run = submission.run
    words = {
        "started": "started",
        "resumed": "started again; it goes on from what it had saved",
        "running": "is running already",
        "done": "is done already (submit --again makes a new run)",
    }
    lines = [f"{run}  {words[submission.outcome]}", f"  writes  {service.storage.url}/runs/{run}"]
    if service.target.name == "cluster":
        lines.append(f"  release helm -n {service.settings.cluster.namespace} get all {run}")
    if submission.outcome != "done" and not follow:
        lines += [f"  state   pi05ctl status {run} -w", f"  follow  pi05ctl logs {run} -f"]
    return "\n".join(lines) + "\n"


def _follow(service: "Service", runs: list[str], output: Output) -> None:
    """Show progress until the runs end; raise RunFailed when one did not succeed."""
    from pi05ctl.cli.follow import display, follow

    try:
        with display(time.monotonic) as show:
            look, poll = service.looker(runs), service.target.poll
            ended = follow(look, time.monotonic, time.sleep, show=show, poll=poll, complain=terminal.say) or ()
    except KeyboardInterrupt:
        going = " ".join(runs)
        terminal.say(f"{going} goes on. Watch: pi05ctl status {runs[0]} -w   End: pi05ctl cancel {runs[0]}")
        raise
    if output is Output.json:
        cli_runs.print_statuses(ended, output)
    else:
        for end in ended:
            terminal.out(_ending(service, end))
        if len({end.task for end in ended if end.kind in ("pipeline", "eval")}) > 1:
            terminal.out(cli_runs.policies(service).text(ended))
    failed = [end for end in ended if end.state != "Done"]
    if failed:
        raise RunFailed("; ".join(cli_runs.failure(end) for end in failed))


def _ending(service: "Service", end: "RunStatus") -> str:
    """Return how a run ended: its number and its report."""
    from pi05ctl.views import tables

    number = tables.metric(end) if end.state == "Done" else ""
    lines = [f"{end.run}  {end.state}" + (f"  {number}" if number else "")]
    page = f"runs/{end.run}/report/index.html"
    if end.state == "Done" and service.storage.exists(page):
        lines.append(f"  report  {service.storage.url}/{page}")
    return "\n".join(lines) + "\n"
