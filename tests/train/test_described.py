"""The real step compiled for GPUs that are described and not there, in .venv-cuda: what it needs, costs and sends.

One compilation of the full preset; what every change of the model must keep is asserted here.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from pi05.chips import Machine, find
from pi05.config import TrainJob
from pi05.plan.document import Plan
from pi05.plan.estimate import estimate
from pi05ctl.spec.render import render, to_json
from pi05ctl.spec.runspec import RunSpec, parse_assignment
from pi05ctl.spec.settings import Settings

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable).parents[2] / ".venv-cuda/bin/python"
"""Made by scripts/test, which the group needs; without it these tests fail."""
MINUTES = 10


def job(preset: str, task: str, *assignments: str) -> TrainJob:
    overrides = dict(parse_assignment(text) for text in assignments)
    spec = RunSpec(kind="train", task=task, preset=preset, target="cluster", overrides=overrides)
    made = render(spec, Settings(storage="", python="", planner_python="")).job
    assert isinstance(made, TrainJob)
    return made


def compiled(folder: Path, told: TrainJob, nodes: int = 1) -> Plan:
    path = folder / "job.json"
    path.write_bytes(to_json(told))
    command = [PYTHON, "-m", "pi05.jobs.plan", path, "--chip", "h100", "--gpus", "8", "--nodes", str(nodes)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        timeout=MINUTES * 60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Plan.model_validate_json(done.stdout)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return compiled(tmp_path_factory.mktemp("full"), job("full", "stackcube"))


@pytest.mark.timeout(MINUTES * 60)
def test_the_full_preset_keeps_its_bounds_on_eight_h100(full: Plan) -> None:
    times = full.times
    assert full.wire <= 14e9
    assert times.compute + times.memory + times.launches <= 0.115
    assert full.flops <= 66e12
    assert full.needs.total <= 30e9


def test_hardly_a_product_is_computed_twice(full: Plan) -> None:
    assert full.flops <= full.model_flops


def test_most_of_the_wire_is_hidden_behind_kernels(full: Plan) -> None:
    times = full.times
    kernels = times.compute + times.memory + times.launches
    assert kernels < times.step < kernels + 0.3 * times.wire


def test_the_estimate_from_sizes_is_within_a_tenth(full: Plan) -> None:
    rough = estimate(job("full", "stackcube"), Machine(find("h100"), 8))
    assert rough.needs.state == pytest.approx(full.needs.state, rel=1e-4)
    assert rough.needs.total == pytest.approx(full.needs.total, rel=0.1)
    assert rough.times.step == pytest.approx(full.times.step, rel=0.1)


@pytest.mark.timeout(MINUTES * 60)
def test_between_nodes_only_gradients_move(tmp_path: Path) -> None:
    told = job("small", "pushcube", "train.fsdp_devices=8", "compute.layers=looped")
    plan = compiled(tmp_path, told, nodes=2)
    numbers = plan.needs.moments / 8  # of one GPU: two float32 each
    whole = 8 * 2 * numbers  # a ring of two nodes sends what it has once, here in bfloat16
    assert 0.9 * whole < plan.network < 1.2 * whole
