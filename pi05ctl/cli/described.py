"""The command `options`: what can be set, with what each preset says. main.py adds it to its own."""

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pi05ctl.cli import terminal
from pi05ctl.cli.options import Output, OutputOption

if TYPE_CHECKING:
    from pi05ctl.spec.described import Option

app = typer.Typer()

_WIDTH = 100


@app.command()
def options(
    section: Annotated[
        str, typer.Argument(metavar="[SECTION]", help="As in train, train.optimizer, or one option: train.steps.")
    ] = "",
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="Whose steps and limits are shown.")] = "pushcube",
    output: OutputOption = Output.text,
) -> None:
    """Show what --set can set and what each preset says.

    Of each option: path, what it may be, its value in each preset, and a sentence on what it is.
    """
    from pi05ctl.spec import described

    found = described.options(task, section)
    if output is Output.json:
        terminal.out_json([asdict(one) for one in found])
        return
    terminal.out("\n".join(map(_told, found)))


def _told(one: "Option") -> str:
    """Return an option in three lines or more."""
    said = textwrap.fill(one.sentence, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{one.path}  ({one.kind})\n    {_values(one)}\n{said}\n"


def _values(one: "Option") -> str:
    """Return `all 0.99`, or each value with the presets that have it: `tiny 4000; small, full 30000`."""
    from pi05ctl.spec.runspec import format_value

    of_value: dict[str, list[str]] = {}
    for preset, value in one.values.items():
        of_value.setdefault(format_value(value), []).append(preset)
    if len(of_value) == 1:
        return f"all {next(iter(of_value))}"
    return "; ".join(f"{', '.join(presets)} {value}" for value, presets in of_value.items())
