"""Evaluate a checkpoint, the oracle or untrained weights: `python -m pi05.jobs.evaluate job.json`.

Order of work: verify the dataset, choose the seeds, find and verify the checkpoint, refuse what does not agree, roll
out the episodes that no earlier start has finished, film some, write results/<shard>.json. Finished episodes stay in
the run's work folder until then. Shard i of N takes every N-th seed from the i-th on; an episode is the same whoever
runs it. With eval.until, they look after each wave whether enough is known (ending.py).
"""

import logging
import os
from contextlib import nullcontext
from functools import partial

import numpy as np
from pydantic import ValidationError

from pi05 import variables
from pi05.config import EvalJob
from pi05.data import dataset as datasets
from pi05.errors import DataError
from pi05.evaluation import agreement, videos
from pi05.evaluation.course import Trial
from pi05.evaluation.rollout import Actor, OracleActor, rollout
from pi05.evaluation.workers import Pool, Workers, cores
from pi05.jobs import compiled, gpus
from pi05.jobs.ending import Ending, kept_as
from pi05.jobs.runtime import Context, main
from pi05.policy import Policy
from pi05.results import Episode, Result, summary
from pi05.simulator import Simulator, renderer, versions
from pi05.storage import RunPaths, Storage
from pi05.tasks import find
from pi05.training import checkpoint, memory

log = logging.getLogger("pi05")


def evaluate(job: EvalJob, context: Context) -> None:
    """Run the job; nothing that an earlier start finished is run again."""
    data = datasets.load(context.storage.open(job.dataset))
    ours = renderer(job.convention.cameras)
    agreement.check_dataset(data.meta, job, ours)
    seeds = _seeds(job, data)[context.shard :: context.shards]
    if not seeds:
        log.info("there are fewer episodes than shards, and none for this one")
        return
    header = _header(job, data.meta.renderer, ours, context)
    key = f"{context.paths.results}/{context.shard}.json"
    ending = Ending(context, header)
    result = _earlier(context.storage, key, header, seeds, ending)
    if result is None:
        trials = _Trials(context, f"{context.paths.work}/{kept_as(header)}", seeds, ending)
        if trials.missing():
            if header.checkpoint:
                gpus.check(context.gpus)
            programs = compiled.kept(context.storage) if header.checkpoint else nullcontext()
            with programs, memory.advised(memory.for_acting(job)):
                _roll_out(job, header.limit, _actor(job, header, context.storage, data), trials, context)
        else:  # an earlier start was stopped while it filmed
            _film(job, trials, context, None)
        trials.say_end()
        result = header.model_copy(update={"episodes": tuple(trial.episode for trial in trials.ordered())})
        content = result.model_dump_json().encode()
        context.insist(lambda: context.storage.write(key, content))
        context.storage.delete(context.paths.work)
    if result.episodes:  # it may have ended before the first of this shard
        context.events.emit("result", metrics=summary(result.episodes, header.until))


class _Trials:
    """Finished episodes, each kept as two files, so that a killed evaluation goes on where it was."""

    def __init__(self, context: Context, folder: str, seeds: list[int], ending: Ending) -> None:
        self._context, self._folder, self._seeds, self._ending = context, folder, seeds, ending
        kept = set(context.storage.children(folder))
        found = ((seed, self._read(seed)) for seed in seeds if f"{seed}.json" in kept)
        self._done = {seed: trial for seed, trial in found if trial}

    def missing(self) -> list[int]:
        """Return the seeds still to run."""
        return [seed for seed in self._counted() if seed not in self._done]

    def ordered(self) -> list[Trial]:
        """Return all episodes that count, in the order of the seeds."""
        return [self._done[seed] for seed in self._counted()]

    def add(self, trial: Trial) -> None:
        """Keep one episode and say so."""
        seed = trial.episode.seed
        actions, content = trial.actions.tobytes(), trial.episode.model_dump_json().encode()
        self._context.insist(lambda: self._context.storage.write(f"{self._folder}/{seed}.actions", actions))
        self._context.insist(lambda: self._context.storage.write(f"{self._folder}/{seed}.json", content))
        self._done[seed] = trial
        self.say()

    def say(self) -> None:
        """Say how many have ended, and so that this process is at work."""
        rate = sum(one.episode.success_once for one in self._done.values()) / len(self._done)
        self._context.events.emit(
            "progress", step=len(self._done), total=len(self._seeds), unit="episodes", metrics={"success_once": rate}
        )

    def say_end(self) -> None:
        """Say how many count of those that have ended, where some may not."""
        if count := len(self.ordered()) if self._ending.early else 0:
            self._context.events.emit("progress", step=count, total=count, unit="episodes")

    def _counted(self) -> list[int]:
        """Return the seeds of this process that count, as far as is known."""
        solved = {seed: trial.episode.success_once for seed, trial in self._done.items()}
        return self._ending.before(self._seeds, solved)

    def _read(self, seed: int) -> Trial | None:
        """Return a kept episode, or None when it is damaged."""
        storage = self._context.storage
        try:
            episode = Episode.model_validate_json(storage.read(f"{self._folder}/{seed}.json"))
            actions = np.frombuffer(storage.read(f"{self._folder}/{seed}.actions"), np.float32).reshape(-1, 8)
        except (DataError, ValueError):  # of which pydantic's is one
            return None
        return Trial(episode, actions) if len(actions) == episode.steps else None


def _roll_out(job: EvalJob, limit: int, actor: Actor, trials: _Trials, context: Context) -> None:
    """Run the missing episodes, a wave at a time, and film some of all."""
    environments = min(job.eval.environments, len(trials.missing()))
    make = partial(Simulator, find(job.task), job.convention)
    looks = bool(job.convention.cameras) and not isinstance(actor, OracleActor)
    with Workers(make, environments, job.eval.workers or cores(), images=looks) as fleet:
        while wave := trials.missing()[: fleet.size]:
            rollout(fleet, actor, wave, limit, job.eval.execute_steps, trials.add, context.check_stop)
        _film(job, trials, context, fleet)


def _film(job: EvalJob, trials: _Trials, context: Context, pool: Pool | None) -> None:
    """Film some episodes, failures first; a shard films its part of them. Without a pool, in one of its own."""
    count = -(-job.eval.videos // context.shards)
    folder = f"{context.paths.results}/videos"
    kept = set(context.storage.children(folder))
    wanted = [t for t in videos.chosen(trials.ordered(), count) if f"{t.episode.seed}.mp4" not in kept]
    if not wanted:
        return
    if reason := videos.impossible(job.convention):
        log.info("no videos: %s", reason)
        return
    with nullcontext(pool) if pool else Pool(min(job.eval.workers or cores(), len(wanted))) as films:
        filmed = films.map(videos.film, [(job.task, job.convention, trial) for trial in wanted])
        for trial, video in zip(wanted, filmed, strict=True):
            context.check_stop()
            if isinstance(video, str):
                context.events.emit("warning", message=f"no video of episode {trial.episode.seed}: {video}")
            else:
                context.insist(partial(context.storage.write, f"{folder}/{trial.episode.seed}.mp4", video))
                trials.say()


def _seeds(job: EvalJob, data: datasets.Dataset) -> list[int]:
    """Return the environment seeds: the demonstrations' own for the oracle, unseen ones for a policy."""
    count = job.eval.episodes
    if job.eval.policy == "oracle":
        if not data.meta.seeds_known:
            raise DataError(
                f"{job.dataset} was imported, and nobody knows the seeds of its episodes, so the oracle cannot replay "
                "them; evaluate a policy"
            )
        if count > len(data.meta.seeds):
            raise DataError(
                f"eval.episodes {count} is more than the {len(data.meta.seeds)} demonstrations of {job.dataset} "
                f"that the oracle can replay; use eval.episodes={len(data.meta.seeds)}"
            )
        return list(data.meta.seeds[:count])
    if data.meta.seeds_known:
        agreement.check_unseen(job, data.meta.seeds, f"dataset {job.dataset}")
    return list(agreement.seeds(job))


def _header(job: EvalJob, dataset_renderer: str, renderer: str, context: Context) -> Result:
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
        batch_size=job.eval.batch_size,
        until=job.eval.until,
        first_seed=None if job.eval.policy == "oracle" else job.eval.first_seed,
        simulator=", ".join(f"{name} {number}" for name, number in versions().items()),
        renderer=renderer,
        dataset_renderer=dataset_renderer,
        variables={} if job.eval.policy == "oracle" else variables.told(os.environ),
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


def _earlier(storage: Storage, key: str, header: Result, seeds: list[int], ending: Ending) -> Result | None:
    """Return the result of an earlier start, when it is whole, of the same evaluation and of the same seeds."""
    try:
        result = Result.model_validate_json(storage.read(key))
    except (DataError, ValidationError):
        return None
    if result.model_copy(update={"episodes": ()}) != header:
        return None
    found = [episode.seed for episode in result.episodes]
    counted = ending.before(seeds, {episode.seed: episode.success_once for episode in result.episodes})
    return result if found in (seeds, counted) else None


def _actor(job: EvalJob, header: Result, storage: Storage, data: datasets.Dataset) -> Actor:
    """Return what is evaluated.

    Raises:
        DataError: The checkpoint is damaged, does not agree with the evaluation, or has seen the seeds.
        ConfigError: More steps are to be executed than it predicts.
    """
    if header.checkpoint is None:
        return OracleActor(data, job.eval.execute_steps)
    folder = storage.open(header.checkpoint, checkpoint.POLICY)
    meta = checkpoint.read_meta(folder)
    stats = checkpoint.read_recipe(folder, meta, job.task).stats
    agreement.check_checkpoint(meta, stats, data, job, header.renderer, f"checkpoint {header.checkpoint}")
    make = Policy.untrained if job.eval.policy == "untrained" else Policy.load
    asked = job.eval
    return make(folder, asked.batch_size, asked.sampling_steps, asked.seed, asked.temperature, job.task, job.compute)


if __name__ == "__main__":
    main(EvalJob, evaluate)
