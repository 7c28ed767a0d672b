"""The parts of a page about several runs: rates, comparisons and curves side by side -> pieces of HTML. Pure."""

from collections.abc import Mapping, Sequence
from html import escape

from pi05.results import interval
from pi05ctl.runs.comparison import Comparison
from pi05ctl.views import beside, drawing, sections
from pi05ctl.views.sections import Report


def success(task: str, reports: Sequence[Report]) -> str:
    """Return the rates of a task's runs, each with its interval, and what others reach."""
    rows = [_rate(report) for report in reports]
    note = (
        "<p class=quiet>The others are public reports of policies that see through cameras, not repeated here. "
        "Intervals of ours cover 95 %.</p>"
    )
    return sections.section(task, f"<ul class=bars>{''.join([*rows, *sections.others(task)])}</ul>{note}")


def compared(found: Comparison) -> str:
    """Return which run is better, over the same seeds, and what differs."""
    verdicts = "".join(f"<li>{escape(beside.sentence(pair))}" for pair in found.pairs)
    remarks = "".join(f"<li>{escape(remark[:1].upper() + remark[1:])}." for remark in found.remarks)
    runs, pairs, *settings = beside.rows(found)
    told = f"<p>Before the numbers are believed:</p><ul>{remarks}</ul>" if remarks else ""
    how = (
        "<p class=quiet>Difference: success of the run less that of the one it is compared with, in points, over the "
        "seeds of both; its interval is Newcombe's for pairs (1998, method 10), p McNemar's exact test. A gap is "
        "called one when both say so.</p>"
    )
    differ = "".join(_table(*table) for table in settings)
    body = f"<ul>{verdicts}</ul>{told}{_table(*runs)}{_table(*pairs)}{how}"
    return sections.section("Over the same seeds", body) + sections.section(
        "Settings that differ", differ or "<p>None.</p>"
    )


def refused(task: str, reason: str) -> str:
    """Return why the runs of a task are not compared."""
    return sections.section("Not compared", f"<p>{escape(task)}: {escape(reason)}.</p>")


def curves(title: str, label: str, lines: Mapping[str, drawing.Points]) -> str:
    """Return a value of several runs over training steps; nothing when none has two."""
    shown = {run: points for run, points in lines.items() if len(points) > 1}
    if not shown:
        return ""
    keys = "".join(
        f'<b><svg viewBox="0 0 20 10"><polyline class="line {drawing.shade(number)}" points="0,5 20,5"/></svg>'
        f"{escape(run)}</b>"
        for number, run in enumerate(shown)
    )
    return sections.section(title, f"<p class='quiet keys'>{keys}</p>{drawing.curves(shown, label)}")


def alone(report: Report, parts: Sequence[str]) -> str:
    """Return the page of one run, folded."""
    return f"<details><summary>{escape(report.status.run)}</summary>{''.join(parts)}</details>"


def _rate(report: Report) -> str:
    """Return a run's row of rates."""
    found, run = report.evaluation, report.status.run
    ends = interval(found.metrics) if found else None
    if found is None or ends is None:
        return f"<li><span>{escape(run)}</span><span class=quiet>not evaluated yet</span><span></span></li>"
    rate, (low, high) = 100 * found.metrics["success_once"], ends
    return sections.rated(run, found.described, f"{rate:.0f} %", rate, (100 * low, 100 * high))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    head = "".join(f"<th>{escape(cell)}" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    return f"<div class=scroll><table><tr>{head}{body}</table></div>"
