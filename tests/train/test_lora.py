"""Training with LoRA: what is trained and what it costs, base weights and checkpoints in the published form, resume."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from pydantic import ValidationError

from pi05.config import FLOAT32, ComputeConfig, ModelConfig
from pi05.errors import ConfigError, DataError
from pi05.jobs.runtime import Stopped
from pi05.model import arrays, flow, leaves, tree, weights
from pi05.policy import Policy
from pi05.training import checkpoint, step
from pi05.training.loop import Training, start
from pi05.training.step import TrainState
from tests.parity.test_lora import merged
from tests.train.conftest import MODEL, Around, make_dataset, make_training, new_around
from tests.train.conftest import TRAIN as PLAIN
from tests.train.test_resume import equal, run

BF16 = ComputeConfig(dtype="bfloat16")


def ranked(vlm: int, expert: int) -> ModelConfig:
    """Return the small model with factors of these ranks."""
    ranks = {"vlm": vlm, "expert": expert}
    return MODEL.model_copy(
        update={name: getattr(MODEL, name).model_copy(update={"lora_rank": rank}) for name, rank in ranks.items()}
    )


LORA = ranked(4, 3)
FACTORS = {path for path in tree.leaves(LORA) if leaves.is_factor(path)}
GEMMAS = {path for path in tree.leaves(LORA) if path.startswith("PaliGemma/llm/")} - FACTORS
ROUNDED = {path for path in GEMMAS if not path.endswith("norm/scale")}
"""What the model rounds to bfloat16 before it computes with it; norms scale in float32."""


TRAIN = PLAIN.model_copy(update={"weights": "base", "ema_decay": None, "steps": 12, "save_every": 6})


def pretrained(model: ModelConfig) -> dict[str, np.ndarray]:
    """Return weights as of a model that has learned: the gates of its expert are open."""
    params = tree.initial(model, seed=5)
    random = np.random.default_rng(0)
    gates = {path for path in params if "norm_1/" in path}
    return {path: random.normal(size=w.shape, scale=0.3) if path in gates else w for path, w in params.items()}


def store(root: Path, params: dict[str, np.ndarray], stop_after: int | None = None) -> Around:
    """Return surroundings with base weights, in the form of a trainer that keeps the key `value` at every leaf."""
    around = new_around(root, stop_after)
    if not around.storage.exists("weights/base"):
        with around.storage.stage("weights/base") as folder:
            leaves = {f"{path}/value": np.asarray(w, np.float32) for path, w in params.items()}
            arrays.save(folder / "params", {"params": tree.nest(leaves)})
    return around


def training_of(model: ModelConfig) -> Training:
    return make_training(TRAIN, model=model, compute=BF16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Around]:
    """A run as of the preset: in bfloat16, without averaging."""
    around = store(tmp_path_factory.mktemp("whole"), pretrained(MODEL))
    return run(training_of(LORA), around), around


def test_a_run_with_factors_learns(whole: tuple[TrainState, Around]) -> None:
    losses = [whole[1].losses[i] for i in range(1, 13)]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


def test_factors_move_and_the_gemmas_do_not(whole: tuple[TrainState, Around]) -> None:
    state, before = whole[0], {**tree.initial(LORA, TRAIN.seed, FACTORS), **pretrained(MODEL)}
    moved = {path for path, w in state.params.items() if not np.array_equal(w, before[path].astype(w.dtype))}
    assert moved >= FACTORS
    assert not moved & GEMMAS


def test_frozen_weights_lie_in_the_type_they_are_computed_in(whole: tuple[TrainState, Around]) -> None:
    assert {path for path, w in whole[0].params.items() if w.dtype == jnp.bfloat16} == ROUNDED
    state = step.abstract_state(LORA, TRAIN, FLOAT32)
    assert {str(w.dtype) for w in state.params.values()} == {"float32"}


def test_weights_that_are_kept_rounded_give_the_numbers_of_exact_ones() -> None:
    params = {path: jnp.asarray(w, jnp.float32) for path, w in pretrained(LORA).items()}
    params[tree.EMBEDDING] = params[tree.EMBEDDING].astype(jnp.bfloat16).astype(jnp.float32)
    batch = next(training_of(LORA)._batches(0))
    noise, time = flow.draw(jax.random.key(0), batch.actions.shape)

    @jax.jit
    def loss(params: step.Flat) -> jax.Array:
        return step.loss_and_sums(tree.nest(params), LORA, BF16, batch, noise[None], time[None])[0]

    assert loss(step.new_state(params, LORA, TRAIN, BF16).params) == loss(params)


def test_only_what_is_trained_has_moments_and_an_average() -> None:
    state = step.abstract_state(LORA, PLAIN, BF16)
    trained = state.params.keys() - GEMMAS
    assert state.ema is not None
    assert state.ema.keys() == trained
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(moments) == 2 * sum(state.params[path].size for path in trained)


@pytest.mark.parametrize("ranks", [(4, 0), (0, 3), (4, 3)])
def test_only_a_gemma_with_factors_is_frozen(ranks: tuple[int, int]) -> None:
    model = ranked(*ranks)
    expert = {path for path in GEMMAS if "_1/" in path}
    wanted = (GEMMAS - expert if ranks[0] else set()) | (expert if ranks[1] else set())
    assert tree.leaves(model).keys() - set(step.trainable_paths(model, ())) == wanted


def test_more_can_be_frozen_than_the_gemmas() -> None:
    kept = step.trainable_paths(LORA, ("PaliGemma/img/.*",))
    assert not any(path.startswith("PaliGemma/img/") for path in kept)
    assert set(kept) > FACTORS


def test_frozen_weights_cost_no_gradient() -> None:
    """Of a product's three parts (forward, gradient of the input, of the weight) the last is not computed."""

    def flops(model: ModelConfig) -> float:
        state, batch = step.abstract_state(model, TRAIN, FLOAT32), next(training_of(model)._batches(0))
        noise, time = jnp.zeros((1, *batch.actions.shape)), jnp.zeros((1, batch.actions.shape[0]))
        update = partial(step.update, model=model, train=TRAIN, compute=FLOAT32)
        costs = jax.jit(update).lower(state, batch, noise, time).compile().cost_analysis()
        assert costs is not None
        return costs["flops"]

    assert flops(LORA) < 0.8 * flops(MODEL)


def test_twelve_steps_equal_six_and_six_bit_for_bit(whole: tuple[TrainState, Around], tmp_path: Path) -> None:
    first, second = (store(tmp_path, pretrained(MODEL), stop_after) for stop_after in (6, None))
    with pytest.raises(Stopped):
        run(training_of(LORA), first)
    assert equal(run(training_of(LORA), second), whole[0])
    assert first.losses | second.losses == whole[1].losses


def test_resume_with_an_average_is_exact_too(tmp_path: Path) -> None:
    averaging = make_training(TRAIN.model_copy(update={"ema_decay": 0.9}), model=LORA, compute=BF16)
    uninterrupted = run(averaging, store(tmp_path / "whole", pretrained(MODEL)))
    with pytest.raises(Stopped):
        run(averaging, store(tmp_path / "parts", pretrained(MODEL), stop_after=6))
    assert equal(run(averaging, store(tmp_path / "parts", {})), uninterrupted)


def test_a_checkpoint_has_the_published_names(whole: tuple[TrainState, Around]) -> None:
    """Read without any code of ours: what another trainer finds."""
    around = whole[1]
    folder = around.storage.open(around.paths.checkpoint(12))
    with ocp.PyTreeCheckpointer() as orbax:
        numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), orbax.metadata(folder / "params").item_metadata.tree
        )
        found = tree.flatten(orbax.restore(folder / "params", restore_args=numpy)["params"])
    assert found.keys() == whole[0].params.keys()
    for path, w in whole[0].params.items():
        assert found[path].dtype == w.dtype
        np.testing.assert_array_equal(found[path], w, err_msg=path)


def test_a_checkpoint_acts_as_its_weights_with_the_factors_added(whole: tuple[TrainState, Around]) -> None:
    around, seen = whole[1], ([7, 8], 0, make_dataset().states[:2], {})
    folder = around.storage.open(around.paths.checkpoint(12))
    policy = Policy.load(folder, rows=2, sampling_steps=3, seed=0)
    found = policy.act(*seen)
    meta = policy.meta.model_copy(update={"model": MODEL})
    params = merged({path: np.asarray(w) for path, w in whole[0].params.items()})
    params = {path: jnp.asarray(w) for path, w in params.items()}
    plain = Policy(params, checkpoint.read_recipe(folder, meta), meta, rows=2, sampling_steps=3, seed=0)
    np.testing.assert_allclose(found, plain.act(*seen), rtol=1e-4, atol=1e-5)


def test_base_weights_get_the_factors_of_a_new_model(tmp_path: Path) -> None:
    state = start(training_of(LORA), store(tmp_path, pretrained(MODEL)))
    for path, w in tree.initial(LORA, TRAIN.seed, FACTORS).items():
        np.testing.assert_array_equal(state.params[path], w, err_msg=path)
    for path, w in pretrained(MODEL).items():
        np.testing.assert_array_equal(state.params[path], w.astype(state.params[path].dtype), err_msg=path)


def test_factors_of_another_trainer_are_taken_over(tmp_path: Path) -> None:
    theirs = pretrained(LORA)
    state = start(training_of(LORA), store(tmp_path, theirs))
    for path in FACTORS:
        np.testing.assert_array_equal(state.params[path], theirs[path], err_msg=path)


@pytest.mark.parametrize("ranks", [(0, 0), (4, 0), (8, 3)])
def test_factors_without_a_place_are_refused_with_what_they_need(tmp_path: Path, ranks: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"use model\.vlm\.lora_rank=4 and model\.expert\.lora_rank=3"):
        start(training_of(ranked(*ranks)), store(tmp_path, pretrained(LORA)))


def test_weights_without_factors_are_no_policy_with_them(tmp_path: Path) -> None:
    folder = store(tmp_path, pretrained(MODEL)).storage.open("weights/base")
    with pytest.raises(DataError, match=r"factors of LoRA of rank 0 \(language model\) and 0 \(expert\)"):
        weights.read(folder / "params", LORA)


def test_a_run_goes_on_with_its_ranks_alone(whole: tuple[TrainState, Around]) -> None:
    with pytest.raises(ConfigError, match=r"was made with other settings: model\.expert"):
        start(training_of(ranked(4, 0)), whole[1])


def test_factors_beside_random_weights_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"set train\.weights"):
        make_training(TRAIN.model_copy(update={"weights": None}), model=LORA)
