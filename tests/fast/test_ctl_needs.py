"""What `submit` and `render` take a training or evaluation for: itself, or the pipeline that makes what it needs."""

import json
from pathlib import Path
from typing import Any

import pytest

from pi05.config import DemosJob
from pi05.errors import Unreachable
from pi05.events import Event
from pi05.storage import FileStorage, RunPaths
from pi05ctl.service import Service
from pi05ctl.spec.render import Rendered, around, refreshed, render, stages
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Cluster, DemosPods, Settings
from tests.fast.test_ctl_cli import command, here, put, spec

__all__ = ["here"]


def storage(here: Path) -> FileStorage:
    return FileStorage((here / "pi05-data").as_uri())


def make(here: Path, key: str) -> None:
    with storage(here).stage(key):
        pass


def run(asked: RunSpec) -> Rendered:
    return render(asked, Settings("file:///x", "python", "python"))


def whole(asked: RunSpec) -> Rendered:
    """Return the pipeline around a run."""
    pipeline = around(asked)
    assert pipeline is not None
    return run(pipeline)


def dataset(task: str = "pushcube") -> str:
    job = run(spec("demos", task)).job
    assert isinstance(job, DemosJob)
    return job.dataset


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """Return the job that would be submitted, and what is said of it."""
    code, out, err = command(capsys, "render", *words)
    assert code == 0, err
    return json.loads(out), err


def kinds(job: dict[str, Any]) -> list[str]:
    return [stage["run"].partition("-")[0] for stage in job["stages"]]


def test_a_training_on_nothing_is_demonstrations_and_then_the_training(capsys, here):
    job, said = shown(capsys, "train", "pushcube")
    assert (job["kind"], kinds(job)) == ("pipeline", ["demos", "train"])
    assert job["stages"][1]["run"] == run(spec("train")).run
    assert f"{run(spec('train')).run} comes with what it needs, as one run, {job['run']}: demos-" in said
    assert not (here / "pi05-data").exists()


@pytest.mark.usefixtures("here")
def test_only_is_the_training_alone(capsys):
    job, said = shown(capsys, "train", "pushcube", "--only")
    assert (job["run"], said) == (run(spec("train")).run, "")


def test_a_training_whose_data_are_there_is_the_training(capsys, here):
    make(here, dataset())
    job, said = shown(capsys, "train", "pushcube")
    assert (job["run"], said) == (run(spec("train")).run, "")


def test_once_there_is_the_pipeline_the_same_words_mean_it(capsys, here):
    make(here, dataset())
    asked = around(spec("train"))
    assert asked
    pipeline = put(here, asked, created=1)
    job, _ = shown(capsys, "train", "pushcube")
    assert job["run"] == pipeline
    _, out, _ = command(capsys, "status", pipeline, "-o", "json")
    assert [row["kind"] for row in json.loads(out)] == ["pipeline", "demos", "train"]


@pytest.mark.usefixtures("here")
def test_an_evaluation_on_nothing_is_the_pipeline_of_its_task(capsys):
    evaluation, _ = shown(capsys, "eval", "pushcube")
    pipeline, said = shown(capsys, "pipeline", "pushcube")
    assert (evaluation, said) == (pipeline, "")


@pytest.mark.usefixtures("here")
def test_an_evaluation_of_demonstrations_needs_no_training(capsys):
    job, _ = shown(capsys, "eval", "pushcube", "--set", "eval.policy=oracle")
    assert kinds(job) == ["demos", "eval"]


def test_a_training_on_two_tasks_makes_both_datasets(capsys, here):
    make(here, dataset())
    for kind, end in (("train", []), ("pipeline", ["eval"])):
        job, _ = shown(capsys, kind, "pushcube", "--set", "train.mix=[pullcube]")
        assert [(stage["kind"], stage["task"]) for stage in job["stages"][:3]] == [
            ("demos", "pushcube"),
            ("demos", "pullcube"),
            ("train", "pushcube"),
        ]
        assert kinds(job)[3:] == end
        assert job["stages"][1]["dataset"] == dataset("pullcube")


def finish(here: Path, name: str) -> None:
    said = Event(run=name, kind="finished", time=2).model_dump_json(exclude_none=True).encode()
    storage(here).write(RunPaths(name).status, said)


def test_a_training_that_is_done_stays_itself_without_its_data(capsys, here):
    train = put(here, spec("train"), created=1)
    finish(here, train)
    make(here, RunPaths(train).checkpoint(4000))
    assert shown(capsys, "train", "pushcube")[0]["run"] == train
    storage(here).delete(RunPaths(train).checkpoint(4000))
    assert shown(capsys, "train", "pushcube")[0]["kind"] == "pipeline"


def test_again_trains_again_and_an_evaluation_again_is_of_the_same_training(capsys, here):
    put(here, spec("train"), created=1)
    job, _ = shown(capsys, "train", "pushcube", "--again")
    assert job["stages"][1]["run"] == run(spec("train", again=1)).run
    put(here, spec("pipeline"), created=1)
    job, _ = shown(capsys, "eval", "pushcube", "--again")
    assert (job["run"], job["train_run"]) == (run(spec("eval", again=1)).run, run(spec("train")).run)


@pytest.mark.usefixtures("here")
def test_where_nobody_can_look_the_run_alone_is_shown_and_that_is_said(capsys, monkeypatch):
    def away(*_: object) -> bool:
        raise Unreachable("gs://bucket: no route")

    monkeypatch.setattr(FileStorage, "exists", away)
    job, said = shown(capsys, "train", "pushcube")
    assert job["run"] == run(spec("train")).run
    assert "nobody could look: gs://bucket: no route" in said


def test_the_command_of_a_pipeline_around_a_run_is_that_of_the_run():
    pipeline = around(spec("train", overrides={"train.seed": 3}))
    assert pipeline
    assert pipeline.command() == "pi05ctl submit train pushcube --target local --preset tiny --set train.seed=3"


def test_a_pipeline_that_goes_on_takes_the_pi05_toml_of_today():
    old = Settings("file:///x", "old", "old", jobs_at_once=1)
    new = Settings("file:///x", "new", "planner", jobs_at_once=3, cluster=Cluster(demos=DemosPods(memory="64Gi")))
    for target in ("local", "cluster"):
        asked = spec("pipeline", target=target)
        went_on = refreshed(render(asked, old), new)
        assert went_on.job_json.replace(b"gs://your-bucket/pi05", b"file:///x") == render(asked, new).job_json.replace(
            b"gs://your-bucket/pi05", b"file:///x"
        )
        assert went_on.digest == render(asked, old).digest
    assert [stage.run for stage in stages(went_on)] == [stage.run for stage in stages(render(asked, old))]


def test_an_edited_job_is_not_started_under_its_name(capsys, here):
    for kind in ("demos", "pipeline"):
        name = put(here, spec(kind), created=1)
        key = RunPaths(name).job
        told = json.loads(storage(here).read(key))
        (told["stages"][0] if kind == "pipeline" else told)["demos"]["count"] = 3
        storage(here).write(key, json.dumps(told).encode())
        code, _, err = command(capsys, "resume", name)
        assert (code, f"{key} is not the job that {name} stands for" in err) == (3, True), err
        assert f"To write it anew: pi05ctl submit {kind} pushcube" in err


def test_what_a_job_of_an_earlier_version_lacks_does_not_change_its_name(here):
    name = put(here, spec("train"), created=1)
    told = json.loads(storage(here).read(RunPaths(name).job))
    del told["train"]["held_out"]
    storage(here).write(RunPaths(name).job, json.dumps(told).encode())
    assert Service(Settings(storage(here).url, "python", "python")).going_on(name).run == name


def test_all_tasks_are_one_table_with_a_reason_where_there_is_no_number(capsys, here):
    pipeline = put(here, spec("pipeline"), created=1)
    _, _, train, evaluation = [pipeline, *(stage.run for stage in stages(run(spec("pipeline"))))]
    rows = [{"seed": n, "success_once": n > 0, "success_at_end": n > 0, "steps": 9} for n in range(10)]
    result = {"policy": "checkpoint", "checkpoint": f"runs/{train}/checkpoints/4000", "episodes": rows}
    storage(here).write(f"{RunPaths(evaluation).results}/0.json", json.dumps(result).encode())
    finish(here, pipeline)
    put(here, spec("eval", overrides={"eval.policy": "oracle"}), created=5)  # which is no policy
    failed = put(here, spec("pipeline", "pullcube"), created=2)
    words = Event(run=failed, kind="failed", time=2, message="no room")
    storage(here).write(RunPaths(failed).status, words.model_dump_json(exclude_none=True).encode())
    trained = around(spec("train", "stackcube"))
    assert trained
    parent = put(here, trained, created=2)
    put(here, spec("demos", "stackcube"), created=3, parent=parent)
    for words in (("status", "all"), ("results", "all")):
        code, out, err = command(capsys, *words)
        assert (code, err) == (0, "")
        lines = {line.split()[0]: line for line in out.splitlines()}
        assert lines["pushcube"].split("  ")[0] == "pushcube"
        for part in ("90 %", "60 to 98 %", "10", "4000", "Done", pipeline):
            assert part in lines["pushcube"]
        assert f"no room; pi05ctl resume {failed}" in lines["pullcube"]
        assert parent in lines["stackcube"]
        assert "no run yet; pi05ctl submit pipeline pickcube" in lines["pickcube"]
        assert len(lines) == 7
    _, out, _ = command(capsys, "status", "all", "-o", "json")
    assert [row["task"] for row in json.loads(out) if row["metrics"]] == ["pushcube"]


def test_the_pipeline_of_demonstrations_alone_has_a_report_and_no_training(capsys, here):
    asked = around(spec("eval", overrides={"eval.policy": "oracle"}))
    assert asked
    name = put(here, asked, created=1)
    assert command(capsys, "report", name)[0] == 0
    code, _, err = command(capsys, "checkpoints", "list", name)
    assert (code, f"{name} trains nothing" in err) == (2, True)
