"""A dataset, a checkpoint and an evaluation that disagree are refused, both values named."""

from dataclasses import replace

import numpy as np
import pytest

from pi05 import tasks
from pi05.config import Convention, EvalConfig, EvalJob
from pi05.data.batches import data_stats
from pi05.data.dataset import Dataset, DatasetMeta
from pi05.data.stats import DataStats
from pi05.errors import ConfigError, DataError
from pi05.evaluation import agreement
from pi05.simulator import state_names
from pi05.training.checkpoint import CheckpointMeta, TrainedOn
from tests.conftest import options

CONVENTION = Convention()
OURS = "lavapipe 25.0.7"
DATASET = DatasetMeta(
    task="pickcube",
    convention=CONVENTION,
    renderer=OURS,
    goal_visible=True,
    seeds=(0, 1, 4),
    attempts=(),
    versions={},
)
CHECKPOINT = CheckpointMeta(
    run="train-pickcube-123456",
    task="pickcube",
    sentence="Pick",
    step=100,
    dataset="datasets/pickcube/abc",
    convention=CONVENTION,
    renderer=OURS,
    goal_visible=True,
    demo_seeds=DATASET.seeds,
    model=options("small", "pickcube").model,
    train=options("small", "pickcube").train,
)


def job(**evaluation: object) -> EvalJob:
    return EvalJob(
        run="eval-pickcube-123456",
        task="pickcube",
        storage="file:///nowhere",
        convention=CONVENTION,
        dataset=CHECKPOINT.dataset,
        train_run=CHECKPOINT.run,
        eval=EvalConfig.model_validate({"episodes": 5, **evaluation}),
    )


@pytest.fixture(scope="module")
def data() -> Dataset:
    random = np.random.default_rng(0)
    names = state_names(tasks.find("pickcube"), CONVENTION)
    numbers = random.normal(size=(60, len(names))).astype(np.float32), random.normal(size=(60, 8)).astype(np.float32)
    return Dataset(DATASET, *numbers, np.array([0, 20, 40, 60]), names)


@pytest.fixture(scope="module")
def stats(data: Dataset) -> DataStats:
    return data_stats([data], CONVENTION, CHECKPOINT.model.action_horizon)


OTHER_CONVENTIONS = [
    ({"cameras": ("base_camera",)}, r"cameras is .*base_camera.*, the job wants .*hand_camera"),
    ({"image_size": 128}, "image_size is 128, the job wants 224"),
    ({"robot": "panda"}, "robot is 'panda', the job wants 'panda_wristcam'"),
    ({"control_rate": 10}, "control_rate is 10, the job wants 20"),
    ({"delta_joints": False}, "delta_joints is False, the job wants True"),
    ({"state": "joints_and_poses"}, "state is 'joints_and_poses', the job wants 'joints'"),
    ({"state_in_prompt": False}, "state_in_prompt is False, the job wants True"),
    ({"control_mode": "pd_ee_delta_pose"}, "control_mode is 'pd_ee_delta_pose', the job wants 'pd_joint_pos'"),
]


def test_what_agrees_is_not_refused(data, stats) -> None:
    agreement.check_dataset(DATASET, job(), OURS)
    agreement.check_checkpoint(CHECKPOINT, stats, data, job(), OURS, "checkpoint")


@pytest.mark.parametrize(("other", "words"), OTHER_CONVENTIONS)
def test_another_convention_is_refused(data, stats, other, words) -> None:
    convention = CONVENTION.model_copy(update=other)
    with pytest.raises(DataError, match=f"dataset datasets/pickcube/abc follows another convention: {words}"):
        agreement.check_dataset(DATASET.model_copy(update={"convention": convention}), job(), OURS)
    meta = CHECKPOINT.model_copy(update={"convention": convention})
    with pytest.raises(DataError, match=f"checkpoint 100 follows another convention: {words}"):
        agreement.check_checkpoint(meta, stats, data, job(), OURS, "checkpoint 100")


def test_another_renderer_is_refused_unless_it_is_taken_into_the_result(data, stats) -> None:
    with pytest.raises(DataError, match=r"rendered by 'lavapipe 25.0.7', this evaluation has 'NVIDIA 570'.*=any"):
        agreement.check_dataset(DATASET, job(), "NVIDIA 570")
    with pytest.raises(DataError, match=r"renderer 'lavapipe 25.0.7', this evaluation has 'NVIDIA 570'.*=any"):
        agreement.check_checkpoint(CHECKPOINT, stats, data, job(), "NVIDIA 570", "checkpoint")
    agreement.check_dataset(DATASET, job(renderer="any"), "NVIDIA 570")
    agreement.check_checkpoint(CHECKPOINT, stats, data, job(renderer="any"), "NVIDIA 570", "checkpoint")


def test_a_goal_that_nobody_could_see_is_refused(data, stats) -> None:
    with pytest.raises(DataError, match=r"goal_visible False, this evaluation shows the goal \(goal_visible True\)"):
        agreement.check_dataset(DATASET.model_copy(update={"goal_visible": False}), job(), OURS)
    meta = CHECKPOINT.model_copy(update={"goal_visible": False})
    with pytest.raises(DataError, match=r"goal_visible False, this evaluation shows the goal"):
        agreement.check_checkpoint(meta, stats, data, job(), OURS, "checkpoint")


def test_another_task_is_refused(data, stats) -> None:
    with pytest.raises(DataError, match="is of task stackcube, the evaluation of pickcube"):
        agreement.check_dataset(DATASET.model_copy(update={"task": "stackcube"}), job(), OURS)
    meta = CHECKPOINT.model_copy(update={"task": "stackcube"})
    with pytest.raises(DataError, match="trained on stackcube, not on pickcube"):
        agreement.check_checkpoint(meta, stats, data, job(), OURS, "checkpoint")


def test_more_steps_than_the_horizon_are_refused(data, stats) -> None:
    with pytest.raises(ConfigError, match=r"execute_steps 17 is longer than the horizon 16 of checkpoint; use .*=16"):
        agreement.check_checkpoint(CHECKPOINT, stats, data, job(execute_steps=17), OURS, "checkpoint")


def test_another_dataset_than_that_of_the_training_is_refused(data, stats) -> None:
    meta = CHECKPOINT.model_copy(update={"dataset": "datasets/pickcube/other"})
    with pytest.raises(
        DataError, match=r"trained on datasets/pickcube/other, the evaluation names .*/abc.*--of train-"
    ):
        agreement.check_checkpoint(meta, stats, data, job(), OURS, "checkpoint")


def test_statistics_of_other_data_are_refused(data, stats) -> None:
    wider = stats.state.model_copy(update={"q99": tuple(value + 0.01 for value in stats.state.q99)})
    with pytest.raises(DataError, match=r"disagree about normalisation: state from \(.*\) to \(.*\), and from \("):
        agreement.check_checkpoint(
            CHECKPOINT, stats.model_copy(update={"state": wider}), data, job(), OURS, "checkpoint"
        )
    other = replace(data, actions=data.actions * 1.01)
    with pytest.raises(DataError, match="disagree about normalisation: actions from"):
        agreement.check_checkpoint(CHECKPOINT, stats, other, job(), OURS, "checkpoint")


def test_seeds_that_were_seen_are_refused(data, stats) -> None:
    seen = CHECKPOINT.model_copy(update={"demo_seeds": (7, tasks.EVAL_SEEDS.start + 2)})
    with pytest.raises(DataError, match=r"evaluation seeds \[1000002\] are demonstrations of checkpoint"):
        agreement.check_checkpoint(seen, stats, data, job(), OURS, "checkpoint")


def trained_on(task: str, dataset: str, *seeds: int) -> TrainedOn:
    return TrainedOn(task=task, sentence=task, dataset=dataset, digest="", weight=1.0, seeds=seeds)


def test_a_mixture_knows_all_its_tasks_datasets_and_seeds(data, stats) -> None:
    both = (
        trained_on("pushcube", "datasets/pushcube/1", 5, tasks.EVAL_SEEDS.start + 3),
        trained_on("pickcube", CHECKPOINT.dataset, 6),
    )
    mixed = CHECKPOINT.model_copy(update={"task": "pushcube", "dataset": both[0].dataset, "sources": both})
    wider = stats.state.model_copy(update={"q99": tuple(value + 1 for value in stats.state.q99)})
    joint = stats.model_copy(update={"state": wider})  # statistics of both are those of neither
    agreement.check_checkpoint(mixed, joint, data, job(episodes=3), OURS, "checkpoint")
    with pytest.raises(DataError, match=r"seeds \[1000003\] are demonstrations of checkpoint"):
        agreement.check_checkpoint(mixed, joint, data, job(), OURS, "checkpoint")
