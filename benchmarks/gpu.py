"""One H100 or H200, 8 minutes: parity, attention, steps, LoRA, acting and restoring, by the project's own code.

Nothing is downloaded; it needs a Python with JAX 0.10 or 0.11 for CUDA 12 or 13, flax, optax, orbax, jaxtyping,
pydantic and numpy, and finds the golden numbers in $PI05_GOLDEN or beside the checkout. Parts fail alone, each in its
share of the time. What the plan predicts is beside what is measured.

    scripts/bench gpu [--python PYTHON] [--parts step,acting] [--minutes 8] [--cpu]
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import jax

from benchmarks.gpu_kit import acting, attention, parity, parts, restoring, sizes, step
from benchmarks.gpu_kit.parts import Part, Row
from pi05 import cuda

PARTS = (
    Part("parity", 70, parity.cases),
    Part("attention", 40, attention.cases),
    Part("step", 190, step.cases),
    Part("lora", 60, step.lora_cases),
    Part("acting", 75, acting.cases),
    Part("restoring", 35, restoring.cases),
)
"""In this order, with their shares of the time: seconds of 8 minutes."""
_STARTING = 10
_QUICK = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
"""On a CPU compiling takes longest and the figures say nothing."""
_PATIENCE = 120.0
"""Minutes on a CPU, which may be busy: there is nothing to hurry for."""


def arguments() -> argparse.Namespace:
    """Return the command line."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="scripts/bench gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(names), help=f"some of {', '.join(names)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all these parts together; default: 8")
    parser.add_argument("--cpu", action="store_true", help="small sizes on a CPU, to try the kit out")
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    if unknown := [name for name in given.parts if name not in names]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(names)}")
    return given


def main() -> None:
    """Run the parts, say each row when it is there, and print all as a line of JSON."""
    given, begin = arguments(), time.monotonic()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")  # as the chart has it
    if given.cpu:
        os.environ |= _QUICK
    machine = parts.in_a_child(_machine)
    if not given.cpu and machine.get("platform") != "gpu":
        sys.exit(f"bench: JAX has no GPU here, but {machine}; {cuda.driver()}. --cpu tries the kit out on a CPU")
    print(" · ".join(map(str, machine.values())), flush=True)
    rows = parts.run(_chosen(given), sizes.CPU if given.cpu else sizes.GPU, _say)
    seconds = round(time.monotonic() - begin, 1)
    print(json.dumps({"name": "gpu", **machine, "seconds": seconds, "parts": rows}))
    sys.exit(any("failed" in row for part in rows.values() for row in part))


def _chosen(given: argparse.Namespace) -> list[Part]:
    """Return the parts to run, with their shares of the time that there is for all of them."""
    some = [part for part in PARTS if part.name in given.parts]
    seconds = 60 * (_PATIENCE if given.cpu else given.minutes) - _STARTING
    share = seconds / sum(part.seconds for part in some)
    return [replace(part, seconds=part.seconds * share) for part in some]


def _machine() -> Row:
    """Return what it is measured on."""
    device = jax.devices()[0]
    versions = " ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib"))
    return {"device": device.device_kind, "platform": device.platform, "versions": versions, "driver": cuda.driver()}


def _say(part: str, row: Row) -> None:
    """Print a row for people."""
    figures = " · ".join(f"{name} {value}" for name, value in row.items())
    print(f"{part:10} {figures.removeprefix('what ')}", flush=True)


if __name__ == "__main__":
    main()
