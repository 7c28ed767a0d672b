"""The commands about what runs found: results, compare, report and plot. main.py adds them to its own."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pi05ctl.cli import terminal
from pi05ctl.cli.options import Output, OutputOption, RunArgument, TargetOption, service_of
from pi05ctl.cli.runs import policies
from pi05ctl.errors import UsageError

if TYPE_CHECKING:
    from pi05ctl.service import Service

app = typer.Typer()


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
        view = policies(service)
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
