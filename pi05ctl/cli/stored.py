"""The commands around weights and checkpoints. Written like those of cli.py, which adds them to its own."""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pi05ctl.service import Service
    from pi05ctl.stored.artefacts import Checkpoint

Output = Literal["text", "json"]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As train.weights or train.tokenizer says it.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name, a unique beginning of it, or a task (its newest run).")
]
StepOption = Annotated[int | None, typer.Option("--step", metavar="STEP", help="Which one; without it, the newest.")]
ToOption = Annotated[Path, typer.Option("--to", metavar="DIR", help="A folder that does not exist yet.")]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="Of this target: local or cluster; its default is in pi05.toml."),
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="Form of the output.")]

weights = typer.Typer(help="Weights that training starts from, and tokenizers.", no_args_is_help=True)
checkpoints = typer.Typer(help="Checkpoints of training runs.", no_args_is_help=True)


@weights.command("push")
def push_weights(
    name: NameArgument,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="PATH", help="Folder of an Orbax checkpoint, or a .model file.")
    ] = None,
    target: TargetOption = None,
) -> None:
    """Put weights into storage, verified. What is there already and equal is left alone."""
    from pi05ctl.errors import UsageError
    from pi05ctl.stored import artefacts

    artefacts.weights_key(name)
    if source is None:
        raise UsageError(f"say what to push: --from PATH. The released ones: {artefacts.push_command(name)}")
    storage = _service(target).storage
    pushed = artefacts.push_weights(storage, name, source)
    what = "is there already, verified" if pushed.already else "is there now, verified"
    _say(f"{storage.url}/{pushed.key} {what}: {pushed.files} files, {_bytes(pushed.size)}")


@weights.command("verify")
def verify_weights(name: NameArgument, target: TargetOption = None) -> None:
    """Compare weights in storage with their checksums, file by file. Exit code 3: something is damaged."""
    from pi05ctl.stored import artefacts

    storage = _service(target).storage
    artefacts.verify_weights(storage, name)
    _say(f"{storage.url}/{artefacts.weights_key(name)}: every checksum agrees")


@weights.command("pull")
def pull_weights(name: NameArgument, to: ToOption, target: TargetOption = None) -> None:
    """Copy weights from storage to this machine, verified."""
    from pi05ctl.stored import artefacts

    artefacts.pull_weights(_service(target).storage, name, to)
    _say(f"{to}: every checksum agrees")


@checkpoints.command("list")
def list_checkpoints(run: RunArgument, output: OutputOption = "text", target: TargetOption = None) -> None:
    """Show a run's checkpoints: size, what each is for, age, why it is kept, and what evaluations of it found."""
    from pi05ctl.stored import artefacts

    service = _service(target)
    name = service.find_training(run)
    found = artefacts.checkpoints(service.storage, name)
    if output == "json":
        rows = [{"run": name, **asdict(one)} for one in found]
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return
    if not found:
        _say(f"{name} has no complete checkpoint in {service.storage.url} yet")
        return
    sys.stdout.write(_table(found, time.time()) + "\n")


@checkpoints.command("pull")
def pull_checkpoint(run: RunArgument, to: ToOption, step: StepOption = None, target: TargetOption = None) -> None:
    """Copy a checkpoint from storage to this machine, verified."""
    from pi05ctl.stored import artefacts

    service = _service(target)
    name = service.find_training(run)
    key = artefacts.checkpoint_key(service.storage, name, step)
    artefacts.pull(service.storage, key, to)
    _say(f"{to} is {key}: every checksum agrees")


@checkpoints.command("verify")
def verify_checkpoints(run: RunArgument, step: StepOption = None, target: TargetOption = None) -> None:
    """Compare a checkpoint in storage with its checksums, file by file. Exit code 3: something is damaged."""
    from pi05ctl.stored import artefacts

    service = _service(target)
    name = service.find_training(run)
    key = artefacts.checkpoint_key(service.storage, name, step)
    artefacts.verify_checkpoint(service.storage, key)
    _say(f"{service.storage.url}/{key}: every checksum agrees")


def _service(target: str | None) -> "Service":
    """Return the service of a target (or of the default one) under the settings that hold here."""
    from pi05ctl.service import Service
    from pi05ctl.spec import settings

    return Service(settings.load(Path.cwd(), os.environ, Path(sys.executable)), target)


def _table(found: "list[Checkpoint]", now: float) -> str:
    """Return the checkpoints as text."""
    from pi05ctl.views import tables

    header = ("STEP", "SIZE", "FOR", "AGE", "KEPT", "EVALUATED")
    rows = [
        (
            f"{one.step:,}",
            _bytes(one.size),
            "resume, policy" if one.resumable else "policy",
            tables.duration(now - one.when),
            one.kept,
            "; ".join(one.evaluated),
        )
        for one in found
    ]
    return tables.text_table(header, rows)


def _bytes(size: int) -> str:
    """Return a size as people read it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
