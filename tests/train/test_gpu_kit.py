"""`scripts/bench gpu` where there is no GPU: all of it with small sizes, and what becomes of parts that go wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_kit import step
from benchmarks.gpu_kit.sizes import GPU, cut
from pi05.model import tree

ROOT = Path(__file__).parents[2]
WRONG = """
import json, os, signal, time
from benchmarks.gpu_kit.parts import NotHere, Part, run

def fails():
    raise ValueError("no such kernel")

def lacks(sizes):
    raise NotHere("no golden numbers")
    yield

parts = [
    Part("slow", 0.5, lambda _: [("first", lambda: {"ms": 1.23456}), ("second", lambda: time.sleep(100))]),
    Part("dies", 60, lambda _: [("it", lambda: os.kill(os.getpid(), signal.SIGSEGV))]),
    Part("fails", 0, lambda _: [("one", fails), ("other", lambda: {"ms": 2})]),
    Part("lacks", 0, lacks),
]
print(json.dumps(run(parts, None, lambda part, row: None)))
"""


def bench(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False)


def test_all_parts_run_with_small_sizes():
    done = bench("-m", "benchmarks.gpu", "--cpu", PI05_GOLDEN="/nowhere")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["name"], said["device"], said["platform"]) == ("gpu", "cpu", "cpu")
    parts = said["parts"]
    assert list(parts) == ["parity", "attention", "step", "lora", "acting", "restoring"]
    assert "no golden numbers at" in parts["parity"][0]["not here"]
    assert all(row["error_of_gradients"] < 0.02 for row in parts["attention"])
    step = parts["step"][0]
    assert step["samples_per_second"] == pytest.approx(step["rows"] / step["step_ms"] * 1e3, rel=1e-3)
    assert step["tflop"] > 0
    assert [row["ms"] > 0 for row in parts["acting"]] == [True, True]
    assert [row["gb_per_second"] > 0 for row in parts["restoring"]] == [True, True, True]


def test_without_a_gpu_it_refuses():
    done = bench("-m", "benchmarks.gpu")
    assert done.returncode != 0
    assert "bench: JAX has no GPU here" in done.stderr
    assert "--cpu tries the kit out" in done.stderr


def test_a_part_goes_wrong_alone_and_keeps_what_it_had():
    done = bench("-c", WRONG)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows["slow"][0] == {"what": "first", "ms": 1.235}
    assert rows["slow"][1]["stopped"].startswith("its time was over")
    assert rows["dies"] == [{"what": "the rest", "failed": "the process ended with SIGSEGV"}]
    assert rows["fails"] == [{"what": "one", "failed": "ValueError: no such kernel"}, {"what": "other", "ms": 2}]
    assert rows["lacks"] == [{"what": "all", "not here": "no golden numbers"}]


def test_layers_are_left_out_until_a_device_holds_the_rest():
    model = GPU.preset("full").model
    assert step._deepest(model, 22, 80e9) == model
    deepest = step._deepest(model, 22, 40e9)
    assert (deepest.vlm.depth, deepest.expert.depth, deepest.vlm.width) == (8, 8, model.vlm.width)
    assert 22 * tree.count(deepest) <= 40e9 < 22 * tree.count(cut(model, 9))
    assert step._deepest(model, 22, 1e9).vlm.depth == 1
