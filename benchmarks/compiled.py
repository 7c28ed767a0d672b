"""The step of the full preset as compiled for 8 H100 that are not there, beside the reference implementation's program.

Reads what the program needs and what it costs one GPU at least: a roofline, no clock (pi05/plan/program.py). The figure
of the reference is that of its own step with its own sharding, compiled for the same chips and read in the same way, on
its own input: three cameras and 200 tokens. The program's text stays in build/compiled.

    scripts/bench compiled [--reference-input] [--nodes 2] [--gpus 8] [--chip h100] [--set compute.recompute=layers]
    scripts/bench compiled --estimate       several presets, chips and ways to compute, beside estimates from sizes
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from pi05.chips import CHIPS, Machine, find
from pi05.config import TrainJob
from pi05.plan.compiled import Compiled, compile_step, plan
from pi05.plan.estimate import estimate
from pi05.plan.program import Cost, read
from pi05ctl.spec.render import render
from pi05ctl.spec.runspec import RunSpec, parse_assignment
from pi05ctl.spec.settings import Settings

FOLDER = Path("build/compiled")
CAMERAS, TOKENS = ("base_camera", "hand_camera", "third_camera"), 200
"""The reference's input, whatever there is to see and to say."""
PROMPT = 64
"""Tokens of a ManiSkill task's prompt with 8 joints, less than 8 of them padding."""
REFERENCE = 0.316
"""Seconds of the reference's program, kernels and wire one after the other."""
RATIO = "times as fast as the reference"
BESIDE = {
    False: {
        "wire, GB": (62.4, 14.0),
        "roofline of kernels, ms": (259.0, 115.0),
        "TFLOP": (82.0, 66.0),
        "state and temporary, GB": (11.6, 30.0),
        RATIO: (0.79, 2.1),
    },
    True: {RATIO: (0.52, 1.35)},
}
"""Of 8 H100 and batch 64, on our input and on the reference's: before activations stayed where their samples are, and
what the project wants to reach."""


CONFIGURATIONS = (
    ("small", "a100-80", 1, 1, ()),
    ("lora", "l40s", 1, 1, ()),
    ("full", "h100", 8, 1, ()),
    ("full", "h100", 8, 1, ("compute.layers=looped",)),
    ("full", "h100", 8, 1, ("compute.layers=looped", "compute.recompute=layers", "train.batch_size=128")),
    ("full", "h100", 8, 2, ("compute.layers=looped", "train.batch_size=128")),
    ("full", "h200", 8, 1, ("compute.layers=looped", "compute.recompute=cheap", "train.batch_size=128")),
    ("full", "b200", 8, 1, ("compute.layers=looped", "compute.microbatches=4", "train.batch_size=128")),
    ("full", "a100-80", 8, 1, ("compute.layers=looped",)),
)
"""Of --estimate: preset, chip, GPUs of a node, nodes, and settings."""


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench compiled")
    parser.add_argument("--reference-input", action="store_true", help=f"three cameras and {TOKENS} tokens")
    parser.add_argument("--estimate", action="store_true", help="how far off estimates from sizes are")
    parser.add_argument("--chip", default="h100", choices=CHIPS)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="as of pi05ctl")
    return parser.parse_args()


def job_of(preset: str, assignments: Sequence[str]) -> TrainJob:
    """Return what a run of a preset is told."""
    overrides = dict(parse_assignment(text) for text in assignments)
    spec = RunSpec(kind="train", task="stackcube", preset=preset, target="cluster", overrides=overrides)
    job = render(spec, Settings(storage="", python="", planner_python="")).job
    assert isinstance(job, TrainJob)
    return job


def main() -> None:
    """Compile, keep the text, read it, and print a table and a line of JSON."""
    given = arguments()
    if given.estimate:
        beside_estimates()
        return
    machine = Machine(find(given.chip), given.gpus, given.nodes)
    start = time.monotonic()
    tokens, cameras = (TOKENS, CAMERAS) if given.reference_input else (PROMPT, None)
    compiled = compile_step(job_of("full", given.set), machine, tokens, cameras)
    words = ["full", given.chip, f"{given.nodes}x{given.gpus}", *["reference"] * given.reference_input, *given.set]
    path = FOLDER / f"{'-'.join(words)}.hlo"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compiled.text)
    print(f"compiled in {time.monotonic() - start:.0f} s: {path}")
    cost = read(compiled.text, machine.chip, machine.gpus)
    now, beside = figures(compiled, cost), {}
    if (given.chip, given.gpus, given.nodes) == ("h100", 8, 1):
        beside = BESIDE[given.reference_input]
        now[RATIO] = REFERENCE / (cost.kernel_seconds + cost.wire_seconds)
    table(now, beside)
    words_of(cost, machine)
    print(json.dumps({"name": "compiled", "program": str(path), **line(compiled, cost)}))


def beside_estimates() -> None:
    """Compile the configurations, print their needs and times beside the estimates, and the largest errors as JSON."""
    print(f"{'':86}{'GB a GPU':>16}{'ms a step':>26}")
    print(f"{'':86}{'compiled':>9}{'sizes':>7}{'':8}{'compiled':>11}{'sizes':>7}")
    errors: list[tuple[float, float]] = []
    for preset, chip, gpus, nodes, settings in CONFIGURATIONS:
        job, machine = job_of(preset, settings), Machine(find(chip), gpus, nodes)
        rough = estimate(job, machine)
        real = plan(job, machine, compile_step(job, machine, rough.tokens), rough.tokens, tokens_known=False)
        bytes_off = rough.needs.total / real.needs.total - 1
        time_off = rough.times.step / real.times.step - 1
        errors.append((abs(bytes_off), abs(time_off)))
        print(
            f"{preset}, {machine.words} {' '.join(settings):<70.70}"[:86].ljust(86)
            + f"{real.needs.total / 1e9:9.1f}{rough.needs.total / 1e9:7.1f}{bytes_off:+8.1%}"
            + f"{real.times.step * 1e3:11.1f}{rough.times.step * 1e3:7.1f}{time_off:+8.1%}",
            flush=True,
        )
    memory, time_ = (max(column) for column in zip(*errors, strict=True))
    print(json.dumps({"name": "compiled", "memory_error": round(memory, 3), "step_error": round(time_, 3)}))


def figures(compiled: Compiled, cost: Cost) -> dict[str, float]:
    """Return what is compared, of one GPU and step."""
    return {
        "wire, GB": sum(cost.wire.values()) / 1e9,
        "roofline of kernels, ms": cost.kernel_seconds * 1e3,
        "TFLOP": cost.flops / 1e12,
        "state and temporary, GB": compiled.needs.total / 1e9,
    }


def table(now: dict[str, float], beside: dict[str, tuple[float, float]]) -> None:
    """Print figures beside what they were and what they are to be, where that is of the same program."""
    print(f"{'a GPU and step':34}{'landed':>10}{'reach':>10}{'now':>10}")
    for name, value in now.items():
        landed, reach = (f"{number:g}" for number in beside[name]) if name in beside else ("", "")
        print(f"{name:34}{landed:>10}{reach:>10}{value:>10.2f}")


def words_of(cost: Cost, machine: Machine) -> None:
    """Print what binds the kernels, and how long a step takes at least."""
    parts = {"compute": cost.compute, "memory": cost.bandwidth, "launches": cost.launches}
    bound = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in parts.items())
    print(f"{cost.kernels:,} kernels, {cost.memory / 1e9:.0f} GB: {bound}; {cost.collectives} collectives")
    alone, together = cost.kernel_seconds + cost.wire_seconds, cost.schedule
    print(f"kernels, then wire {alone * 1e3:.1f} ms; side by side as the program has them {together * 1e3:.1f} ms")
    if machine.nodes > 1:
        print(f"over the network {cost.network / 1e9:.2f} GB a node and step")


def line(compiled: Compiled, cost: Cost) -> dict[str, float]:
    """Return the figures for machines."""
    return {
        "state_gb": round((compiled.needs.total - compiled.needs.temporary) / 1e9, 2),
        "temporary_gb": round(compiled.needs.temporary / 1e9, 2),
        "wire_gb": round(sum(cost.wire.values()) / 1e9, 2),
        "kernels_ms": round(cost.kernel_seconds * 1e3, 1),
        "tflop": round(cost.flops / 1e12, 1),
    }


if __name__ == "__main__":
    main()
