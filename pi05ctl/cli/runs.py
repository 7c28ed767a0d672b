"""The commands of pi05ctl: each parses its words, calls the service once, prints, and sets the exit code.

stdout is for data, stderr for people. Imports inside functions are on purpose: `--help` loads no pydantic and no rich.
"""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pi05.errors import AccessError, JobError, TemporaryError
from pi05.tasks import TASKS
from pi05ctl.cli import datasets, described, setup, stored, terminal
from pi05ctl.cli import plan as cli_plan
from pi05ctl.cli.options import Output, OutputOption, RunArgument, TargetOption, service_of
from pi05ctl.errors import (
    INTERRUPTED,
    CtlError,
    FailedWhileWaiting,
    RunFailed,
    TargetError,
    Unreachable,
    UsageError,
    WaitTimeout,
    exit_code,
)

if TYPE_CHECKING:
    from pi05ctl.local.target import Submission
    from pi05ctl.runs.selection import Wanted
    from pi05ctl.runs.status import RunStatus
    from pi05ctl.service import Request, Service
    from pi05ctl.spec.render import Rendered

WATCH_EVERY = 1.0

app = typer.Typer(
    name="pi05ctl",
    help="Train and evaluate Pi0.5 robot policies on ManiSkill tasks.\n\n"
    "pi05ctl submit pipeline pushcube --follow makes demonstrations, trains on them and evaluates the policy.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 usage, 3 target, storage or network, "
    "4 does not fit, 124 wait timed out, 125 the run failed while waiting, 130 Ctrl-C (the run goes on).",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


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
    request = _request(kind, task, preset, _with_until(kind, set_, until), of, again, every_checkpoint, only)
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
    values = _with_until(kind, set_, until)
    _print_jobs(service, _request(kind, task, preset, values, of, again, every_checkpoint, only))


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="One run, or all: a line a task; without it, every run.")
    ] = None,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on showing it; Ctrl-C ends that.")] = False,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only runs in it: Running, Failed. Repeatable.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", metavar="TASK", help="Only its runs. Repeatable.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="Only demos, train, ... Repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the newest.")] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Those that ended more than 7 days ago, too. (-o json always has them.)")
    ] = False,
    output: OutputOption = Output.text,
    target: TargetOption = None,
) -> None:
    """Show how runs stand.

    Progress, speed, time left, age, and why one waits or failed. All: success rate, interval, episodes and checkpoint
    of every task, or why there is none.
    """
    from pi05ctl.runs.selection import wanted

    by = wanted(state or (), task or (), kind or (), limit, all_ or output is Output.json)
    if run and not (by.every and limit is None):
        raise UsageError(f"--state, --task, --kind and --limit choose among all runs; leave out {run}")
    service = service_of(target)
    view = _policies(service) if run == "all" else _one(service, run) if run else _many(service, by)
    if watch:
        _watch(view, output)
        return
    statuses = view.look()
    if view.note is not None and (note := view.note()):
        terminal.say(note)
    if statuses or run == "all" or output is Output.json:
        terminal.out(view.shown(statuses, output))


@app.command()
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    target: TargetOption = None,
) -> None:
    """Print what a run printed."""
    service = service_of(target)
    name = service.find(run)
    printed = 0
    for data in service.target.follow_log(name) if follow else (service.target.log(name),):
        terminal.out_bytes(data)
        printed += len(data)
    if not printed:
        terminal.say(f"{name} has not printed anything yet")
    for stage in service.with_stages(name)[1:]:
        terminal.say(f"its stage {stage.run} is {stage.state}: pi05ctl logs {stage.run}")


@app.command()
def wait(
    run: RunArgument,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this.")] = None,
    output: OutputOption = Output.text,
    target: TargetOption = None,
) -> None:
    """Wait until a run ends. Exit code 0: done, 124: timeout, 125: it failed or was cancelled."""
    from pi05ctl.cli.follow import follow

    service = service_of(target)
    name = service.find(run)
    look, poll = service.looker([name]), service.target.poll
    ended = follow(look, time.monotonic, time.sleep, timeout, poll=poll, complain=terminal.say)
    if ended is None:
        raise WaitTimeout(f"{name} is still {service.status(name).state} after {timeout:g} s; it goes on")
    _print_statuses(ended, output)
    for end in ended:
        if end.state != "Done":
            raise FailedWhileWaiting(_failure(end))


@app.command()
def cancel(
    run: RunArgument,
    now: Annotated[bool, typer.Option("--now", help="Kill it without saving what it did since it last saved.")] = False,
    target: TargetOption = None,
) -> None:
    """End a run. It saves first; resume goes on from there."""
    service = service_of(target)
    name = service.find(run)
    if not now and service.target.alive(name):
        terminal.say(f"{name}: waiting until it has saved (--now does not)")
    if not service.target.cancel(name, now):
        terminal.say(f"{name} is not running: it is {service.status(name).state}")
        return
    terminal.say(f"{name} is {service.status(name).state}; to go on: pi05ctl resume {name}")


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


@app.command()
def results(
    which: Annotated[str | None, typer.Argument(metavar="[all]", help="all: a line a task, as status all.")] = None,
    each: Annotated[bool, typer.Option("--each", help="Every evaluation by itself, training seeds apart.")] = False,
    output: OutputOption = Output.text,
    target: TargetOption = None,
) -> None:
    """Show the success rates of finished evaluations.

    Beside what others report, and the aims. Evaluations that differ in nothing but the training seed are one line: the
    mean and range over trainings, and an interval over trainings and episodes.
    """
    from pi05ctl.views import tables

    if which not in (None, "all"):
        raise UsageError(f"results shows every evaluation, results all a line a task; of one run: report {which}")
    service = service_of(target)
    if which == "all":
        view = _policies(service)
        terminal.out(view.shown(view.look(), output))
        return
    found = tables.results(service.pools(each))
    if output is Output.json:
        terminal.out(tables.results_json(found))
    elif found:
        terminal.out(terminal.table(tables.RESULTS_HEADER, tables.result_rows(found)))
    else:
        terminal.say(f"no finished evaluation in {service.storage.url} yet; make one: pi05ctl submit pipeline pushcube")


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Two or more: evaluations, or trainings and pipelines with one."),
    ],
    page: Annotated[bool, typer.Option("--page", help="Write a page, too, and print where it is.")] = False,
    output: OutputOption = Output.text,
    target: TargetOption = None,
) -> None:
    """Compare runs over the same seeds.

    Which seeds each solved alone, the difference with its interval, McNemar's exact test, and the settings that differ.
    A gap smaller than its interval is called equal.
    """
    from pi05ctl.views import beside

    if page and output is Output.json:
        raise UsageError("--page and -o json are two outputs; the page by itself: pi05ctl report RUN RUN")
    service = service_of(target)
    found = service.compare(runs)
    for remark in found.remarks:
        terminal.say(remark)
    if output is Output.json:
        terminal.out(beside.comparison_json(found))
    else:
        terminal.out("\n".join(terminal.table(header, rows) for header, rows in beside.rows(found)))
    if page:
        _print_page(service, [subject.run for subject in found.subjects])


@app.command("report")
def report_(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Names, unique beginnings of them, or tasks (their newest runs)."),
    ],
    target: TargetOption = None,
) -> None:
    """Write a page about runs and print where it is.

    Success beside what others reach, where it failed, videos, loss, episodes and configuration, in one HTML file; of
    several runs side by side, compared as pi05ctl compare does.
    """
    from pi05ctl.views import page

    service = service_of(target)
    names = list(dict.fromkeys(service.find(run) for run in runs))
    if len(names) > 1:
        _print_page(service, names)
        return
    terminal.out(page.write(service.target, names[0], time.time()) + "\n")
    _say_copy(page.copy(service.target, names[0], "index.html", _copies()))


def _print_page(service: "Service", names: list[str]) -> None:
    """Write the page of several runs and print where it is."""
    from pi05ctl.views import page, several

    terminal.out(several.write(service.target, names, time.time()) + "\n")
    _say_copy(page.copy(service.target, names[0], several.name_of(names), _copies()))


@app.command()
def plot(
    run: RunArgument,
    target: TargetOption = None,
) -> None:
    """Draw the loss of a run as a PNG file.

    It prints where the file is. Runs of the full preset are drawn beside the run by hand.
    """
    from pi05ctl.views import page
    from pi05ctl.views.plot import loss_png

    service = service_of(target)
    name = service.find(run)
    content = page.gather(service.target, name, time.time())
    picture = loss_png(content.losses, content.by_hand, name, content.held_out)
    terminal.out(page.publish(service.target, name, "loss.png", picture) + "\n")
    _say_copy(page.copy(service.target, name, "loss.png", _copies()))


def _copies() -> Path:
    """Return where this machine keeps copies of reports that are in a bucket."""
    from pi05.storage import user_cache

    return user_cache() / "reports"


def _say_copy(path: Path | None) -> None:
    if path is not None:
        terminal.out(f"{path.as_uri()}\n")


app.add_typer(cli_plan.app)
app.add_typer(described.app)
app.add_typer(setup.app)
app.add_typer(datasets.datasets, name="datasets")
app.add_typer(stored.weights, name="weights")
app.add_typer(stored.checkpoints, name="checkpoints")


def main() -> None:
    """Run the command line: every foreseen error is one line on stderr and an exit code."""
    gc.set_threshold(100_000)  # what makes a table of many runs stays until the end: looking for garbage is in vain
    terminal.prepare()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="pi05ctl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (CtlError, JobError) as error:
        terminal.say(str(error))
        return exit_code(error)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is a page
            terminal.out(error.format_message() + "\n")
        else:
            terminal.say(_usage(error))
        return UsageError.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        terminal.say(str(error))
        return TargetError.exit_code


def _usage(error: typer.TyperException) -> str:
    """Return Typer's complaint as one line in our words."""
    near: Sequence[str] | None = getattr(error, "possibilities", None)
    text = str(getattr(error, "message", "")) if near else error.format_message()
    if near:
        text = f"{text.rstrip('.')}; did you mean {near[0]!r}?"
    return f"{text} (pi05ctl --help lists what there is)"


def _request(
    kind: str,
    task: str,
    preset: str | None,
    assignments: list[str] | None,
    of: str | None,
    again: bool,
    every_checkpoint: bool,
    only: bool,
) -> "Request":
    from pi05ctl.service import Request

    return Request(kind, task, preset, assignments or (), of, again, every_checkpoint, only)


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
        _print_statuses(ended, output)
    else:
        for end in ended:
            terminal.out(_ending(service, end))
        if len({end.task for end in ended if end.kind in ("pipeline", "eval")}) > 1:
            terminal.out(_policies(service).text(ended))
    failed = [end for end in ended if end.state != "Done"]
    if failed:
        raise RunFailed("; ".join(_failure(end) for end in failed))


def _ending(service: "Service", end: "RunStatus") -> str:
    """Return how a run ended: its number and its report."""
    from pi05ctl.views import tables

    number = tables.metric(end) if end.state == "Done" else ""
    lines = [f"{end.run}  {end.state}" + (f"  {number}" if number else "")]
    page = f"runs/{end.run}/report/index.html"
    if end.state == "Done" and service.storage.exists(page):
        lines.append(f"  report  {service.storage.url}/{page}")
    return "\n".join(lines) + "\n"


def _failure(end: "RunStatus") -> str:
    """Return why a run ended without success and what to do."""
    why = f": {end.why}" if end.why else ""
    remedy = f" ({end.remedy})" if end.remedy else ""
    return f"{end.run} is {end.state}{why}{remedy}"


@dataclass(frozen=True)
class _View:
    """What of runs is shown.

    Attributes:
        look: Returns how they stand now.
        text, json: What to print of that.
        over: Whether watching ends with such a look.
        note: Returns what to say of the latest look.
    """

    look: "Callable[[], list[RunStatus]]"
    text: "Callable[[Sequence[RunStatus]], str]"
    json: "Callable[[Sequence[RunStatus]], str]"
    over: "Callable[[Sequence[RunStatus]], bool]"
    note: Callable[[], str] | None = None

    def shown(self, statuses: "Sequence[RunStatus]", output: Output) -> str:
        """Return what to print."""
        return self.json(statuses) if output is Output.json else self.text(statuses)


def _one(service: "Service", run: str) -> _View:
    """Return the view of one run, with the stages of a pipeline."""
    from pi05ctl.views.tables import status_json

    name = service.find(run)
    return _View(lambda: service.with_stages(name), _status_table, status_json, lambda s: s[0].ended)


def _many(service: "Service", by: "Wanted") -> _View:
    """Return the view of all runs that are wanted."""
    from pi05ctl.runs.selection import select
    from pi05ctl.views.tables import status_json

    left: list[str] = []

    def look() -> "list[RunStatus]":
        statuses, damaged = service.statuses()
        for problem in damaged:
            terminal.say(problem)
        shown, out = select(statuses, by, time.time())
        left[:] = [_left_out(service, len(statuses), len(shown), out)]
        return shown

    return _View(look, _status_table, status_json, lambda _: False, lambda: left[0])


def _left_out(service: "Service", there: int, shown: int, out: str) -> str:
    """Return what to say of runs that a table does not show."""
    if not there:
        return f"no runs in {service.storage.url} yet; start one: pi05ctl submit pipeline pushcube"
    if out:
        return f"left out: {out}"
    return "" if shown else f"none of the {there} runs is so"


def _policies(service: "Service") -> _View:
    """Return the view of the one table of all tasks."""
    from pi05ctl.views import tables

    def text(statuses: "Sequence[RunStatus]") -> str:
        rows = [tables.policy_row(one) for one in service.policies(statuses)]
        return terminal.table(tables.POLICIES_HEADER, rows)

    return _View(
        lambda: [service.status(run) for run in service.newest()],
        text,
        lambda statuses: tables.policies_json(service.policies(statuses)),
        lambda statuses: all(status.ended for status in statuses),
    )


def _watch(view: _View, output: Output) -> None:
    """Show statuses again and again: in place on a terminal, elsewhere whenever something changed."""
    if output is Output.text and terminal.is_terminal():
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False) as live:
            _repeat(view, lambda s: live.update(Text.from_ansi(view.text(s)), refresh=True))
        return
    _repeat(view, lambda s: terminal.out(view.shown(s, output)))


def _repeat(view: _View, show: "Callable[[list[RunStatus]], None]") -> None:
    """Show what is new until that is over (or forever); who does not answer is asked again."""
    before: object = None
    while True:
        try:
            statuses = view.look()
        except (Unreachable, TemporaryError) as error:
            terminal.say(f"{error} (asked again)")
            time.sleep(WATCH_EVERY)
            continue
        news = [(s.run, s.state, s.step, s.why) for s in statuses]
        if news != before or terminal.is_terminal():
            show(statuses)
        before = news
        if view.over(statuses):
            return
        time.sleep(WATCH_EVERY)


def _print_statuses(statuses: "Sequence[RunStatus]", output: Output) -> None:
    from pi05ctl.views.tables import status_json

    if output is Output.json:
        terminal.out(status_json(statuses))
    elif statuses:
        terminal.out(_status_table(statuses))


def _status_table(statuses: "Sequence[RunStatus]") -> str:
    from pi05ctl.views.tables import HEADER, row

    return terminal.table(HEADER, [row(status) for status in statuses])
