"""The commands around runs that are there: status, logs, wait and cancel. main.py adds them to its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pi05.errors import TemporaryError
from pi05ctl.cli import terminal
from pi05ctl.cli.options import Output, OutputOption, RunArgument, TargetOption, service_of
from pi05ctl.errors import FailedWhileWaiting, Unreachable, UsageError, WaitTimeout

if TYPE_CHECKING:
    from pi05ctl.runs.selection import Wanted
    from pi05ctl.runs.status import RunStatus
    from pi05ctl.service import Service

WATCH_EVERY = 1.0

app = typer.Typer()


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
    view = policies(service) if run == "all" else _one(service, run) if run else _many(service, by)
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
    print_statuses(ended, output)
    for end in ended:
        if end.state != "Done":
            raise FailedWhileWaiting(failure(end))


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


def failure(end: "RunStatus") -> str:
    """Return why a run ended without success and what to do."""
    why = f": {end.why}" if end.why else ""
    remedy = f" ({end.remedy})" if end.remedy else ""
    return f"{end.run} is {end.state}{why}{remedy}"


# ---- What of runs is shown ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class View:
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


def _one(service: "Service", run: str) -> View:
    """Return the view of one run, with the stages of a pipeline."""
    from pi05ctl.views.tables import status_json

    name = service.find(run)
    return View(lambda: service.with_stages(name), _status_table, status_json, lambda s: s[0].ended)


def _many(service: "Service", by: "Wanted") -> View:
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

    return View(look, _status_table, status_json, lambda _: False, lambda: left[0])


def _left_out(service: "Service", there: int, shown: int, out: str) -> str:
    """Return what to say of runs that a table does not show."""
    if not there:
        return f"no runs in {service.storage.url} yet; start one: pi05ctl submit pipeline pushcube"
    if out:
        return f"left out: {out}"
    return "" if shown else f"none of the {there} runs is so"


def policies(service: "Service") -> View:
    """Return the view of the one table of all tasks."""
    from pi05ctl.views import tables

    def text(statuses: "Sequence[RunStatus]") -> str:
        rows = [tables.policy_row(one) for one in service.policies(statuses)]
        return terminal.table(tables.POLICIES_HEADER, rows)

    return View(
        lambda: [service.status(run) for run in service.newest()],
        text,
        lambda statuses: tables.policies_json(service.policies(statuses)),
        lambda statuses: all(status.ended for status in statuses),
    )


def _watch(view: View, output: Output) -> None:
    """Show statuses again and again: in place on a terminal, elsewhere whenever something changed."""
    if output is Output.text and terminal.is_terminal():
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False) as live:
            _repeat(view, lambda s: live.update(Text.from_ansi(view.text(s)), refresh=True))
        return
    _repeat(view, lambda s: terminal.out(view.shown(s, output)))


def _repeat(view: View, show: "Callable[[list[RunStatus]], None]") -> None:
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


def print_statuses(statuses: "Sequence[RunStatus]", output: Output) -> None:
    """Print how runs stand; nothing of none, as text."""
    from pi05ctl.views.tables import status_json

    if output is Output.json:
        terminal.out(status_json(statuses))
    elif statuses:
        terminal.out(_status_table(statuses))


def _status_table(statuses: "Sequence[RunStatus]") -> str:
    from pi05ctl.views.tables import HEADER, row

    return terminal.table(HEADER, [row(status) for status in statuses])
