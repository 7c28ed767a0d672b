"""Training state to checkpoints and back, exactly.

    checkpoints/<step>/
        params/              what a policy uses (averaged weights where they are kept), in the published form
        train_state/         what only training needs: step, optimizer moments, the weights that are not averaged;
                             three times as large as params, and so not in every checkpoint
        assets/<id>/norm_stats.json
        assets/tokenizer.model
        assets/pi05.json     CheckpointMeta
        MANIFEST.json        sizes and checksums, written last

Resuming, in this order: the newest complete checkpoint with a train_state is found; its checksums are verified; its
sizes and settings are compared with the job's; parameters and state are read straight onto the devices; the data order
goes on from the step number.
"""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pi05 import tasks, variables
from pi05.config import (
    ACTION_NAMES,
    FLOAT32,
    ComputeConfig,
    Convention,
    ModelConfig,
    TrainConfig,
    computed_apart,
    explain,
)
from pi05.data import stats
from pi05.data.tokenizer import Tokenizer
from pi05.data.transforms import Recipe
from pi05.errors import ConfigError, DataError
from pi05.model import arrays, weights
from pi05.resuming import RESULT_FREE, STEERING, differences
from pi05.simulator import state_names
from pi05.storage import ASSETS, PARAMS, STATE, RunPaths, Storage, removal
from pi05.storage.artefact import unusable
from pi05.training import processes, snapshot
from pi05.training import step as training
from pi05.training.step import TrainState

ASSET_ID = "maniskill"
META = f"{ASSETS}/pi05.json"
TOKENIZER = f"{ASSETS}/tokenizer.model"
POLICY = (PARAMS, ASSETS)
"""The parts of a checkpoint that a policy needs."""
log = logging.getLogger("pi05")


class TrainedOn(BaseModel):
    """A dataset that a checkpoint was trained on.

    Attributes:
        task, sentence: Of the dataset.
        dataset: Its key.
        digest: Of its manifest.
        weight: Its share of the samples is this by the sum of all weights.
        seeds: Environment seeds of its demonstrations.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    sentence: str
    dataset: str
    digest: str
    weight: float
    seeds: tuple[int, ...]


class CheckpointMeta(BaseModel):
    """What a checkpoint says of itself, so that nothing has to be guessed when it is used.

    Attributes:
        v: Version of the form.
        run, task, sentence, step: Where the checkpoint comes from.
        dataset: Key of the dataset it was trained on.
        convention: Cameras, state and action form.
        renderer: Renderer of the training images, or `none`.
        goal_visible: Whether the goal was in them.
        demo_seeds: Environment seeds seen in training.
        model, train: All sizes and settings.
        compute: How it was computed; whoever goes on or acts may do so otherwise.
        sources: Every dataset, the task's own first.
        variables: Of the environment, that its numbers may depend on; None in those that were written before this was.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    v: Literal[1] = 1
    run: str
    task: str
    sentence: str
    step: int
    dataset: str
    convention: Convention
    renderer: str
    goal_visible: bool = True
    demo_seeds: tuple[int, ...]
    model: ModelConfig
    compute: ComputeConfig = FLOAT32
    train: TrainConfig
    sources: tuple[TrainedOn, ...] = ()
    variables: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, data: Any) -> Any:
        return computed_apart(data)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it was trained on, the run's own first."""
        return tuple(source.task for source in self.sources) or (self.task,)

    def sentence_of(self, task: str) -> str:
        """Return the instruction of a task; raise DataError when the checkpoint was not trained on it."""
        if task not in self.tasks:
            raise DataError(
                f"checkpoint {self.step} of {self.run} was trained on {', '.join(self.tasks)}, not on {task}; evaluate "
                f"it on {' or '.join(self.tasks)}, or train on {task}"
            )
        return {source.task: source.sentence for source in self.sources}.get(task, self.sentence)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, in memory.

    Attributes:
        params: What a policy uses, by path.
        state: What training needs beside them; None in one that training does not go on from.
        recipe: The transforms.
        meta: What it says of itself.
    """

    params: Mapping[str, jax.Array]
    state: dict[str, Any] | None
    recipe: Recipe
    meta: CheckpointMeta

    def copied(self) -> "Checkpoint":
        """Return it with copies of its arrays, which training does not change."""
        params, state = snapshot.copied((self.params, self.state))
        return replace(self, params=params, state=state)

    def for_policies(self) -> "Checkpoint":
        """Return it without what only training needs."""
        return replace(self, state=None)


def of(state: TrainState, recipe: Recipe, meta: CheckpointMeta) -> Checkpoint:
    """Return the checkpoint of a state, whose arrays it holds and does not copy."""
    return Checkpoint(training.policy_params(state), _beside_params(state), recipe, meta)


def write(folder: Path, what: Checkpoint) -> None:
    """Write a checkpoint to a folder; of several processes each writes its part, and only the first is complete."""
    weights.write(folder / PARAMS, what.params)
    if what.state is not None:
        arrays.save(folder / STATE, what.state)
    if processes.leads():
        stats.write(folder / ASSETS / ASSET_ID, what.recipe.stats)
        (folder / TOKENIZER).write_bytes(what.recipe.tokenizer.model)
        (folder / META).write_text(what.meta.model_dump_json(indent=1))


def is_due(step: int, train: TrainConfig) -> bool:
    """Return whether a checkpoint is due after a step, beside the last one and that of a signal."""
    return step % train.save_every == 0 or state_is_due(step, train)


def state_is_due(step: int, train: TrainConfig) -> bool:
    """Return whether that checkpoint is to be one that training can go on from."""
    return step % (train.save_state_every or train.save_every) == 0


def restore(folder: Path, mesh: Mesh, model: ModelConfig, train: TrainConfig, compute: ComputeConfig) -> TrainState:
    """Read a verified checkpoint onto the mesh, on as many devices as it has."""
    for words in check_settings(folder, model, train):
        log.info("checkpoint %s goes on otherwise than it was made: %s", folder.name, words)
    state = training.placed_state(mesh, model, train, compute)
    params = weights.read(folder / PARAMS, model, state.params)
    target = _beside_params(state)
    with arrays.reading(folder / STATE), arrays.checkpointer() as orbax:
        beside = orbax.restore(
            (folder / STATE).absolute(),
            args=ocp.args.PyTreeRestore(item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)),
        )
    ema = None if train.ema_decay is None else {path: params[path] for path in beside["trainable"]}
    return TrainState(beside["step"], {**params, **(beside["trainable"] or {})}, beside["opt_state"], ema)


def steps(storage: Storage, run: str) -> list[int]:
    """Return the steps of a run's complete checkpoints, ascending."""
    return storage.numbered(RunPaths(run).checkpoints)


def resumable(storage: Storage, run: str) -> list[int]:
    """Return the steps of those that training can go on from, ascending."""
    return storage.holding(RunPaths(run).checkpoints, STATE)


@contextlib.contextmanager
def borrowed(storage: Storage, run: str, step: int) -> Iterator[Path]:
    """Yield a local folder with a verified checkpoint, for a while.

    Raises:
        DataError: It is damaged; the error says how to go on from an earlier one.
    """
    key = RunPaths(run).checkpoint(step)
    with contextlib.ExitStack() as opened:
        try:
            folder = opened.enter_context(storage.borrow(key))
        except DataError as error:
            raise DataError(f"{error}; {_way_on(storage, run, key)}") from error
        yield folder


def check(storage: Storage, run: str, step: int) -> None:
    """Raise DataError when a checkpoint in storage is damaged, and say how to go on from an earlier one."""
    key = RunPaths(run).checkpoint(step)
    if problems := storage.verify(key):
        raise DataError(f"{unusable(f'{storage.url}/{key}', problems)}; {_way_on(storage, run, key)}")


def find(storage: Storage, run: str, step: int | None) -> int:
    """Return `step`, or the newest one; raise DataError listing what there is when it does not exist."""
    found = steps(storage, run)
    if not found:
        raise DataError(f"run {run} has no complete checkpoint in {storage.url}; train it first")
    if step is not None and step not in found:
        raise DataError(f"run {run} has no checkpoint {step}; there are {', '.join(map(str, found))}")
    return found[-1] if step is None else step


def superseded(saved: Iterable[int], resumable: Iterable[int], keep_every: int) -> list[int]:
    """Return the steps that retention deletes: all but the last, the last resumable and the multiples of keep_every."""
    kept = {max(saved, default=None), max(resumable, default=None)}
    return [step for step in sorted(saved) if step % keep_every and step not in kept]


def read_meta(folder: Path) -> CheckpointMeta:
    """Read what a checkpoint says of itself."""
    path = folder / META
    try:
        return CheckpointMeta.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no checkpoint of this project: {META} is missing") from error
    except ValidationError as error:
        raise DataError(f"{path} is not of this version: {explain(error)}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def read_recipe(folder: Path, meta: CheckpointMeta, task: str | None = None) -> Recipe:
    """Return the transforms a checkpoint was trained with, for one of its tasks; None is the run's own."""
    told = stats.read(folder / ASSETS / ASSET_ID)
    _check_widths(folder, told, meta)
    return Recipe(
        model=meta.model,
        convention=meta.convention,
        stats=told,
        tokenizer=Tokenizer.load(folder / TOKENIZER),
        sentence=meta.sentence_of(task or meta.task),
        others=tuple(source.sentence for source in meta.sources),
    )


def _check_widths(folder: Path, told: stats.DataStats, meta: CheckpointMeta) -> None:
    """Raise DataError unless the statistics are of as many numbers as states and actions have."""
    state = len(state_names(tasks.find(meta.task), meta.convention))
    for name, found, wanted in (("state", told.state, state), ("actions", told.actions, len(ACTION_NAMES))):
        if len(found.q01) != wanted:
            raise DataError(
                f"{folder / ASSETS / ASSET_ID / stats.FILE_NAME}: norm_stats.{name} is of {len(found.q01)} numbers, "
                f"{meta.task} has {wanted} ({META}: convention.state is {meta.convention.state!r}); put back the file "
                "that training wrote"
            )


def check_settings(folder: Path, model: ModelConfig, train: TrainConfig) -> list[str]:
    """Return what will be different from here on, because a training goes on with other settings than it had.

    Raises:
        ConfigError: The checkpoint does not fit the settings, or they would make another training of it.
    """
    meta = read_meta(folder)
    different = differences({"model": meta.model, "train": meta.train}, {"model": model, "train": train})
    said = {
        path: f"{path} {json.dumps(before)} (job: {json.dumps(now)})"
        for path, (before, now) in different.items()
        if path not in RESULT_FREE
    }
    if refused := [words for path, words in said.items() if path not in STEERING]:
        raise ConfigError(
            f"checkpoint {folder.name} was made with other settings: {'; '.join(refused)}. Submit a new run"
        )
    return list(said.values())


def check_variables(folder: Path, now: Mapping[str, str]) -> None:
    """Raise ConfigError when variables on which numbers depend are not those that a checkpoint was made with."""
    before = read_meta(folder).variables
    if before is not None and before != now:
        raise ConfigError(
            f"checkpoint {folder.name} was made with other variables in its environment, and numbers may depend on "
            f"them: {variables.words(before)} (now: {variables.words(now)}). Set what it was, or submit a new run; "
            "options of XLA that a run keeps are compute.xla_options"
        )


def check_datasets(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise DataError when a dataset is not, to the byte, the one that a checkpoint was trained on.

    Args:
        folder: The checkpoint.
        digests: Of the manifests there are now, by the datasets' keys.
    """
    for source in read_meta(folder).sources:
        if source.dataset in digests:
            check_digest(
                source.dataset, source.digest, digests[source.dataset], f"checkpoint {folder.name} was written"
            )


def check_digest(dataset: str, before: str, now: str, since: str) -> None:
    """Raise DataError when the digest of a dataset's manifest is another one."""
    if before != now:
        raise DataError(
            f"dataset {dataset} changed since {since}: its manifest was {before[:12]}, now it is {now[:12]}. "
            "Put back what it was, or submit a new run"
        )


def _way_on(storage: Storage, run: str, key: str) -> str:
    return f"to go on from an earlier one: {removal(storage.url, key)} && pi05ctl resume {run}"


def _beside_params(state: TrainState) -> dict:
    """Return what `params` does not hold; without averaging it holds the trainable weights already."""
    trainable = None if state.ema is None else {path: state.params[path] for path in state.ema}
    return {"step": state.step, "opt_state": state.opt_state, "trainable": trainable}
