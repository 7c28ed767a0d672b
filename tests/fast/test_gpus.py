"""A training that asked for GPUs does not begin on a CPU, and says why. These tests are for machines without a GPU."""

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from pi05 import cuda
from pi05.config import TrainJob
from pi05.errors import TemporaryError
from pi05.jobs import gpus, probe, runtime
from pi05.jobs.train import train
from pi05.storage import FileStorage, RunPaths

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _not_on_purpose(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


def found(code: int, count: int = 0, version: int = 0) -> SimpleNamespace:
    """Return a driver whose cuInit returns a code."""

    def fill(value: int):
        def fill(pointer) -> int:
            pointer._obj.value = value
            return 0

        return fill

    return SimpleNamespace(cuInit=lambda _: code, cuDeviceGetCount=fill(count), cuDriverGetVersion=fill(version))


def missing(name: str) -> ctypes.CDLL:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize("wanted", [1, len(jax.devices()) + 1])
def test_a_cpu_is_not_taken_for_gpus(wanted):
    with pytest.raises(TemporaryError, match=rf"^{wanted} GPUs were asked for and JAX has \d+ x cpu; NVIDIA's driver"):
        gpus.check(wanted)


def test_who_asks_for_none_gets_what_there_is():
    gpus.check(0)


def test_a_cpu_is_taken_on_purpose_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    gpus.check(8)
    assert "nothing is computed on the 8 GPUs" in caplog.text


def test_a_driver_that_is_not_there_is_told_with_where_it_was_looked_for(monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64")
    said = cuda.driver(missing)
    assert "libcuda.so.1: cannot open shared object file; LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in said


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (found(100), "cuInit fails with 100: no GPU is in this container"),
        (found(999), "cuInit fails with 999"),
        (found(0, 8, 12080), "is here, for CUDA 12.8, and sees 8 GPUs"),
    ],
)
def test_a_driver_that_is_there_says_what_it_has(library, words):
    assert words in cuda.driver(lambda _: library)


def test_the_job_is_told_how_many_and_tries_again_elsewhere(tmp_path):
    told = json.loads((ROOT / "tests/golden/ctl_train_tiny_pushcube.job.json").read_text())
    job = TrainJob.model_validate({**told, "storage": tmp_path.as_uri()})
    given = runtime.parse([str(tmp_path / "job.json"), "--attempt=pod", "--gpus=8"])
    with pytest.raises(TemporaryError, match="8 GPUs were asked for"):
        train(job, runtime.Context(FileStorage(job.storage), RunPaths(job.run), given))


def test_a_probe_does_not_take_one_cpu_for_one_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    job = {"run": "probe-x", "pods": "train", "storage": (tmp_path / "bucket").as_uri(), "gpus": 1}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert probe.main([str(tmp_path / "job.json")]) == 64
    assert "the pod has 1 GPUs and JAX sees 1 x cpu; NVIDIA's driver" in capsys.readouterr().out


def test_the_image_has_what_jax_needs_on_a_gpu():
    """cuDNN compiles its attention with NVRTC (jax-ml/jax, issue 23227), which torch here does without."""
    locked = (ROOT / "requirements/train.txt").read_text()
    assert all(f"\nnvidia-{name}-cu12==" in locked for name in ("cublas", "cuda-nvrtc", "cudnn", "cusolver", "nccl"))
