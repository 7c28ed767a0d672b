"""The oracle row: demonstrations replayed through the evaluation itself must all succeed."""

import json
from pathlib import Path

import pytest

from pi05.config import EvalConfig, EvalJob
from pi05.errors import DataError
from pi05.jobs.evaluate import evaluate
from pi05.jobs.runtime import Context, Stopped
from pi05.results import Result
from pi05.storage import FileStorage, RunPaths
from tests.sim.conftest import CONVENTION, KEY

RUN = "eval-pushcube-000000"
RESULT = f"runs/{RUN}/results/0.json"


def eval_job(storage: FileStorage, **options: object) -> EvalJob:
    return EvalJob(
        run=RUN,
        task="pushcube",
        storage=storage.url,
        convention=CONVENTION,
        dataset=KEY,
        train_run="train-pushcube-000000",
        eval=EvalConfig.model_validate({"episodes": 4, "policy": "oracle", "environments": 3, "videos": 0, **options}),
    )


def run(job: EvalJob, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    """Run the job and return its events."""
    capsys.readouterr()
    evaluate(job, Context(FileStorage(job.storage), RunPaths(job.run)))
    return [json.loads(line.removeprefix("PI05 ")) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(scope="module")
def result(storage: FileStorage) -> Result:
    job = eval_job(storage)
    evaluate(job, Context(storage, RunPaths(RUN)))
    return Result.model_validate_json(storage.read(RESULT))


def test_every_demonstration_succeeds(result: Result) -> None:
    assert [episode.seed for episode in result.episodes] == [0, 1, 2, 4]
    assert all(episode.success_once and episode.success_at_end for episode in result.episodes)
    assert {episode.steps for episode in result.episodes} == {150}
    assert (result.policy, result.checkpoint, result.limit) == ("oracle", None, 150)


def test_an_episode_can_be_drawn(result: Result) -> None:
    episode = result.episodes[0]
    assert len(episode.tcp) == len(episode.object) == 151
    assert episode.object[0][0] < episode.object[-1][0]  # pushed forward
    assert episode.distance < 0.1


def test_a_finished_evaluation_is_not_run_again(
    result: Result, storage: FileStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    events = run(eval_job(storage), capsys)
    assert [event["kind"] for event in events] == ["result"]
    assert events[0]["metrics"] == pytest.approx(
        {"success_once": 1, "success_at_end": 1, "wilson_low": 0.5101, "wilson_high": 1, "episodes": 4}, abs=1e-4
    )
    assert result.episodes


class Stopping(Context):
    """Is asked to stop after some queries."""

    left = 0

    def check_stop(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped("stopped by a signal")


def test_a_killed_evaluation_runs_only_what_is_missing(
    result: Result, storage: FileStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.delete(RESULT)
    queries = -(-150 // 8)
    stopping = Stopping(storage, RunPaths(RUN))
    stopping.left = queries + 1  # the first wave of three, and one query of the last episode
    with pytest.raises(Stopped):
        evaluate(eval_job(storage), stopping)
    work = f"runs/{RUN}/work/oracle"
    assert storage.children(work) == ["0.actions", "0.json", "1.actions", "1.json", "2.actions", "2.json"]
    storage.write(f"{work}/1.json", b"{half an epis")
    storage.write(f"{work}/2.actions", b"half the actions")
    events = run(eval_job(storage), capsys)
    steps = [(event["step"], event["total"], event["unit"]) for event in events if event["kind"] == "progress"]
    assert steps == [(2, 4, "episodes"), (3, 4, "episodes"), (4, 4, "episodes")]
    assert Result.model_validate_json(storage.read(RESULT)) == result
    assert not storage.children(f"runs/{RUN}/work")


def test_results_do_not_depend_on_environments_and_processes(
    result: Result, storage: FileStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.delete(RESULT)
    run(eval_job(storage, environments=4, workers=3), capsys)
    assert Result.model_validate_json(storage.read(RESULT)) == result


def test_other_settings_are_another_evaluation(
    result: Result, storage: FileStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    events = run(eval_job(storage, max_steps=40, execute_steps=5), capsys)
    assert events[-1]["metrics"]["success_at_end"] < 1, "no demonstration is that short"
    assert result.limit != 40


def test_more_episodes_than_demonstrations_are_refused(
    storage: FileStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"eval.episodes 50 is more than the 4 .* use eval.episodes=4"):
        run(eval_job(storage, episodes=50), capsys)


def test_a_checkpoint_that_does_not_exist_is_named(storage: FileStorage, capsys: pytest.CaptureFixture[str]) -> None:
    job = eval_job(storage, policy="checkpoint").model_copy(update={"train_run": "train-pushcube-ffffff"})
    with pytest.raises(DataError, match=r"run train-pushcube-ffffff has no complete checkpoint"):
        run(job, capsys)


def test_a_dataset_of_another_convention_is_refused(storage: FileStorage, capsys: pytest.CaptureFixture[str]) -> None:
    job = eval_job(storage).model_copy(update={"convention": CONVENTION.model_copy(update={"delta_joints": False})})
    with pytest.raises(DataError, match=r"delta_joints is True, the job wants False"):
        run(job, capsys)


def test_a_missing_dataset_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"datasets/pushcube/test cannot be used: MANIFEST.json is missing"):
        run(eval_job(FileStorage(tmp_path.as_uri())), capsys)
