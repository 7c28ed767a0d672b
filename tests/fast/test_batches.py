"""Batches: which samples in which order, their images, several datasets, several processes, and going on exactly."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest

from pi05.config import Convention
from pi05.data import batches
from pi05.data.batches import Loader, Samples, Source
from pi05.data.dataset import Dataset, DatasetMeta, with_states
from pi05.data.frames import Frames
from pi05.data.split import split
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05.errors import ConfigError, DataError
from tests.conftest import options

MODEL = options("tiny").model.model_copy(update={"image_size": 4})
CONVENTION = Convention(image_size=4)
BLIND = Convention(cameras=(), state="joints_and_poses")
EPISODE = 20
CAMERAS = ("base_camera", "hand_camera")


def make_dataset(task: str = "pushcube", episodes: int = 5, width: int = 8) -> Dataset:
    random = np.random.default_rng(episodes)
    rows = episodes * EPISODE
    meta = DatasetMeta(
        task=task, convention=CONVENTION, renderer="none", seeds=tuple(range(episodes)), attempts=(), versions={}
    )
    return Dataset(
        meta,
        random.normal(size=(rows, width)).astype(np.float32),
        random.normal(size=(rows, 8)).astype(np.float32),
        np.arange(0, rows + 1, EPISODE),
        tuple(f"s{i}" for i in range(width)),
    )


def make_frames(rows: int, source: int) -> Frames:
    """Return images whose pixels say row, source and camera."""
    row = np.broadcast_to(np.arange(rows)[:, None, None], (rows, 4, 4))
    same = np.ones_like(row)
    maps = {
        camera: np.stack([row, same * source, same * number], axis=-1).astype(np.uint8)
        for number, camera in enumerate(CAMERAS)
    }
    return Frames(maps, io.BytesIO())


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


def make_recipe(dataset: Dataset, convention: Convention = CONVENTION) -> Recipe:
    stats = batches.data_stats([dataset], convention, 16)
    return Recipe(MODEL, convention, stats, Tokenizer.load(TINY), "Push it")


@pytest.fixture(scope="module")
def recipe(dataset: Dataset) -> Recipe:
    return make_recipe(dataset)


@pytest.fixture(scope="module")
def source(dataset: Dataset) -> Source:
    return Source(dataset, "Push it", make_frames(len(dataset.states), 0))


@pytest.fixture(scope="module")
def two(source: Source) -> list[Source]:
    """A dataset of 100 samples, and one of 60 that is drawn three times as often."""
    other = make_dataset("pullcube", 3)
    return [source, Source(other, "Pull it", make_frames(len(other.states), 1), 3.0)]


def same(one: Samples, other: Samples) -> None:
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.real, other.real)
    np.testing.assert_array_equal(one.observation.tokens, other.observation.tokens)
    for camera in CAMERAS:
        np.testing.assert_array_equal(one.observation.images[camera], other.observation.images[camera])


def test_an_epoch_takes_every_sample_once_and_depends_on_the_seed(source: Source, recipe: Recipe) -> None:
    loader = Loader([source], recipe, 25, seed=3)
    steps = [loader.order(step)[1] for step in range(8)]
    for epoch in (steps[:4], steps[4:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(100))
    assert not np.array_equal(np.concatenate(steps[:4]), np.concatenate(steps[4:]))
    assert not np.array_equal(steps[0], Loader([source], recipe, 25, seed=4).order(0)[1])


def test_epochs_do_not_end_with_a_block(source: Source, recipe: Recipe) -> None:
    loader = Loader([source], recipe, batches._BLOCK // 2 + 48, seed=0)
    rows = np.concatenate([loader.order(step)[1] for step in range(25)])
    whole = len(rows) // 100 * 100
    assert (np.sort(rows[:whole].reshape(-1, 100), axis=1) == np.arange(100)).all()


def test_an_image_is_that_of_the_state_and_the_actions(dataset: Dataset, source: Source, recipe: Recipe) -> None:
    loader = Loader([source], recipe, 8, seed=0)
    rows = loader.order(5)[1]
    samples = loader.batch(5)
    observation = samples.observation
    assert list(observation.images) == list(CAMERAS)
    assert observation.image_masks == {}, "every sample has every camera, so there is nothing to sort"
    for number, camera in enumerate(CAMERAS):
        assert observation.images[camera].dtype == np.uint8
        assert observation.images[camera][:, 2, 2].tolist() == [[row, 0, number] for row in rows]
    wanted, _ = batches.chunks(dataset, rows, 16)
    np.testing.assert_allclose(recipe.decode_actions(dataset.states[rows], samples.actions), wanted, atol=1e-5)


def test_a_blind_policy_gets_no_images(dataset: Dataset) -> None:
    sample = Loader([Source(dataset, "Push it")], make_recipe(dataset, BLIND), 8, 0).batch(0)
    assert sample.observation.images == {}


def test_a_missing_camera_is_named(source: Source, recipe: Recipe) -> None:
    one = Frames({"base_camera": make_frames(100, 0).maps["base_camera"]}, io.BytesIO())
    with pytest.raises(DataError, match="images of hand_camera are missing, given are base_camera; the policy looks"):
        Loader([replace(source, frames=one)], recipe, 8, 0).batch(0)


def test_batches_go_on_where_they_stopped(two: list[Source], recipe: Recipe) -> None:
    def stream(first: int) -> list[Samples]:
        loader = Loader(two, recipe, 8, 0, 0.02)
        return list(itertools.islice(loader.batches(first), 6 - first))

    for one, other in zip(stream(0)[3:], stream(3), strict=True):
        same(one, other)


def test_datasets_have_their_shares_and_each_its_epochs(two: list[Source], recipe: Recipe) -> None:
    loader = Loader(two, recipe, batches._BLOCK, seed=0)
    uses = np.zeros(160, int)
    for step in range(3):
        which, rows = loader.order(step)
        assert np.bincount(which).tolist() == [batches._BLOCK // 4, batches._BLOCK // 4 * 3]
        assert rows[which == 0].max() < 100 <= rows[which == 1].min()
        uses += np.bincount(rows, minlength=160)
        assert np.ptp(uses[:100]) <= 1
        assert np.ptp(uses[100:]) <= 1


def test_each_sample_has_the_sentence_and_the_images_of_its_own_task(two: list[Source], recipe: Recipe) -> None:
    loader = Loader(two, recipe, 32, seed=1)
    which, rows = loader.order(4)
    assert set(which.tolist()) == {0, 1}
    observation = loader.batch(4).observation
    for camera in CAMERAS:
        pixels = observation.images[camera][:, 0, 0]
        assert pixels[:, 1].tolist() == which.tolist()
        assert pixels[:, 0].tolist() == (rows - 100 * which).tolist()
    spoken = recipe.tokenizer._processor.decode(observation.tokens.tolist())
    assert ["Pull it" in text for text in spoken] == [bool(source) for source in which]


def test_processes_make_the_rows_of_one_batch(two: list[Source], recipe: Recipe) -> None:
    whole = Loader(two, recipe, 12, 0, 0.02).batch(2)
    parts = [Loader(two, recipe, 12, 0, 0.02, slice(begin, begin + 4)).batch(2) for begin in (0, 4, 8)]
    together = Samples(
        replace(
            whole.observation,
            images={camera: np.concatenate([part.observation.images[camera] for part in parts]) for camera in CAMERAS},
            tokens=np.concatenate([part.observation.tokens for part in parts]),
        ),
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.real for part in parts]),
    )
    same(together, whole)


def test_from_a_state_with_noise_the_arm_is_to_go_where_it_was_to_go_without(source: Source, recipe: Recipe) -> None:
    quiet, noisy = (Loader([source], recipe, 256, 0, noise).batch(0) for noise in (0.0, 0.05))
    assert (quiet.observation.tokens != noisy.observation.tokens).any()
    np.testing.assert_array_equal(quiet.actions[..., 7:], noisy.actions[..., 7:])
    spans = [np.array(stats.q99) - np.array(stats.q01) for stats in (recipe.stats.actions, recipe.stats.state)]
    moved = (noisy.actions - quiet.actions)[..., :7] * spans[0][:7] / spans[1][:7]  # in half ranges of the state
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1], moved.shape), atol=1e-5)
    np.testing.assert_allclose(moved[:, 0].std(axis=0), 0.05, rtol=0.15)


def test_all_batches_of_a_mix_have_prompts_of_one_length(two: list[Source], recipe: Recipe) -> None:
    long = replace(two[0], sentence="Push it, and then push it again, and again until it lies where it has to lie")
    rare = replace(two[1], weight=0.01)
    loader = Loader([rare, long], replace(recipe, sentence=rare.sentence), 8, 0)
    batches_ = [loader.batch(step).observation for step in range(20)]
    longest = max(int(one.token_mask.sum(axis=1).max()) for one in batches_)
    assert {one.tokens.shape[1] for one in batches_} == {loader.recipe.prompt_length}
    assert 0 <= loader.recipe.prompt_length - longest < 8
    assert loader.recipe.prompt_length > replace(recipe, sentence=rare.sentence).prompt_length


def test_a_prompt_of_another_task_that_would_be_cut_is_refused(two: list[Source], recipe: Recipe) -> None:
    long = replace(two[1], sentence="Pull " * 80)
    with pytest.raises(ConfigError, match=r"takes \d+ tokens, model.max_token_len is 80"):
        Loader([two[0], long], recipe, 8, 0)


def test_tasks_that_tell_other_numbers_are_not_mixed(source: Source, recipe: Recipe) -> None:
    other = Source(make_dataset("pickcube", 3, width=9), "Pick it")
    with pytest.raises(DataError, match=r"pushcube tells a policy 8 numbers .* pickcube 9 .* convention.state=joints"):
        Loader([source, other], recipe, 8, 0)


def test_statistics_are_those_of_all_datasets(two: list[Source]) -> None:
    both = batches.data_stats([one.dataset for one in two], CONVENTION, 16)
    states = np.concatenate([one.dataset.states for one in two])
    np.testing.assert_allclose(both.state.mean, states.mean(axis=0), atol=1e-6)


def test_the_policy_is_told_the_numbers_it_asks_for_in_its_order(dataset: Dataset) -> None:
    chosen = with_states(dataset, ("s3", "s0"))
    np.testing.assert_array_equal(chosen.states, dataset.states[:, [3, 0]])
    assert with_states(dataset, dataset.state_names) is dataset
    with pytest.raises(DataError, match="have no tcp_x; they are s0, s1"):
        with_states(dataset, ("s0", "tcp_x"))


# ---- Episodes that are kept apart -----------------------------------------------------------------------------------


def episodes_of(rows: np.ndarray) -> set[int]:
    return set((rows // EPISODE).tolist())


@pytest.mark.parametrize(
    ("held_out", "apart"), [(0, set()), (1, {2}), (2, {1, 3}), (0.2, {2}), (0.01, {2}), (0.5, {0, 2, 4})]
)
def test_episodes_kept_apart_are_spread_over_all(dataset: Dataset, held_out: float, apart: set[int]) -> None:
    trained, kept = split(dataset, held_out)
    assert episodes_of(kept) == apart
    assert sorted([*trained, *kept]) == list(range(100))


def test_training_never_takes_what_is_kept_apart(two: list[Source], recipe: Recipe) -> None:
    loader = Loader(two, recipe, 8, 0, held_out=1)
    taken = [np.concatenate(rows) for rows in zip(*(loader.taken(step) for step in range(50)), strict=True)]
    assert [episodes_of(rows) for rows in taken] == [{0, 1, 3, 4}, {0, 2}]
    assert len(set(taken[0].tolist())) == 80, "and all of the rest"
    assert loader.held_out_batches == 5


def test_batches_kept_apart_hold_every_sample_and_never_change(two: list[Source], recipe: Recipe) -> None:
    loader = Loader(two, recipe, 16, 0, state_noise=0.5, held_out=1)
    made = [loader.held_out(number) for number in range(loader.held_out_batches)]
    assert [len(samples.actions) for samples in made] == [16, 16, 16]
    pixels = np.concatenate([samples.observation.images["base_camera"][:, 0, 0, :2] for samples in made])
    seen = {(int(row), int(source)) for row, source in pixels}
    assert seen == {(row, 0) for row in range(40, 60)} | {(row, 1) for row in range(20, 40)}
    same(made[1], Loader(two, recipe, 16, 7, held_out=1).held_out(1))


def test_processes_make_their_rows_of_what_is_kept_apart(two: list[Source], recipe: Recipe) -> None:
    whole = Loader(two, recipe, 16, 0, held_out=1).held_out(2)
    parts = [Loader(two, recipe, 16, 0, 0.0, rows, held_out=1).held_out(2) for rows in (slice(0, 8), slice(8, 16))]
    np.testing.assert_array_equal(np.concatenate([part.actions for part in parts]), whole.actions)


def test_statistics_do_not_know_what_is_kept_apart(dataset: Dataset) -> None:
    before = batches.data_stats([dataset], CONVENTION, 16, held_out=1)
    changed = replace(dataset, states=dataset.states.copy(), actions=dataset.actions.copy())
    changed.states[40:60] = 1e6
    changed.actions[40:60] = 1e6
    assert batches.data_stats([changed], CONVENTION, 16, held_out=1) == before
    assert batches.data_stats([changed], CONVENTION, 16) != batches.data_stats([dataset], CONVENTION, 16)


def test_something_must_be_left_to_train_on(source: Source, recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"held_out=5 would keep 5 of the 5 episodes of pushcube apart .* at most 4"):
        Loader([source], recipe, 8, 0, held_out=5)
