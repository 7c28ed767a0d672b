"""The command that says what a training needs and costs before GPUs are booked. main.py adds it to its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pi05ctl.cli import terminal
from pi05ctl.cli.options import Output, OutputOption, settings_here
from pi05ctl.errors import DoesNotFit, UsageError, unknown

if TYPE_CHECKING:
    from pi05ctl.planning.compiling import Compiler
    from pi05ctl.planning.planner import Planner
    from pi05ctl.service import Service
    from pi05ctl.spec.render import Rendered
    from pi05ctl.spec.settings import Settings

app = typer.Typer()
_PATIENCE = 1800.0
"""Seconds for a pod that compiles, the pull of its image included."""


@app.command()
def plan(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="train, or pipeline: its training.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="Of the training.")],
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help="Of the training.")] = "full",
    chip: Annotated[
        str | None, typer.Option("--chip", metavar="NAME", help="a100-80, h100, h200, b200 or l40s; see pi05.toml.")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", metavar="N", help="Of a node.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", metavar="N", help="Nodes.")] = None,
    price: Annotated[float | None, typer.Option("--price", metavar="P", help="Of a GPU and hour.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Replace a value of the preset. Repeatable."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="cluster: compile in a pod of it, without a GPU.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Compile nothing: estimate from sizes.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Show what a training needs and costs, on any GPUs.

    Memory by kind, what binds a step, time and money, read from the program that would run: compiled here, without a
    GPU, in some minutes, and kept. Without an environment that compiles (scripts/_setup cuda), and without a pod that
    does (--target cluster), it is estimated from sizes. Exit code 4: it does not fit; the setting with which it does is
    named.
    """
    from pi05ctl.planning import forecast
    from pi05ctl.planning.planner import machine_of, training

    if kind != "train" and kind != "pipeline":
        raise UsageError(f"only a training has a plan, not {kind}: pi05ctl plan train {task}")
    settings = settings_here()
    spec, job = training(settings, kind, task, preset, set_ or (), gpus, nodes)
    machine = machine_of(job, settings.cluster, chip, gpus, nodes)
    if price is not None and price < 0:
        raise UsageError(f"--price {price:g} must be at least 0")
    advice = _planner(settings, quick, target).advise(job, machine)
    if json_ or output is Output.json:
        terminal.out_json(forecast.data(advice, price))
    else:
        terminal.out("".join(f"{line}\n" for line in forecast.lines(advice, spec, machine, price)))
    if not advice.plan.fits:
        raise DoesNotFit(forecast.verdict(advice))


def admit(service: "Service", runs: "Sequence[Rendered]") -> list[str]:
    """Return what is to be said of runs that go to a cluster; raise DoesNotFit for one that cannot fit its GPUs.

    One that exists already has shown whether it fits.
    """
    from pi05.storage import RunPaths
    from pi05ctl.planning.admission import note

    planner = _planner(service.settings, quick=False)
    notes: dict[str, None] = {}  # each once, in order
    for run in runs:
        try:
            notes[note(run, service.settings.cluster, planner)] = None
        except DoesNotFit:
            if not service.storage.exists(RunPaths(run.run).spec):
                raise
    return [text for text in notes if text]


def _planner(settings: "Settings", quick: bool, target: str | None = None) -> "Planner":
    from pi05.storage import user_cache
    from pi05ctl.planning.planner import Planner

    return Planner(None if quick else _compiler(settings, target), user_cache() / "plans", terminal.say)


def _compiler(settings: "Settings", target: str | None) -> "Compiler | None":
    """Return what compiles: a pod of the cluster where that is asked for, or an environment here, if there is one."""
    if target not in (None, "local", "cluster"):
        raise unknown("target", str(target), ["local", "cluster"])
    if target == "cluster":
        from pi05ctl.cluster import helm
        from pi05ctl.cluster.api import Kubernetes
        from pi05ctl.cluster.target import revision
        from pi05ctl.doctor.described import InPod
        from pi05ctl.doctor.pods import Prober

        here = settings.cluster
        if here.unset:
            raise UsageError(f"{', '.join(here.unset)} in pi05.toml: not set yet; pi05ctl init asks for it")
        place = helm.Helm(here.context, here.namespace), Kubernetes(here.context, here.namespace)
        return InPod(Prober(here, *place, revision(), _PATIENCE, light=True), terminal.say)
    from pi05ctl.planning.compiling import Here

    return Here(Path(settings.cuda_python), terminal.say) if settings.cuda_python else None
