"""Whether a dataset, a checkpoint and an evaluation agree; where they do not, both values are named and nothing runs.

Each of these was once the cause of a success rate of zero: a camera, a goal that nobody could see, another renderer,
other units. An evaluation that does not agree would measure the disagreement.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pi05 import simulator
from pi05.config import EvalJob
from pi05.data import dataset as datasets
from pi05.data.batches import data_stats
from pi05.data.dataset import Dataset, DatasetMeta
from pi05.data.stats import DataStats
from pi05.errors import ConfigError, DataError
from pi05.tasks import find
from pi05.training.checkpoint import CheckpointMeta

_TOLERANCE = 1e-4
"""Of the normalised range: statistics of the same data differ by rounding alone."""


def seeds(job: EvalJob) -> range:
    """Return the environment seeds of the whole evaluation of a policy."""
    return range(job.eval.first_seed, job.eval.first_seed + job.eval.episodes)


def check_unseen(job: EvalJob, demo_seeds: Sequence[int], what: str) -> None:
    """Raise DataError when an evaluation seed is a demonstration's."""
    if seen := sorted(set(seeds(job)) & set(demo_seeds)):
        raise DataError(f"evaluation seeds {seen[:5]} are demonstrations of {what}; choose another eval.first_seed")


def check_dataset(meta: DatasetMeta, job: EvalJob, renderer: str) -> None:
    """Raise DataError when a dataset and an evaluation do not agree in task, convention, renderer or goal.

    Args:
        meta: What the dataset says of itself.
        job: The evaluation.
        renderer: What draws the evaluation's images.
    """
    what = f"dataset {job.dataset}"
    if meta.task != job.task:
        raise DataError(f"{what} is of task {meta.task}, the evaluation of {job.task}")
    datasets.check_convention(meta.convention, job.convention, what)
    _check_renderer(meta.renderer, renderer, job, f"{what} was rendered by")
    _check_goal(meta.goal_visible, job, what)


def check_checkpoint(
    meta: CheckpointMeta, stats: DataStats, data: Dataset, job: EvalJob, renderer: str, what: str
) -> None:
    """Refuse a checkpoint that does not agree with the evaluation or with the dataset it names.

    Args:
        meta: What the checkpoint says of itself.
        stats: How it normalises.
        data: The evaluation's dataset.
        job: The evaluation.
        renderer: What draws the evaluation's images.
        what: The checkpoint, as the user knows it.

    Raises:
        DataError: Task, dataset, convention, renderer, goal or normalisation differ, or it has seen the seeds.
        ConfigError: More steps are to be executed than it predicts.
    """
    meta.sentence_of(job.task)  # which refuses a task it was not trained on
    datasets.check_convention(meta.convention, job.convention, what)
    _check_renderer(meta.renderer, renderer, job, f"{what} learned from renderer")
    _check_goal(meta.goal_visible, job, what)
    if job.eval.execute_steps > meta.model.action_horizon:
        raise ConfigError(
            f"eval.execute_steps {job.eval.execute_steps} is longer than the horizon {meta.model.action_horizon} of "
            f"{what}; use eval.execute_steps={meta.model.action_horizon} or fewer"
        )
    learned = tuple(source.dataset for source in meta.sources) or (meta.dataset,)
    if job.dataset not in learned:
        raise DataError(
            f"{what} was trained on {', '.join(learned)}, the evaluation names {job.dataset}; evaluate it with the "
            f"options it was trained with: pi05ctl submit eval {job.task} --of {meta.run}"
        )
    if len(learned) == 1:
        _check_normalisation(stats, data, meta, f"{what} and dataset {job.dataset}")
    demo_seeds = [seed for source in meta.sources for seed in source.seeds] or meta.demo_seeds
    check_unseen(job, demo_seeds, what)


def _check_renderer(found: str, ours: str, job: EvalJob, what: str) -> None:
    """Raise DataError when images come from another renderer than ours."""
    if found != ours and job.eval.renderer == "same":
        raise DataError(
            f"{what} {found!r}, this evaluation has {ours!r}, and their pixels differ a little; evaluate where "
            f"{found!r} is, or take the difference into the result with eval.renderer=any"
        )


def _check_goal(visible: bool, job: EvalJob, what: str) -> None:
    """Raise DataError when the goal of a task, which every evaluation shows, could not be seen in the images."""
    if job.convention.cameras and find(job.task).goal_hidden and not visible:
        raise DataError(
            f"{what} has goal_visible False, this evaluation shows the goal (goal_visible True): the best policy "
            f"learned from such images solves less than 1 % of {job.task}. Make the demonstrations again"
        )


def _check_normalisation(stats: DataStats, data: Dataset, meta: CheckpointMeta, what: str) -> None:
    """Raise DataError when a checkpoint's statistics are not those of its dataset."""
    convention = meta.convention
    told = datasets.with_states(data, simulator.state_names(find(data.meta.task), convention))
    ours = data_stats([told], convention, meta.model.action_horizon, meta.train.held_out)
    for name, found, wanted in _ranges(stats, ours):
        if found.shape != wanted.shape or np.abs(found - wanted).max() > _TOLERANCE * (wanted[1] - wanted[0]).max():
            raise DataError(
                f"{what} disagree about normalisation: {name} from {_numbers(found)}, and from {_numbers(wanted)}. "
                "Its norm_stats.json is of other data: restore it, or train again"
            )


def _ranges(found: DataStats, wanted: DataStats) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the 1 % and 99 % quantiles (2, D) of states and actions on both sides."""
    for name in ("state", "actions"):
        one, other = getattr(found, name), getattr(wanted, name)
        yield name, np.array([one.q01, one.q99]), np.array([other.q01, other.q99])


def _numbers(ranges: np.ndarray) -> str:
    return " to ".join("(" + ", ".join(f"{value:.4g}" for value in row) + ")" for row in ranges)
