"""The commands around datasets. main.py adds them to its own."""

import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pi05ctl.cli import terminal
from pi05ctl.cli.options import Output, OutputOption, TargetOption, at_home, service_of

if TYPE_CHECKING:
    from pi05.config import DemosJob
    from pi05ctl.stored.datasets import Described
    from pi05ctl.stored.imports import Recorded, Wish

NameArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="Its key, a unique beginning of its digest, or a task (its newest).")
]

HEADER = ("DATASET", "DEMOS", "FRAMES", "SIZE", "AGE", "CAMERAS", "RENDERER", "YIELD", "S/DEMO")
_SEEDS_SHOWN = 200
"""Characters of a list of seeds; the json has all."""

datasets = typer.Typer(invoke_without_command=True)


@datasets.callback()
def alone(context: typer.Context) -> None:
    """Datasets of demonstrations; alone, it lists them."""
    if context.invoked_subcommand is None:
        list_datasets()


@datasets.command("list")
def list_datasets(output: OutputOption = Output.text, target: TargetOption = None) -> None:
    """Show the datasets: how many demonstrations, what they show, and what they took."""
    from pi05ctl.stored import datasets as found_in

    storage = service_of(target).storage
    found, damaged = found_in.described(storage)
    for problem in damaged:
        terminal.say(problem)
    if output is Output.json:
        terminal.out_json([plain(one) for one in found])
    elif found:
        terminal.out(terminal.table(HEADER, [row(one, time.time()) for one in found]))
    elif not damaged:
        terminal.say(f"no datasets in {storage.url} yet; make one: pi05ctl submit demos pushcube")


@datasets.command("show")
def show_dataset(name: NameArgument, output: OutputOption = Output.text, target: TargetOption = None) -> None:
    """Show what one dataset was made of, and what it took."""
    from pi05ctl.stored import datasets as found_in

    storage = service_of(target).storage
    one = found_in.describe(storage, found_in.find(storage, name))
    if output is Output.json:
        terminal.out_json(plain(one))
    else:
        terminal.out("".join(f"{word:<12} {terminal.plain(value)}\n" for word, value in facts(one, storage.url)))


@datasets.command("verify")
def verify_dataset(name: NameArgument, target: TargetOption = None) -> None:
    """Compare a dataset with its checksums, then look at every row and image. Exit code 3: something is damaged."""
    from pi05ctl.stored import datasets as found_in

    service = service_of(target)
    key = found_in.find(service.storage, name)
    found_in.verify(service.storage, key, service.settings.python)
    terminal.say(f"{service.storage.url}/{key}: every checksum agrees, every row and image is there")


@datasets.command("import")
def import_dataset(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A LeRobot dataset, or ManiSkill's download.", callback=at_home),
    ],
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="Whose demonstrations they are.")],
    maps: Annotated[
        list[str],
        typer.Option(
            "--map",
            metavar="THEIRS=OURS",
            help="Which feature is which: ours are state, action, base_camera, hand_camera, none. Of numbers also a "
            "part, as in 'robot_state[0:9]=state'. Usual names are found without.",
        ),
    ] = [],  # noqa: B006  # typer copies it
    size: Annotated[int | None, typer.Option("--size", metavar="PIXELS", help="Resize images to so many.")] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="HZ", help="What the rate is, where info.json has a wrong one.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option("--control-mode", metavar="MODE", help="Of the actions: pd_joint_pos, or what can become that."),
    ] = "pd_joint_pos",
    instruction: Annotated[
        str | None, typer.Option("--instruction", metavar="TEXT", help="Only episodes of this one, of several.")
    ] = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Take what does not look like demonstrations of the task.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="PRESET", help="To train it, and to render recordings for.")
    ] = None,
    target: TargetOption = None,
) -> None:
    """Make a dataset of ours of one that others made, verified. Exit code 3: it cannot be used, and why.

    A LeRobot dataset (v3.0 or v2.1) is converted. Recordings of ManiSkill (h5) are replayed and rendered by a run,
    which can be stopped and goes on. All options but --task and --preset are for LeRobot's.
    """
    from pi05 import tasks
    from pi05ctl.stored import imports

    if recorded := imports.recordings(folder, tasks.find(task)):
        _replay(recorded, task, target, preset)
        return
    options = [word for text in maps for word in ("--map", text)]
    given = {"--size": size, "--rate": rate, "--instruction": instruction}
    options += [word for name, value in given.items() if value is not None for word in (name, str(value))]
    options += ["--control-mode", mode, *(["--as-is"] if as_is else [])]
    _convert(imports.Wish(folder, task, tuple(options)), target, preset)


def _convert(wish: "Wish", target: str | None, preset: str | None) -> None:
    """Import a LeRobot folder, and say how to train on it."""
    from pi05ctl.stored import datasets as found_in
    from pi05ctl.stored.imports import import_dataset

    service = service_of(target)
    imported = import_dataset(service.storage, wish, service.settings.python)
    one = found_in.describe(service.storage, imported.key)
    there = "is there already, verified" if imported.already else "is there now, verified"
    terminal.say(f"{service.storage.url}/{imported.key} {there}: {one.demos:,} demonstrations, {one.frames:,} frames")
    terminal.out(f"{_training(one, preset or _preset(one), service.target.name)}\n")


def _replay(recorded: "Recorded", task: str, target: str | None, preset: str | None) -> None:
    """Replay ManiSkill's recordings in a demos run, follow it, and say how to train on what it makes."""
    from pi05ctl.cli.submit import submit
    from pi05ctl.errors import UsageError
    from pi05ctl.service import Request
    from pi05ctl.stored import datasets as found_in

    changes = [f"demos.source={recorded.path}", f"demos.count={recorded.episodes}", "demos.fewer=true"]
    service = service_of(target)
    if service.target.name == "cluster":
        raise UsageError(
            f"{recorded.path} is on this machine, and the pods of a cluster do not see it; replay it with --target "
            f"local, or from where pods see it: pi05ctl submit demos {task} --set demos.source=PATH"
        )
    terminal.say(f"replaying {recorded.episodes:,} recordings of {recorded.mode} from {recorded.path}")
    submit("demos", task, target, preset, changes, follow=True)
    (made,) = service.render(Request("demos", task, preset, changes))
    found_in.verify(service.storage, cast("DemosJob", made.job).dataset, service.settings.python)
    terminal.out(f"{made.spec.command('train')}\n")


def _preset(one: "Described") -> str:
    """Return a preset that sees what a dataset shows."""
    return "micro" if one.convention.cameras else "tiny"


def _training(one: "Described", preset: str, target: str) -> str:
    """Return the command that trains on an imported dataset; with `pipeline` for `train` it evaluates, too."""
    from pi05ctl.spec.runspec import RunSpec, resolve
    from pi05ctl.stored.imports import training_options

    wanted = resolve(RunSpec(kind="train", task=one.task, preset=preset, target=target)).convention
    changes = [f"demos.dataset={one.key.rpartition('/')[2]}", *training_options(one.convention, wanted)]
    if one.convention.cameras:
        changes.append("eval.renderer=any")  # nobody knows what drew the images, and an evaluation later asks
    words = ["pi05ctl", "submit", "train", one.task, "--target", target, "--preset", preset]
    return shlex.join([*words, *(word for change in changes for word in ("--set", change))])


def row(one: "Described", now: float) -> tuple[str, ...]:
    """Return a line of the list."""
    from pi05ctl.views import tables

    return (
        one.key.removeprefix("datasets/"),
        f"{one.demos:,}",
        f"{one.frames:,}",
        terminal.size(one.size),
        tables.duration(now - one.when),
        _cameras(one),
        one.renderer if one.convention.cameras else "",
        f"{one.demos / max(one.tried, 1):.0%}",
        f"{sum(one.seconds):.1f}",
    )


def facts(one: "Described", url: str) -> list[tuple[str, str]]:
    """Return everything about a dataset as words and values."""
    convention = one.convention
    seeds = spans_shown(one.seeds)
    failed = "; ".join(f"{count} times {reason}" for reason, count in one.failures.items())
    seen = f"{_cameras(one)}, drawn by {one.renderer}, the goal is {'' if one.goal_visible else 'not '}visible"
    return [
        ("dataset", f"{url}/{one.key}"),
        ("task", one.task),
        ("made", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(one.when))),
        ("holds", f"{one.demos:,} demonstrations, {one.frames:,} frames, {terminal.size(one.size)}"),
        ("cameras", seen if convention.cameras else "none"),
        ("control", f"{convention.robot}, {convention.control_mode}, {convention.control_rate} Hz"),
        ("state", f"a policy is told {convention.state}"),
        (
            "seeds",
            f"{seeds}; {one.tried} tried, yield {one.demos / max(one.tried, 1):.0%}"
            if one.seeds_known
            else f"not known; {one.demos} of {one.tried} episodes were imported",
        ),
        *([("failed", failed)] if failed else []),
        *(_replayed(one) if one.seeds_known else []),
        *([("source", one.source)] if one.source else []),
        ("made by", ", ".join(f"{name} {version}" for name, version in one.versions.items())),
    ]


def _replayed(one: "Described") -> list[tuple[str, str]]:
    """Return what making a dataset here took, and whether replays were the recordings."""
    return [
        ("took", f"{one.seconds[0]:.1f} s planning and {one.seconds[1]:.1f} s replay a demonstration"),
        ("replays", f"{one.inexact} differ from their recording" if one.inexact else "every bit as recorded"),
    ]


def plain(one: "Described") -> dict[str, Any]:
    """Return a dataset as JSON has it."""
    return {**asdict(one), "convention": one.convention.model_dump(mode="json")}


def spans_shown(seeds: tuple[int, ...]) -> str:
    """Return seeds in a line of bearable length."""
    from pi05ctl.stored.datasets import spans

    text = spans(seeds)
    return text if len(text) <= _SEEDS_SHOWN else f"{text[:_SEEDS_SHOWN].rpartition(', ')[0]}, ..., {seeds[-1]}"


def _cameras(one: "Described") -> str:
    convention = one.convention
    if not convention.cameras:
        return "none"
    names = " + ".join(name.removesuffix("_camera") for name in convention.cameras)
    return f"{names}, {convention.image_size} px"
