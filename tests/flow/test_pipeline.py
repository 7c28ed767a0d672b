"""The main job with nothing replaced: pi05ctl, planner, ManiSkill, trainer, evaluation; only fewer of everything.

The stages are killed at their worst moments, and what comes out is compared with an uninterrupted run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pi05.events import Event, parse
from pi05.storage import FileStorage, RunPaths

ROOT = Path(__file__).parents[2]
SMALL = {
    "demos.count": 4,
    "demos.block": 2,
    "demos.workers": 2,
    "train.steps": 40,
    "train.optimizer.warmup_steps": 5,
    "train.log_every": 1,
    "train.save_every": 10,
    "eval.episodes": 2,
    "eval.environments": 2,
    "eval.max_steps": 24,
    "eval.videos": 0,
}
pytestmark = pytest.mark.timeout(600)


class Storehouse:
    """A storage of its own and the commands that use it."""

    def __init__(self, root: Path) -> None:
        self.root, self.storage = root, FileStorage(root.as_uri())

    def copy(self, folder: Path) -> "Storehouse":
        """Return a storage with the same runs, to be changed."""
        shutil.copytree(self.root, folder / "copy")
        return Storehouse(folder / "copy")

    def command(self, *words: str, **changes: object) -> list[str]:
        sets = [f"--set={path}={value}" for path, value in (SMALL | changes).items()] if words[0] == "submit" else []
        return [sys.executable, "-m", "pi05ctl", *words, *sets]

    def call(self, *words: str, **changes: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PI05_STORAGE": self.storage.url}
        return subprocess.run(
            self.command(*words, **changes), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    def run(self, kind: str) -> str:
        """Return the name of the only run of a kind."""
        (name,) = [name for name in self.storage.children("runs") if name.startswith(f"{kind}-")]
        return name

    def events(self, kind: str) -> list[Event]:
        text = self.storage.read(RunPaths(self.run(kind)).log).decode()
        return [event for line in text.splitlines() if (event := parse(line))]

    def losses(self) -> dict[int, float]:
        return {
            e.step: e.metrics["loss"] for e in self.events("train") if e.kind == "progress" and e.step and e.metrics
        }

    def episodes(self, policy: str = "checkpoint") -> list[dict]:
        files = self.storage.path("runs").glob("eval-*/results/0.json")
        (found,) = [result for file in files if (result := json.loads(file.read_text()))["policy"] == policy]
        return found["episodes"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Storehouse:
    """An uninterrupted pipeline."""
    house = Storehouse(tmp_path_factory.mktemp("whole"))
    done = house.call("submit", "pipeline", "pushcube", "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    return house


def test_a_pipeline_goes_from_nothing_to_a_success_rate(whole: Storehouse) -> None:
    assert [event.step for event in whole.events("demos") if event.kind == "progress"] == [1, 2, 3, 4]
    assert sorted(whole.losses()) == list(range(1, 41))
    assert [episode["seed"] for episode in whole.episodes()] == [1_000_000, 1_000_001]
    assert {episode["steps"] for episode in whole.episodes()} == {24}
    table = whole.call("results", "-o", "json")
    assert '"episodes": 2' in table.stdout
    page = whole.storage.read(f"{RunPaths(whole.run('pipeline')).root}/report/index.html").decode()
    assert "train-pushcube" in page


def test_the_log_can_be_grepped_as_before(whole: Storehouse) -> None:
    lines = whole.call("logs", whole.run("train")).stdout.splitlines()
    assert any(line.startswith("Step 40: loss=0.") or line.startswith("Step 40: loss=1.") for line in lines)


def test_the_same_command_again_does_nothing(whole: Storehouse) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.storage.path("runs").rglob("checkpoints/**/*")}
    again = whole.call("submit", "pipeline", "pushcube", "--follow")
    assert again.returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in whole.storage.path("runs").rglob("checkpoints/**/*")}
    assert len(whole.events("train")) == len([e for e in whole.events("train") if e.run == whole.run("train")])
    assert [event.kind for event in whole.events("train")].count("started") == 1
    assert f"{whole.run('pipeline')}  is done already" in whole.call("submit", "eval", "pushcube").stdout


def test_the_oracle_row_is_perfect(whole: Storehouse, tmp_path: Path) -> None:
    house = whole.copy(tmp_path)
    oracle = {"eval.policy": "oracle", "eval.max_steps": 150, "eval.episodes": 4}
    done = house.call("submit", "eval", "pushcube", "--follow", **oracle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [episode["success_once"] for episode in house.episodes("oracle")] == [True] * 4
    assert "oracle" in house.call("results").stdout


def test_every_checkpoint_is_evaluated(whole: Storehouse, tmp_path: Path) -> None:
    house = whole.copy(tmp_path)
    before = set(house.storage.children("runs"))
    done = house.call("submit", "train", "pushcube", "--follow", **{"train.keep_every": 20})
    assert done.returncode == 0, done.stdout + done.stderr
    (train,) = set(house.storage.children("runs")) - before
    done = house.call("submit", "eval", "pushcube", "--of", train, "--every-checkpoint", "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    files = house.storage.path("runs").glob("eval-*/results/0.json")
    results = [json.loads(file.read_text()) for file in files]
    assert {f"runs/{train}/checkpoints/{step}" for step in (20, 40)} <= {result["checkpoint"] for result in results}
    rows = house.call("checkpoints", "list", train).stdout.splitlines()
    assert [row.split()[0] for row in rows if "of 2" in row] == ["20", "40"]


def test_evaluations_are_compared_pooled_and_shown_on_one_page(whole: Storehouse, tmp_path: Path) -> None:
    house = whole.copy(tmp_path)
    of = ("submit", "eval", "pushcube", "--of", house.run("train"), "--follow")
    first = house.run("eval")
    early = {"eval.episodes": 12, "eval.temperature": 1.0}
    done = house.call(*of, "--until", "0.5", **early)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "takes 7 episodes when all end alike" in done.stderr
    (second,) = {name for name in house.storage.children("runs") if name.startswith("eval-")} - {first}
    table = house.call("compare", first, second, "-o", "json")
    assert table.returncode == 0, table.stderr
    told = json.loads(table.stdout)
    ended = told["runs"][1]["metrics"]
    assert ended["exact_high"] - ended["exact_low"] <= 0.5 or ended["episodes"] == 12
    assert ended["episodes"] >= 7
    assert (told["pairs"][0]["seeds"], told["pairs"][0]["verdict"]) == (2, "equal")
    assert told["settings"]["eval.temperature"] == [0.0, 1.0]
    assert any("2 seeds in common" in remark for remark in told["remarks"])
    assert any("ended when its interval was narrow" in remark for remark in told["remarks"])
    assert not any("version of ManiSkill" in remark for remark in told["remarks"])
    page = house.call("report", first, second, house.run("train"))
    assert page.returncode == 0, page.stderr
    assert "Over the same seeds" in Path(page.stdout.strip().removeprefix("file://")).read_text()
    assert len(json.loads(house.call("results", "-o", "json").stdout)) == 2
    again = house.call(*of, "--until", "0.5", **early)
    assert f"{second}  Done" in again.stdout


def kill_job(house: Storehouse, kind: str, after: int) -> None:
    """Kill the process group of a stage (SIGKILL) once it has made `after` progress events."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        runs = [name for name in house.storage.children("runs") if name.startswith(f"{kind}-")]
        log = house.storage.path(RunPaths(runs[0]).log) if runs else None
        if log and log.exists() and log.read_text().count('"kind":"progress"') >= after:
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"{kind} made no progress")
    job = str(house.storage.path(RunPaths(house.run(kind)).job))
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _is_job(process, job):
            os.kill(int(process.name), signal.SIGKILL)


def _is_job(process: Path, job: str) -> bool:
    try:
        words = (process / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return False
    return job in words and any(word.startswith("pi05.jobs.") for word in words)


def test_killed_in_every_stage_the_same_command_ends_with_the_same_numbers(whole: Storehouse, tmp_path: Path) -> None:
    house = Storehouse(tmp_path)
    for kind, after in (("demos", 1), ("train", 25)):
        assert house.call("submit", "eval", "pushcube").returncode == 0
        kill_job(house, kind, after)
        failed = house.call("wait", house.run("pipeline"))
        assert failed.returncode == 125, failed.stdout + failed.stderr
    done = house.call("submit", "eval", "pushcube", "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert house.losses() == whole.losses()
    assert house.episodes() == whole.episodes()
    resumed = [event.step for event in house.events("train") if event.kind == "progress"]
    assert resumed.count(1) == 1, "training began anew instead of resuming"


def test_a_damaged_checkpoint_is_refused_by_evaluation(whole: Storehouse, tmp_path: Path) -> None:
    house = whole.copy(tmp_path)
    folder = house.storage.path(RunPaths(house.run("train")).checkpoint(40))
    victim = max((path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 8
    victim.write_bytes(content)
    refused = house.call("submit", "eval", "pushcube", "--follow", **{"eval.seed": 1})
    assert refused.returncode == 1
    assert f"{victim.name} has crc32c" in refused.stderr + refused.stdout
