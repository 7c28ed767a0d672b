"""Names and job.json: deterministic, and the same for two spellings of one wish."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from pi05 import tasks
from pi05.config import DemosJob, EvalJob, TrainJob, load_job
from pi05ctl.errors import UsageError
from pi05ctl.spec.render import PipelineJob, digest, moved, render, stages, to_json
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings

GOLDEN = Path(__file__).parents[1] / "golden"
SETTINGS = Settings(storage="file:///data", python="/env/bin/python", planner_python="/planner/bin/python")


def spec(kind: str, task: str = "pushcube", preset: str = "tiny", **fields) -> RunSpec:
    return RunSpec.model_validate({"kind": kind, "task": task, "preset": preset, **fields})


@pytest.mark.parametrize("kind", ["demos", "train", "eval", "pipeline"])
def test_the_job_of_tiny_pushcube_is_golden(kind):
    path = GOLDEN / f"ctl_{kind}_tiny_pushcube.job.json"
    rendered = render(spec(kind), SETTINGS)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(rendered.job_json)
    assert rendered.job_json == path.read_bytes(), f"UPDATE_GOLDEN=1 scripts/test fast rewrites {path.name}"


@pytest.mark.parametrize("kind", ["demos", "train", "eval"])
def test_a_job_reads_what_was_rendered(kind, tmp_path):
    rendered = render(spec(kind), SETTINGS)
    (tmp_path / "job.json").write_bytes(rendered.job_json)
    assert load_job(tmp_path / "job.json") == rendered.job


@pytest.mark.parametrize("preset", ["tiny", "micro", "small", "lora", "full"])
@pytest.mark.parametrize("task", list(tasks.TASKS))
def test_every_run_of_every_preset_has_a_short_name(preset, task):
    for kind in ("demos", "train", "eval", "pipeline"):
        run = render(spec(kind, task, preset), SETTINGS).run
        assert run.startswith(f"{kind}-{task}-")
        assert len(run) <= 40  # of a Helm release


def test_stages_read_what_the_stages_before_them_make():
    demos, train, evaluation = stages(render(spec("pipeline"), SETTINGS))
    assert isinstance(demos.job, DemosJob)
    assert isinstance(train.job, TrainJob)
    assert isinstance(evaluation.job, EvalJob)
    assert train.job.dataset == evaluation.job.dataset == demos.job.dataset
    assert evaluation.job.train_run == train.run


def test_a_stage_is_the_run_that_a_person_would_submit():
    for stage in stages(render(spec("pipeline", overrides={"train.steps": 500}), SETTINGS)):
        alone = render(spec(stage.spec.kind, overrides={"train.steps": 500}), SETTINGS)
        assert (alone.run, alone.job_json, alone.digest) == (stage.run, stage.job_json, stage.digest)


SAME = [
    ({}, {"demos.count": 540}),  # the preset's own value
    ({}, {"train.steps": 4000}),
    ({}, {"demos.workers": 7, "demos.block": 3, "train.fsdp_devices": 1}),  # how, not what
    ({"train.optimizer.weight_decay": 1}, {"train.optimizer.weight_decay": 1.0}),
]


@pytest.mark.parametrize("kind", ["demos", "train", "eval", "pipeline"])
@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_spellings_are_one_run(kind, one, other):
    assert render(spec(kind, overrides=one), SETTINGS).run == render(spec(kind, overrides=other), SETTINGS).run


def test_where_it_runs_and_is_stored_is_no_part_of_the_name():
    elsewhere = replace(SETTINGS, storage="file:///other", python="/p", planner_python="/q", jobs_at_once=5)
    for kind in ("demos", "train", "eval", "pipeline"):
        assert render(spec(kind), SETTINGS).digest == render(spec(kind, target="cluster"), elsewhere).digest


OTHER = [
    ("demos", {"demos.count": 100}),
    ("demos", {"convention.state": "joints"}),
    ("train", {"demos.first_seed": 5}),
    ("train", {"train.seed": 1}),
    ("train", {"model.vlm.width": 256}),
    ("eval", {"train.seed": 1}),
    ("eval", {"eval.episodes": 10}),
    ("pipeline", {"eval.episodes": 10}),
    ("pipeline", {"demos.count": 100}),
]


@pytest.mark.parametrize(("kind", "overrides"), OTHER)
def test_what_changes_the_result_changes_the_name(kind, overrides):
    assert render(spec(kind, overrides=overrides), SETTINGS).run != render(spec(kind), SETTINGS).run


def test_what_a_kind_does_not_use_does_not_change_its_name():
    assert render(spec("demos", overrides={"train.seed": 1}), SETTINGS).run == render(spec("demos"), SETTINGS).run
    assert render(spec("train", overrides={"eval.seed": 1}), SETTINGS).run == render(spec("train"), SETTINGS).run


def test_the_order_of_overrides_does_not_matter():
    items = [("train.seed", 1), ("train.steps", 300), ("eval.episodes", 3), ("demos.count", 9)]
    names = set()
    for seed in range(10):
        random.Random(seed).shuffle(items)
        names.add(render(spec("pipeline", overrides=dict(items)), SETTINGS).run)
    assert len(names) == 1


def test_again_is_another_run_of_the_same_job():
    first, second = (render(spec("train", again=again), SETTINGS) for again in (0, 1))
    assert first.run != second.run
    assert first.job.model_copy(update={"run": second.run}) == second.job


def test_a_pipeline_again_trains_and_evaluates_again_on_the_same_demonstrations():
    first, second = (stages(render(spec("pipeline", again=again), SETTINGS)) for again in (0, 1))
    assert [one.run == two.run for one, two in zip(first, second, strict=True)] == [True, False, False]


def test_an_evaluation_again_is_of_the_same_training():
    first, second = (render(spec("eval", again=again), SETTINGS) for again in (0, 1))
    assert first.run != second.run
    assert isinstance(first.job, EvalJob)
    assert isinstance(second.job, EvalJob)
    assert first.job.train_run == second.job.train_run


def test_demonstrations_again_are_another_dataset():
    first, second = (render(spec("demos", again=again), SETTINGS).job for again in (0, 1))
    assert isinstance(first, DemosJob)
    assert isinstance(second, DemosJob)
    assert first.dataset != second.dataset


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("train", {"model.action_horizon": 100}, "model.action_horizon 100 is longer than the longest pushcube"),
        ("eval", {"eval.first_seed": 0}, "eval seeds 0 to 49 must lie in 1000000 to 1999999"),
        ("pipeline", {"eval.first_seed": 0}, "eval seeds 0 to 49"),
    ],
)
def test_what_only_a_whole_job_can_see_is_refused_too(kind, overrides, message):
    with pytest.raises(UsageError) as error:
        render(spec(kind, overrides=overrides), SETTINGS)
    assert message in str(error.value)


def test_a_moved_job_keeps_its_identity():
    job = render(spec("pipeline"), SETTINGS).job
    elsewhere = moved(job, "file:///elsewhere")
    assert isinstance(elsewhere, PipelineJob)
    assert {stage.storage for stage in (elsewhere, *elsewhere.stages)} == {"file:///elsewhere"}
    assert digest(elsewhere) == digest(job)


def test_job_json_shows_every_option():
    content = json.loads(render(spec("train"), SETTINGS).job_json)
    assert content["train"]["optimizer"]["decay_steps"] == 4000
    assert None not in json.loads(render(spec("demos"), SETTINGS).job_json)["demos"].values()


def test_tasks_are_mixed_with_the_datasets_that_are_theirs_alone():
    mixed = render(spec("train", preset="micro", overrides={"train.mix": ["pullcube", "pickcube:0.5"]}), SETTINGS).job
    assert isinstance(mixed, TrainJob)
    alone = [render(spec("demos", task, "micro"), SETTINGS).job for task in ("pushcube", "pullcube", "pickcube")]
    assert [share.dataset for share in mixed.shares] == [job.dataset for job in alone if isinstance(job, DemosJob)]
    assert [(share.task, share.weight) for share in mixed.shares] == [
        ("pushcube", 1),
        ("pullcube", 1),
        ("pickcube", 0.5),
    ]


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        (["pulcube"], "unknown task 'pulcube'; did you mean 'pullcube'?"),
        (["pullcube:x"], "'pullcube:x' is not task or task:weight with a weight of 0.001 or more; use pullcube:0.5"),
        (["pullcube:0"], "'pullcube:0' is not task or task:weight"),
        (["pullcube", "pullcube:2"], "pullcube is named twice; give it one weight"),
        (["pushcube"], "train.mix names pushcube, which is the run's own task and has weight 1; leave it out"),
    ],
)
def test_an_impossible_mix_is_refused(mix, words):
    with pytest.raises(UsageError) as error:
        render(spec("train", preset="micro", overrides={"train.mix": mix}), SETTINGS)
    assert words in str(error.value)


def test_job_json_is_ascii_so_that_no_character_ends_a_line_of_yaml() -> None:
    spec = RunSpec(kind="train", task="pushcube", preset="tiny\u2028\u0085é")
    assert to_json(spec).isascii()
    assert json.loads(to_json(spec))["preset"] == spec.preset
