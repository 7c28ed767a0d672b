"""What a probe says of the place it is in. In real pods of each image: tests/cluster/test_doctor.py."""

import json
import subprocess
import sys

import pytest

from pi05.events import LIMIT, Event, parse
from pi05.jobs import probe
from pi05ctl.spec.render import render
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings

RIGHTS = (("get", "", "pods/log"), ("create", "batch", "jobs"))


@pytest.fixture
def look(tmp_path, capsys):
    """Run a probe here and return its exit code and its event."""

    def look(**fields) -> tuple[int, Event]:
        job = {"run": "probe-x", "pods": "pipeline", "storage": (tmp_path / "bucket").as_uri(), **fields}
        (tmp_path / "job.json").write_text(json.dumps(job))
        code = probe.main([str(tmp_path / "job.json")])
        (line,) = capsys.readouterr().out.splitlines()
        event = parse(line)
        assert event is not None
        return code, event

    return look


def test_a_good_place_is_told_with_its_versions_and_left_clean(look, tmp_path):
    code, event = look()
    assert (code, event.kind, event.message) == (0, "finished", None)
    assert (event.model_extra or {})["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()] == []


def test_all_that_is_wrong_is_told_at_once(look, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    code, event = look(storage=(tmp_path / "file").as_uri(), planner_python="/nowhere/python", rights=RIGHTS)
    assert (code, event.kind, event.exit_code) == (64, "failed", 64)
    for words in (
        "file",
        "the motion planner is not in the image: /nowhere/python",
        "the Kubernetes API cannot be asked from here: KeyError",
    ):
        assert words in (event.message or "")


def test_a_program_that_dies_is_told_by_its_last_words(look, tmp_path):
    planner = tmp_path / "python"
    planner.write_text("#!/bin/sh\necho one >&2\necho 'no such library' >&2\nexit 3\n")
    planner.chmod(0o755)
    assert look(planner_python=str(planner))[1].message == "the motion planner does not start: no such library"
    planner.write_text("#!/bin/sh\nkill -SEGV $$\n")
    assert look(planner_python=str(planner))[1].message == "the motion planner does not start: exit code -11"


def test_gpus_that_are_not_well_are_told(look, monkeypatch):
    fine = {
        "index": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "used_gb": 0.6,
        "total_gb": 85.0,
        "watts": 71.0,
        "ecc_errors": 0,
    }
    sick = {**fine, "index": 1, "ecc_errors": 2, "slowed": ["heat"]}
    busy = {**fine, "index": 2, "used_gb": 40.0}

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        told = json.dumps(seen) if "pi05.nvml" in command else f"{len(seen)}|gpu|NVIDIA H100 80GB HBM3"
        return subprocess.CompletedProcess(command, 0, told, "")

    monkeypatch.setattr(probe, "_run", run)
    seen = [fine, fine]
    code, event = look(pods="train", gpus=2)
    assert (code, (event.model_extra or {})["devices"]) == (
        0,
        "2 x NVIDIA H100 80GB HBM3 (0.6 of 85.0 GB in use, 71 W, 0 uncorrected memory errors)",
    )
    seen = [fine, sick, busy]
    code, event = look(pods="train", gpus=3)
    assert code == 64
    assert (
        "GPU 1 (NVIDIA H100 80GB HBM3) is slowed down by heat and has 2 uncorrected memory errors; have"
        in event.message
    )
    assert "GPU 2 has 40.0 of 85.0 GB in use by somebody else" in event.message
    assert "GPU 0" not in event.message


def test_what_is_told_fits_into_a_termination_message(look):
    _, event = look(planner_python="/" + "x" * 2000, storage="gs://B" + "y" * 5000)
    assert event.kind == "failed"
    assert len(event.line().encode()) < LIMIT


def test_a_job_of_another_kind_is_refused(tmp_path, capsys):
    (tmp_path / "job.json").write_text('{"kind": "train", "run": "x"}')
    assert probe.main([str(tmp_path / "job.json")]) == 64
    assert probe.main([]) == 64
    assert "no probe's job" in capsys.readouterr().err


def test_told_so_it_compiles_a_training_and_looks_at_nothing(look, monkeypatch, tmp_path):
    """With whatever `pi05.jobs.plan` says: here a program in its place."""
    spec = RunSpec(kind="train", task="pushcube", preset="tiny", target="cluster")
    job = render(spec, Settings(storage="", python="", planner_python="")).job.model_dump(mode="json")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "{\\"told\\": \\"$4 $5 $6 $7 $8 $9\\"}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    code, event = look(described={"job": job, "chip": "h100", "gpus": 8, "nodes": 2})
    assert (code, event.kind) == (0, "finished")
    assert (event.model_extra or {})["plan"] == {"told": "--chip h100 --gpus 8 --nodes 2"}
    python.write_text("#!/bin/sh\necho 'it is not divisible' >&2\nexit 64\n")
    code, event = look(described={"job": job, "chip": "h100", "gpus": 8, "nodes": 2})
    assert (code, event.kind, event.message) == (64, "failed", "it is not divisible")
