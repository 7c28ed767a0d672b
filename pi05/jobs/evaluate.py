"""Evaluate a checkpoint, the oracle or untrained weights: `python -m pi05.jobs.evaluate job.json`.

Order of work: verify the dataset, choose the seeds, find and verify the checkpoint, compare conventions, roll out the
episodes that no earlier start has finished, write results/<shard>.json. Finished episodes stay in the run's work
folder. Shard i of N takes every N-th seed from the i-th on; an episode is the same whoever runs it.
"""

import logging

from pydantic import ValidationError

from pi05.config import EvalJob
from pi05.data import dataset as datasets
from pi05.errors import DataError
from pi05.evaluation.rollout import Actor, OracleActor, rollout
from pi05.jobs.runtime import Context, main
from pi05.policy import Policy
from pi05.results import Episode, Result, summary
from pi05.simulator import RENDERER, Simulator
from pi05.storage import RunPaths, Storage
from pi05.tasks import find
from pi05.training import checkpoint

log = logging.getLogger("pi05")


def evaluate(job: EvalJob, context: Context) -> None:
    """Run the job; nothing that an earlier start finished is run again."""
    data = _dataset(job, context.storage)
    seeds = _seeds(job, data)[context.shard :: context.shards]
    if not seeds:
        log.info("there are fewer episodes than shards, and none for this one")
        return
    header = _header(job, context)
    key = f"{context.paths.results}/{context.shard}.json"
    result = _earlier(context.storage, key, header, seeds)
    if result is None:
        actor = _actor(job, context.storage, header.checkpoint, data)
        episodes = _Episodes(context, f"{context.paths.work}/{header.checkpoint or header.policy}", seeds)
        _roll_out(job, header.limit, actor, episodes, context)
        result = header.model_copy(update={"episodes": episodes.ordered()})
        content = result.model_dump_json().encode()
        context.insist(lambda: context.storage.write(key, content))
        context.storage.delete(context.paths.work)
    context.events.emit("result", metrics=summary(result.episodes))


class _Episodes:
    """Finished episodes, each kept as a file, so that a killed evaluation goes on where it was."""

    def __init__(self, context: Context, folder: str, seeds: list[int]) -> None:
        self._context, self._folder, self._seeds = context, folder, seeds
        kept = set(context.storage.children(folder))
        found = ((seed, self._read(seed)) for seed in seeds if f"{seed}.json" in kept)
        self._done = {seed: episode for seed, episode in found if episode}

    def missing(self) -> list[int]:
        """Return the seeds still to run."""
        return [seed for seed in self._seeds if seed not in self._done]

    def ordered(self) -> tuple[Episode, ...]:
        """Return all episodes in the order of the seeds."""
        return tuple(self._done[seed] for seed in self._seeds)

    def add(self, episode: Episode) -> None:
        """Keep one episode and say so."""
        key, content = self._key(episode.seed), episode.model_dump_json().encode()
        self._context.insist(lambda: self._context.storage.write(key, content))
        self._done[episode.seed] = episode
        rate = sum(one.success_once for one in self._done.values()) / len(self._done)
        self._context.events.emit(
            "progress", step=len(self._done), total=len(self._seeds), unit="episodes", metrics={"success_once": rate}
        )

    def _key(self, seed: int) -> str:
        return f"{self._folder}/{seed}.json"

    def _read(self, seed: int) -> Episode | None:
        """Return a kept episode, or None when it is damaged."""
        try:
            return Episode.model_validate_json(self._context.storage.read(self._key(seed)))
        except (DataError, ValidationError):
            return None


def _roll_out(job: EvalJob, limit: int, actor: Actor, episodes: _Episodes, context: Context) -> None:
    """Run the missing episodes."""
    missing = episodes.missing()
    environments = min(job.eval.environments, len(missing))
    simulators = [Simulator(find(job.task), job.convention) for _ in range(environments)]
    rollout(simulators, actor, missing, limit, job.eval.execute_steps, episodes.add, context.check_stop)


def _dataset(job: EvalJob, storage: Storage) -> datasets.Dataset:
    """Return the dataset; raise DataError when it is of another task or convention."""
    data = datasets.load(storage.open(job.dataset))
    datasets.check_convention(data.meta.convention, job.convention, f"dataset {job.dataset}")
    if data.meta.task != job.task:
        raise DataError(f"dataset {job.dataset} is of task {data.meta.task}, the evaluation of {job.task}")
    return data


def _seeds(job: EvalJob, data: datasets.Dataset) -> list[int]:
    """Return the environment seeds: the demonstrations' own for the oracle, unseen ones for a policy."""
    count = job.eval.episodes
    if job.eval.policy == "oracle":
        if count > len(data.meta.seeds):
            raise DataError(
                f"eval.episodes {count} is more than the {len(data.meta.seeds)} demonstrations of {job.dataset} "
                f"that the oracle can replay; use eval.episodes={len(data.meta.seeds)}"
            )
        return list(data.meta.seeds[:count])
    seeds = range(job.eval.first_seed, job.eval.first_seed + count)
    _check_unseen(seeds, data.meta.seeds, f"dataset {job.dataset}")
    return list(seeds)


def _check_unseen(seeds: range, demo_seeds: tuple[int, ...], what: str) -> None:
    """Raise DataError when an evaluation seed is a demonstration's."""
    if seen := sorted(set(seeds) & set(demo_seeds)):
        raise DataError(f"evaluation seeds {seen[:5]} are demonstrations of {what}; choose another eval.first_seed")


def _header(job: EvalJob, context: Context) -> Result:
    """Return the result without its episodes: everything the success rate depends on."""
    key = None
    if job.eval.policy != "oracle":
        alone = context.shards == 1 or job.eval.step is not None
        step = checkpoint.find(context.storage, job.train_run, job.eval.step) if alone else _agreed_step(job, context)
        key = RunPaths(job.train_run).checkpoint(step)
    return Result(
        task=job.task,
        policy=job.eval.policy,
        checkpoint=key,
        dataset=job.dataset,
        total=job.eval.episodes,
        limit=job.eval.max_steps or find(job.task).eval_limit,
        execute_steps=job.eval.execute_steps,
        sampling_steps=job.eval.sampling_steps,
        temperature=job.eval.temperature,
        policy_seed=job.eval.seed,
        renderer=RENDERER,
        episodes=(),
    )


def _agreed_step(job: EvalJob, context: Context) -> int:
    """Return the checkpoint that all shards evaluate: the newest one at the moment when the first of them looked.

    Raises:
        DataError: The training went on and has deleted it.
    """
    storage, key = context.storage, f"{context.paths.root}/evaluated_step"
    if not storage.exists(key):
        newest = checkpoint.find(storage, job.train_run, None)
        storage.write(key, str(newest).encode(), absent=True)
    step = int(storage.read(key))
    if not storage.exists(RunPaths(job.train_run).checkpoint(step)):
        raise DataError(
            f"this evaluation is of checkpoint {step}, which the training {job.train_run} has deleted since; "
            "let it end and submit the evaluation with --again, or name a checkpoint that is kept with eval.step"
        )
    return step


def _earlier(storage: Storage, key: str, header: Result, seeds: list[int]) -> Result | None:
    """Return the result of an earlier start, when it is whole, of the same evaluation and of the same seeds."""
    try:
        result = Result.model_validate_json(storage.read(key))
    except (DataError, ValidationError):
        return None
    same = result.model_copy(update={"episodes": ()}) == header
    return result if same and [episode.seed for episode in result.episodes] == seeds else None


def _actor(job: EvalJob, storage: Storage, key: str | None, data: datasets.Dataset) -> Actor:
    """Return what is evaluated.

    Raises:
        DataError: The checkpoint is damaged, of another task, convention or renderer, or has seen the seeds.
    """
    if key is None:
        return OracleActor(data, job.eval.execute_steps)
    make = Policy.untrained if job.eval.policy == "untrained" else Policy.load
    asked = job.eval
    policy = make(storage.open(key), asked.environments, asked.sampling_steps, asked.seed, asked.temperature)
    what = f"checkpoint {key}"
    datasets.check_convention(policy.convention, job.convention, what)
    if policy.meta.task != job.task:
        raise DataError(f"{what} was trained on {policy.meta.task}, the evaluation is of {job.task}")
    if policy.meta.renderer != RENDERER:
        raise DataError(f"{what} learned from renderer {policy.meta.renderer!r}, this evaluation has {RENDERER!r}")
    seeds = range(job.eval.first_seed, job.eval.first_seed + job.eval.episodes)
    _check_unseen(seeds, policy.meta.demo_seeds, what)
    return policy


if __name__ == "__main__":
    main(EvalJob, evaluate)
