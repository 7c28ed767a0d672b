"""The command line whole: all commands, in the order of its help, and what every foreseen error becomes.

Each command parses its words, calls the service once, prints, and sets the exit code. stdout is for data, stderr for
people. Imports inside functions are on purpose: `--help` loads no pydantic and no rich.
"""

import gc
import sys
from collections.abc import Sequence

import typer

from pi05.errors import JobError
from pi05ctl.cli import datasets, described, numbers, plan, runs, setup, stored, submit, terminal
from pi05ctl.errors import INTERRUPTED, CtlError, TargetError, UsageError, exit_code

app = typer.Typer(
    name="pi05ctl",
    help="Train and evaluate Pi0.5 robot policies on ManiSkill tasks.\n\n"
    "pi05ctl submit pipeline pushcube --follow makes demonstrations, trains on them and evaluates the policy.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 usage, 3 target, storage or network, "
    "4 does not fit, 124 wait timed out, 125 the run failed while waiting, 130 Ctrl-C (the run goes on).",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

for commands in (submit, runs, numbers, plan, described, setup):
    app.add_typer(commands.app)
app.add_typer(datasets.datasets, name="datasets")
app.add_typer(stored.weights, name="weights")
app.add_typer(stored.checkpoints, name="checkpoints")


def main() -> None:
    """Run the command line: every foreseen error is one line on stderr and an exit code."""
    gc.set_threshold(100_000)  # what makes a table of many runs stays until the end: looking for garbage is in vain
    terminal.prepare()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="pi05ctl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (CtlError, JobError) as error:
        terminal.say(str(error))
        return exit_code(error)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is a page
            terminal.out(error.format_message() + "\n")
        else:
            terminal.say(_usage(error))
        return UsageError.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        terminal.say(str(error))
        return TargetError.exit_code


def _usage(error: typer.TyperException) -> str:
    """Return Typer's complaint as one line in our words."""
    near: Sequence[str] | None = getattr(error, "possibilities", None)
    text = str(getattr(error, "message", "")) if near else error.format_message()
    if near:
        text = f"{text.rstrip('.')}; did you mean {near[0]!r}?"
    return f"{text} (pi05ctl --help lists what there is)"
