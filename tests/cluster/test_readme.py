"""README's section on clusters, line by line, as somebody would paste it, in a checkout of its own.

Said for them is only what a reader has to say: answers to `init`, project and users, names in capitals, and pods and a
preset with cameras small enough for this machine. The namespace is the recipe's own.
"""

import json
import os
import pty
import shutil
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi05.config import TrainJob
from pi05.model import tree, weights
from pi05.storage import connect
from pi05ctl.spec.render import render
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings
from tests.cluster import runs
from tests.cluster.conftest import KINDS, until
from tests.cluster.harness import images, layout

SECTION = "## The same on a cluster\n```\n"
SMALL = {
    "demos.count": 2,
    "demos.block": 1,
    "model.vlm.depth": 1,
    "model.expert.depth": 1,
    "model.vit.depth": 1,
    "train.steps": 4,
    "train.optimizer.warmup_steps": 1,
    "train.batch_size": 8,
    "train.draws_per_sample": 1,
    "train.patience": 0,
    "train.log_every": 1,
    "eval.episodes": 1,
    "eval.max_steps": 16,
    "eval.videos": 1,
    "eval.environments": 1,
}


def lines() -> list[str]:
    """Return README's lines without their comments."""
    block = (layout.REPOSITORY / "README.md").read_text().partition(SECTION)[2].partition("```")[0]
    return [line.partition("  #")[0].strip() for line in block.splitlines()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A clone with the working tree's changes: what a user has after `git clone`."""
    folder = tmp_path_factory.mktemp("clone") / "pi05"
    _run(layout.REPOSITORY, "git", "clone", "--quiet", str(layout.REPOSITORY), str(folder))
    listed = _run(layout.REPOSITORY, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (layout.REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(layout.REPOSITORY / name, folder / name)
    return folder


class Reader:
    """Somebody who pastes lines into a shell in a checkout."""

    def __init__(self, cluster, checkout: Path) -> None:
        self.cluster, self.folder = cluster, checkout
        (checkout / "shell").mkdir()
        program = checkout / "shell/pi05ctl"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pi05ctl "$@"\n')
        program.chmod(0o755)
        own = {"PYTHONPATH": str(checkout), "PATH": f"{checkout}/shell:{Path(sys.executable).parent}"}
        base = cluster.environment()
        self.environment = base | own | {"PATH": f"{own['PATH']}:{base['PATH']}"}

    def paste(self, line: str, code: int = 0, seconds: float = 900, **environ: str) -> str:
        """Run a line; return what it printed on stdout."""
        where = {"cwd": self.folder, "env": self.environment | environ, "timeout": seconds, "check": False}
        done = subprocess.run(line, shell=True, executable="/bin/bash", capture_output=True, text=True, **where)
        assert done.returncode == code, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def answer(self, line: str, *answers: str) -> str:
        """Run a line on a terminal, answer what it asks, one line each, and return all that was shown."""
        mine, its = pty.openpty()
        where = {"cwd": self.folder, "env": self.environment, "stdin": its, "stdout": its, "stderr": its}
        asking = subprocess.Popen(line, shell=True, start_new_session=True, **where)
        os.close(its)
        os.write(mine, "".join(f"{answer}\n" for answer in answers).encode())
        shown = b""
        try:
            while part := os.read(mine, 4096):
                shown += part
        except OSError:  # Linux's way to say that nobody has the other end any more
            pass
        assert asking.wait(60) == 0, shown.decode()
        return shown.decode()


@pytest.fixture(scope="module")
def reader(cluster, checkout) -> Iterator[Reader]:
    if not cluster.own:
        pytest.skip("the recipe's own namespace is not made in a cluster of somebody else (PI05_TEST_KUBECONFIG)")
    yield Reader(cluster, checkout)
    cluster.kubectl("delete", "namespace", "pi05", "--ignore-not-found", "--timeout=120s")


def test_every_line_works_in_its_order(reader, cluster, built, tmp_path, monkeypatch):
    del built  # the layers of the images, which building them once more finds
    todo = lines()
    storage = f"{cluster.bucket}/readme-{uuid.uuid4().hex[:5]}"

    def line(start: str) -> str:
        """Return the next line, which must be this one."""
        assert todo, f"README has no line {start}"
        found = todo.pop(0)
        assert found.startswith(start), f"README goes on with {found}, and this test with {start}"
        return found

    registry = f"{layout.REGISTRY_HOST}/readme"
    shown = reader.answer(line("pi05ctl init"), "", "", storage, registry, "", "")
    assert "wrote" in shown
    _edit_settings(reader.folder / "pi05.toml", cluster)

    reader.paste(line("cp "))
    site = reader.folder / "k8s/overlays/gke/site.env"
    site.write_text(site.read_text().replace("MY-PROJECT", "robots").replace("MY-DOMAIN", "example.com"))
    reader.paste(line("kubectl apply"))

    build = line("scripts/images --push").replace("REGISTRY", registry)
    options = f" --tool buildah --base {images.base()} --cpu"
    pushed = reader.paste(build + options, **images.environment()).split()
    assert set(pushed) == set(tomllib.loads((reader.folder / "pi05.toml").read_text())["cluster"]["images"].values())

    said = reader.paste(line("pi05ctl doctor"))
    assert "no cameras" not in said, said
    _write_weights(tmp_path / "weights")
    reader.paste(line("pi05ctl weights push").replace("FOLDER", str(tmp_path / "weights")))
    assert "step" in reader.paste(line("pi05ctl plan") + " --quick")

    sets = " ".join(f"--set {key}={value}" for key, value in SMALL.items())
    reader.paste(f"{line('pi05ctl submit eval')} --preset micro {sets}")
    watch = f"exec {line('pi05ctl status')}"  # so that who is told to stop is not the shell
    where = {"cwd": reader.folder, "env": reader.environment, "stdout": subprocess.PIPE, "text": True}
    watching = subprocess.Popen(watch, shell=True, **where)
    [run] = [row["run"] for row in _table(reader) if row["kind"] == "pipeline"]
    ended = until("the pipeline to end", lambda: _ended(reader, run), seconds=1200, pause=3)
    watching.terminate()
    assert run in watching.communicate(timeout=30)[0]
    assert ended["state"] == "Done", (ended, reader.paste(f"pi05ctl logs {run}"))

    assert "eval-pushcube-" in reader.paste(line("pi05ctl results"))
    reader.paste(line("pi05ctl report").replace("RUN", run))
    _check_film(run, cluster, storage, monkeypatch)
    assert run in reader.paste(_helm(todo))
    reader.paste(line("pi05ctl gc") + " --yes --older-than 0s")
    assert run not in reader.paste(line("helm list"))
    assert todo == []


def _helm(todo: list[str]) -> str:
    """Return README's last line, which is run before and after the tidying."""
    return todo[-1]


def _edit_settings(path: Path, cluster) -> None:
    """Say what pods ask for on a machine of two cores, and where the emulator of the bucket is."""
    emulator = {"STORAGE_EMULATOR_HOST": cluster.emulator} if cluster.emulator else {}
    env = {**emulator, "XLA_FLAGS": runs.QUICK_XLA.format(8), "JAX_PLATFORMS": "cpu"}
    text = path.read_text().replace("[cluster]\n", f"[cluster]\nenv = {_inline(env)}\n", 1)
    small = {"cpu": "50m", "memory": "3Gi", "scratch": "4Gi", "shm": "64Mi", "grace_seconds": 30}
    tables = "".join(
        f"[cluster.{kind}]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in small.items())
        + ("shards = 1\n" if kind in ("demos", "eval") else "")
        for kind in KINDS
    )
    path.write_text(text + "\n" + tables)


def _inline(table: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + " }"


def _write_weights(folder: Path) -> None:
    """Write weights of the released form, of the small model's sizes."""
    spec = RunSpec.model_validate({"kind": "train", "task": "pushcube", "preset": "micro"})
    job = render(spec, Settings(storage="file:///x", python="", planner_python="")).job
    assert isinstance(job, TrainJob)
    weights.write(folder / "params", tree.initial(job.model, seed=0))


def _table(reader: Reader) -> list[dict]:
    return json.loads(reader.paste("pi05ctl status -o json"))


def _ended(reader: Reader, run: str) -> dict | None:
    row = next(row for row in _table(reader) if row["run"] == run)
    return row if row["state"] in ("Done", "Failed", "Cancelled") else None


def _check_film(run: str, cluster, storage: str, monkeypatch) -> None:
    """The report lies in the bucket, and the film that it shows, too."""
    if cluster.emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cluster.emulator)
    bucket = connect(storage)
    page = bucket.read(f"runs/{run}/report/index.html").decode()
    assert "data:video/mp4;base64," in page, "the report shows no film"


def _run(folder: Path, *words: str) -> str:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
