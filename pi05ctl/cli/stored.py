"""The commands around weights and checkpoints. main.py adds them to its own."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pi05ctl.cli import terminal
from pi05ctl.cli.options import Output, OutputOption, RunArgument, TargetOption, at_home, service_of

if TYPE_CHECKING:
    from pi05ctl.stored.artefacts import Checkpoint

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As train.weights or train.tokenizer says it.")]
StepOption = Annotated[int | None, typer.Option("--step", metavar="STEP", help="Which one; without it, the newest.")]
ToOption = Annotated[
    Path, typer.Option("--to", metavar="DIR", help="A folder that does not exist yet.", callback=at_home)
]

weights = typer.Typer(help="Weights that training starts from, and tokenizers.", no_args_is_help=True)
checkpoints = typer.Typer(help="Checkpoints of training runs.", no_args_is_help=True)


@weights.command("push")
def push_weights(
    name: NameArgument,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PATH", help="Folder of an Orbax checkpoint, or a .model file.", callback=at_home
        ),
    ] = None,
    target: TargetOption = None,
) -> None:
    """Put weights into storage, verified. What is there already and equal is left alone."""
    from pi05ctl.errors import UsageError
    from pi05ctl.stored import artefacts

    artefacts.weights_key(name)
    if source is None:
        raise UsageError(f"say what to push: --from PATH. The released ones: {artefacts.push_command(name)}")
    service = service_of(target)
    storage = service.storage
    pushed = artefacts.push_weights(storage, name, source, service.settings.python)
    verified = "every checksum agrees" if pushed.unopened else "verified"
    what = f"is there already, {verified}" if pushed.already else f"is there now, {verified}"
    terminal.say(f"{storage.url}/{pushed.key} {what}: {pushed.files} files, {terminal.size(pushed.size)}")
    if pushed.unopened:
        terminal.say(f"it was not opened, so a job may still find it damaged: {pushed.unopened}")


@weights.command("verify")
def verify_weights(name: NameArgument, target: TargetOption = None) -> None:
    """Compare weights in storage with their checksums, file by file. Exit code 3: something is damaged."""
    from pi05ctl.stored import artefacts

    storage = service_of(target).storage
    artefacts.verify_weights(storage, name)
    terminal.say(f"{storage.url}/{artefacts.weights_key(name)}: every checksum agrees")


@weights.command("pull")
def pull_weights(name: NameArgument, to: ToOption, target: TargetOption = None) -> None:
    """Copy weights from storage to this machine, verified."""
    from pi05ctl.stored import artefacts

    artefacts.pull_weights(service_of(target).storage, name, to)
    terminal.say(f"{to}: every checksum agrees")


@checkpoints.command("list")
def list_checkpoints(run: RunArgument, output: OutputOption = Output.text, target: TargetOption = None) -> None:
    """Show a run's checkpoints: size, what each is for, age, why it is kept, and what evaluations of it found."""
    from pi05ctl.stored import artefacts

    service = service_of(target)
    name = service.find_training(run)
    found = artefacts.checkpoints(service.storage, name)
    if output is Output.json:
        rows = [{"run": name, **asdict(one)} for one in found]
        terminal.out_json(rows)
        return
    if not found:
        terminal.say(f"{name} has no complete checkpoint in {service.storage.url} yet")
        return
    terminal.out(_table(found, time.time()))


@checkpoints.command("pull")
def pull_checkpoint(run: RunArgument, to: ToOption, step: StepOption = None, target: TargetOption = None) -> None:
    """Copy a checkpoint from storage to this machine, verified."""
    from pi05ctl.stored import artefacts

    service = service_of(target)
    name = service.find_training(run)
    key = artefacts.checkpoint_key(service.storage, name, step)
    artefacts.pull(service.storage, key, to)
    terminal.say(f"{to} is {key}: every checksum agrees")


@checkpoints.command("verify")
def verify_checkpoints(run: RunArgument, step: StepOption = None, target: TargetOption = None) -> None:
    """Compare a checkpoint in storage with its checksums, file by file. Exit code 3: something is damaged."""
    from pi05ctl.stored import artefacts

    service = service_of(target)
    name = service.find_training(run)
    key = artefacts.checkpoint_key(service.storage, name, step)
    artefacts.verify_checkpoint(service.storage, key)
    terminal.say(f"{service.storage.url}/{key}: every checksum agrees")


def _table(found: "list[Checkpoint]", now: float) -> str:
    """Return the checkpoints as text."""
    from pi05ctl.views import tables

    header = ("STEP", "SIZE", "FOR", "AGE", "KEPT", "EVALUATED")
    rows = [
        (
            f"{one.step:,}",
            terminal.size(one.size),
            "resume, policy" if one.resumable else "policy",
            tables.duration(now - one.when),
            one.kept,
            "; ".join(one.evaluated),
        )
        for one in found
    ]
    return terminal.table(header, rows)
