"""The commands around runs: doctor, init and gc. main.py adds them to its own."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pi05ctl.cli import terminal
from pi05ctl.cli.options import Output, OutputOption, TargetOption, service_of, settings_here
from pi05ctl.errors import TargetError, Unreachable, UsageError, unknown

if TYPE_CHECKING:
    from pi05ctl.doctor.finding import Finding
    from pi05ctl.runs import gc as collector
    from pi05ctl.service import Service
    from pi05ctl.spec.settings import Settings

app = typer.Typer()

_PATIENCE = 5.0
"""Seconds that doctor waits for a bucket."""


@app.command()
def doctor(
    target: TargetOption = None,
    pods: Annotated[bool, typer.Option("--pods/--no-pods", help="Look from pods of each image, too.")] = True,
    light: Annotated[bool, typer.Option("--light", help="Those pods ask for little and no GPU.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="For each of those pods.")] = 300.0,
    output: OutputOption = Output.text,
) -> None:
    """Show what runs lack here, and the remedies.

    Exit code 0: nothing is missing, 3: something is. Without --no-pods it starts a pod of each image in the cluster,
    as real runs have them, and removes them afterwards.
    """
    settings = settings_here()
    name = target or settings.target
    if name not in ("local", "cluster"):
        raise unknown("target", name, ["local", "cluster"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the pods are removed
    found = _local(settings) if name == "local" else _cluster(settings, pods, light, timeout)
    findings = _shown(found) if output is Output.text else list(found)
    if output is Output.json:
        terminal.out_json([_plain(finding) for finding in findings])
    missing = [finding.check for finding in findings if finding.state == "missing"]
    if missing:
        raise TargetError(f"missing: {', '.join(missing)} ({len(missing)} of {len(findings)} checks)")


def _local(settings: "Settings") -> "Iterable[Finding]":
    """Look at this machine."""
    from pi05ctl.doctor import local
    from pi05ctl.doctor.finding import examine

    return examine(local.CHECKS, local.Site(settings), lambda: None)


def _cluster(settings: "Settings", pods: bool, light: bool, timeout: float) -> "Iterable[Finding]":
    """Look at the cluster, from here and from pods."""
    from pi05.storage import connect
    from pi05ctl.cluster import helm
    from pi05ctl.cluster.api import Kubernetes
    from pi05ctl.cluster.kubeconfig import contexts
    from pi05ctl.cluster.target import revision
    from pi05ctl.doctor import cluster
    from pi05ctl.doctor.finding import examine
    from pi05ctl.doctor.pods import Prober

    here = settings.cluster
    kubernetes = Kubernetes(here.context, here.namespace, patience=0)
    site = cluster.Site(here, kubernetes, connect(here.storage, _PATIENCE), helm.version, contexts)
    patient = Kubernetes(here.context, here.namespace)
    prober = Prober(here, helm.Helm(here.context, here.namespace), patient, revision(), timeout, light)
    return examine([*cluster.CHECKS, *(prober.checks() if pods else ())], site, prober.stopping.set)


def _shown(findings: "Iterable[Finding]") -> "list[Finding]":
    """Print what is found as it is found, and return all of it."""
    shown: list[Finding] = []
    for finding in findings:
        state = terminal.coloured(finding.state, f"{finding.state:8}")
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        terminal.out(f"{state} {finding.check:12} {terminal.plain(finding.text + remedy)}\n")
        shown.append(finding)
    return shown


def _plain(finding: "Finding") -> dict[str, str]:
    """Return a finding with its check first."""
    fields = asdict(finding)
    return {"check": fields.pop("check"), **fields}


@app.command()
def init(
    context: Annotated[str | None, typer.Option("--context", metavar="NAME", help="Context of the kubeconfig.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="Where runs live.")] = None,
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="URL", help="gs:// or s3://bucket/folder for all that runs write."),
    ] = None,
    registry: Annotated[
        str | None, typer.Option("--registry", metavar="PREFIX", help="Images are PREFIX/pi05-{train,sim,ctl}:TAG.")
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(
            "--tag", metavar="TAG", help="Of the images; default: as scripts/images names those of this source."
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="NAME=IMAGE", help="One image by itself: train=..., sim=..., ctl=..."),
    ] = None,
    queue: Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Kueue's LocalQueue.")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Ask nothing: options and defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a pi05.toml that is here.")] = False,
) -> None:
    """Write pi05.toml for a cluster, asking for what it needs."""
    from importlib.metadata import version

    from pi05ctl.cli import init as files

    path = Path.cwd() / files.FILE
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force replaces it")
    if not yes and not terminal.can_ask():
        raise UsageError("stdin is no terminal, so nothing can be asked; use -y and options (pi05ctl init --help)")
    images = files.image_options(image or [])
    given = files.Given(context, namespace, storage, registry, tag, images, queue)
    known, current = _contexts()
    answers = files.collect(given, known, current, _tag() or version("pi05"), _take_default if yes else terminal.ask)
    written = files.write(Path.cwd(), answers, force)
    terminal.out(f"wrote {written}\nnext:\n{files.next_steps(answers)}")


@app.command()
def gc(
    older: Annotated[str, typer.Option("--older-than", metavar="AGE", help="Of runs that ended so long ago.")] = "7d",
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Intermediate files of failed and cancelled runs, too: resume uses them."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: OutputOption = Output.text,
    target: TargetOption = None,
) -> None:
    """Remove what ended runs have left behind.

    Releases and Jobs in the cluster, intermediate files and broken uploads in storage; never a dataset, checkpoint,
    result, record or log.
    """
    from pi05ctl.runs import gc as collector

    rules = collector.Rules(time.time(), collector.seconds(older), unfinished)
    place, cluster = _target(target)
    found = collector.survey(place, cluster, rules)
    for line in found.left:
        terminal.say(f"stays: {line}")
    removed: list[tuple[collector.Leftover, str]] = []
    if dry_run or not found.leftovers:
        removed = [(leftover, "dry run") for leftover in found.leftovers]
    else:
        _confirm([_leftover(one) for one in found.leftovers], yes)
        removed = list(collector.remove(place, cluster, found.leftovers, time.sleep))
    _print_removed(removed, found.left, dry_run, output)
    if not dry_run and any(why for _, why in removed):
        raise TargetError(f"{sum(bool(why) for _, why in removed)} of {len(removed)} could not be removed")


@app.command()
def delete(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Names, or unique beginnings of them; no task's name.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    target: TargetOption = None,
) -> None:
    """Remove runs for good: record, log, checkpoints, results.

    Datasets and weights stay. Refused while a run works, and while others build on it: an evaluation on its training, a
    pipeline on its stages.
    """
    from pi05.tasks import TASKS
    from pi05ctl.runs import removal

    if tasks := [run for run in runs if run in TASKS]:
        raise UsageError(f"{tasks[0]} is a task, not a run; pi05ctl status --task {tasks[0]} lists its runs")
    service = service_of(target)
    place, cluster = _target(target)
    names = removal.check(place.storage, [service.find(run) for run in runs])
    lines = [f"{name}  {_state(service, name)}  {removal.size(place.storage, name)}" for name in names]
    if not dry_run:
        _confirm(lines, yes)
    for name, line in zip(names, lines, strict=True):
        if not dry_run:
            removal.remove(place, cluster, name, time.sleep)
        terminal.out(f"{'would remove' if dry_run else 'removed'}: {line}\n")


def _state(service: "Service", run: str) -> str:
    """Return how a run stands; one whose record cannot be read may be removed, too."""
    try:
        return service.status(run).state
    except Unreachable:
        raise
    except TargetError:
        return "damaged"


def _tag() -> str:
    """Return the tag that scripts/images gives to images of this source; empty without a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    done = subprocess.run([str(root / "scripts/images"), "--show-tag"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _contexts() -> tuple[tuple[str, ...], str | None]:
    """Return the contexts of the kubeconfig and the current one; none when there is no kubeconfig yet."""
    from pi05ctl.cluster.kubeconfig import contexts

    try:
        found = contexts()
    except TargetError as error:
        terminal.say(f"no context to choose from: {error}")
        return (), None
    return found.names, found.current


def _take_default(question: str, default: str, check: Callable[[str], None]) -> str:
    """Answer a question with its default."""
    del question
    check(default)
    return default


def _target(name: str | None) -> "tuple[collector.Target, collector.Cluster | None]":
    """Return a target, and the cluster if it is one."""
    target = service_of(name).target
    if target.name != "cluster":
        return target, None
    from pi05ctl.cluster.target import ClusterTarget

    assert isinstance(target, ClusterTarget)
    return target, target


def _confirm(lines: list[str], yes: bool) -> None:
    """Ask whether it shall be done; without a terminal only -y says so."""
    if yes:
        return
    if not terminal.can_ask():
        raise UsageError("stdin is no terminal, so nobody can be asked; -y removes it, --dry-run shows it")
    terminal.confirm([f"would remove: {line}" for line in lines], f"remove these {len(lines)}?")


def _leftover(one: "collector.Leftover") -> str:
    return f"{one.run}  {one.state}  {one.what}" if one.run else f"{one.state}  {one.what}"


def _print_removed(
    removed: "list[tuple[collector.Leftover, str]]", left: tuple[str, ...], dry_run: bool, output: Output
) -> None:
    """Print what was removed, or would be, and what could not."""
    if output is Output.json:
        rows = [{**asdict(one), "removed": not why, "why": why} for one, why in removed]
        terminal.out_json({"leftovers": rows, "left": left})
        return
    for one, why in removed:
        word = "would remove" if dry_run else "could not remove" if why else "removed"
        reason = f" ({why})" if why and not dry_run else ""
        terminal.out(f"{word}: {terminal.plain(_leftover(one) + reason)}\n")
    if not removed:
        terminal.say("nothing to remove")
