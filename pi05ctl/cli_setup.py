"""The commands around runs: doctor, init and gc. Written like those of cli.py, which adds them to its own."""

import json
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pi05ctl.errors import TargetError, unknown

if TYPE_CHECKING:
    from pi05ctl.doctor.finding import Finding
    from pi05ctl.settings import Settings

app = typer.Typer()

Output = Literal["text", "json"]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="Of this target: local or cluster; its default is in pi05.toml."),
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="Form of the output.")]
_COLOURS = {"ok": "32", "warning": "33", "missing": "1;31"}


@app.command()
def doctor(
    target: TargetOption = None,
    pods: Annotated[bool, typer.Option("--pods/--no-pods", help="Look from pods of each image, too.")] = True,
    light: Annotated[bool, typer.Option("--light", help="Those pods ask for little and no GPU.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="For each of those pods.")] = 300.0,
    output: OutputOption = "text",
) -> None:
    """Show what runs lack here, and the remedies.

    Exit code 0: nothing is missing, 3: something is. Without --no-pods it starts a pod of each image in the cluster,
    as real runs have them, and removes them afterwards.
    """
    settings = _settings()
    name = target or settings.target
    if name not in ("local", "cluster"):
        raise unknown("target", name, ["local", "cluster"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the pods are removed
    found = _local(settings) if name == "local" else _cluster(settings, pods, light, timeout)
    findings = _shown(found) if output == "text" else list(found)
    if output == "json":
        sys.stdout.write(json.dumps([_plain(finding) for finding in findings], indent=1, ensure_ascii=False) + "\n")
    missing = [finding.check for finding in findings if finding.state == "missing"]
    if missing:
        raise TargetError(f"missing: {', '.join(missing)} ({len(missing)} of {len(findings)} checks)")


def _settings() -> "Settings":
    """Return the settings that hold here."""
    from pi05ctl import settings

    return settings.load(Path.cwd(), os.environ, Path(sys.executable))


def _local(settings: "Settings") -> "Iterable[Finding]":
    """Look at this machine."""
    from pi05ctl.doctor import local
    from pi05ctl.doctor.finding import examine

    return examine(local.CHECKS, local.Site(settings), lambda: None)


def _cluster(settings: "Settings", pods: bool, light: bool, timeout: float) -> "Iterable[Finding]":
    """Look at the cluster, from here and from pods."""
    from pi05.storage import connect
    from pi05ctl.doctor import cluster
    from pi05ctl.doctor.finding import examine
    from pi05ctl.doctor.pods import Prober
    from pi05ctl.targets.cluster import revision
    from pi05ctl.targets.helm import Helm, version
    from pi05ctl.targets.kubernetes import Kubernetes

    here = settings.cluster
    kubernetes = Kubernetes(here.context, here.namespace, patience=0)
    site = cluster.Site(here, kubernetes, connect(here.storage), version, cluster.contexts)
    patient = Kubernetes(here.context, here.namespace)
    prober = Prober(here, Helm(here.context, here.namespace), patient, revision(), timeout, light)
    return examine([*cluster.CHECKS, *(prober.checks() if pods else ())], site, prober.stopping.set)


def _shown(findings: "Iterable[Finding]") -> "list[Finding]":
    """Print what is found as it is found, and return all of it."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    shown: list[Finding] = []
    for finding in findings:
        state = f"{finding.state:8}"
        if colour and finding.state in _COLOURS:
            state = f"\x1b[{_COLOURS[finding.state]}m{state}\x1b[0m"
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        sys.stdout.write(f"{state} {finding.check:12} {finding.text}{remedy}\n")
        sys.stdout.flush()
        shown.append(finding)
    return shown


def _plain(finding: "Finding") -> dict[str, str]:
    """Return a finding with its check first."""
    fields = asdict(finding)
    return {"check": fields.pop("check"), **fields}
