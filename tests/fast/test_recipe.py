"""Statistics, prompts and transforms: what training and acting share."""

import io
import string
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from pi05.config import Convention
from pi05.data import batches, tokenizer, transforms
from pi05.data.dataset import Dataset, DatasetMeta
from pi05.data.stats import MIN_RANGE, DataStats, read, statistics, write
from pi05.data.tokenizer import NUMBERS, TINY, Tokenizer, prompts
from pi05.data.transforms import DeltaJoints, Quantiles, Recipe
from pi05.errors import ConfigError, DataError
from pi05.tasks import TASKS
from tests.conftest import options

MODEL = options("tiny").model
CONVENTION = Convention(cameras=(), state="joints_and_poses")
EPISODE = 20


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.load(TINY)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(1)
    states = random.normal(size=(5 * EPISODE, 13)).astype(np.float32)
    actions = random.normal(size=(5 * EPISODE, 8)).astype(np.float32)
    meta = DatasetMeta(
        task="pushcube", convention=CONVENTION, renderer="none", seeds=tuple(range(5)), attempts=(), versions={}
    )
    return Dataset(meta, states, actions, np.arange(0, 5 * EPISODE + 1, EPISODE), ("x",) * 13)


@pytest.fixture(scope="module")
def recipe(dataset: Dataset, small: Tokenizer) -> Recipe:
    return Recipe(MODEL, CONVENTION, batches.data_stats([dataset], CONVENTION, 16), small, "Push it")


def test_the_shipped_tokenizer_is_what_its_recipe_makes() -> None:
    assert tokenizer.train_tiny() == TINY.read_bytes()


def test_every_number_is_one_token_and_every_sentence_is_known(small: Tokenizer) -> None:
    assert len(set(small.number_tokens.tolist())) == len(NUMBERS) == 257
    unknown = small._processor.unk_id()
    for task in TASKS.values():
        tokens, mask = small.encode(prompts([task.sentence], np.zeros((1, 13))), 200)
        assert unknown not in tokens[mask]


def test_the_prompt_has_the_published_form() -> None:
    states = np.array([[-1.5, -1.0, -0.9921, 0.0, 0.9999, 3.0]])
    assert prompts([" pick_the\ncube "], states) == ["Task: pick the cube, State: -1 0 1 128 255 255;\nAction: "]


def test_prompts_are_padded_with_bos_first_and_never_cut(small: Tokenizer) -> None:
    tokens, mask = small.encode(["a", "a much longer text"], 19)
    assert tokens.shape == mask.shape == (2, 19)
    assert (tokens[:, 0] == small._processor.bos_id()).all()
    assert mask[0].sum() < 19 == mask[1].sum()
    assert (tokens[~mask] == 0).all()
    with pytest.raises(DataError, match="the prompt 'a much longer text' takes 19 tokens, more than the 18 allowed"):
        small.encode(["a", "a much longer text"], 18)


def test_a_file_that_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match="is not a SentencePiece model"):
        Tokenizer(b"nonsense")


def test_quantiles_map_the_middle_98_percent_to_one_and_back() -> None:
    values = np.random.default_rng(0).normal(size=(50, 40, 3)) * [1, 10, 0.1] + [0, 5, -3]
    quantiles = Quantiles(statistics(values))
    normal = quantiles.apply(values)
    assert np.mean(np.abs(normal) <= 1) == pytest.approx(0.98, abs=0.002)
    np.testing.assert_allclose(quantiles.invert(normal), values, atol=1e-9)


def test_a_constant_dimension_keeps_a_range() -> None:
    stats = statistics(np.full((10, 1), 0.5))
    assert stats.q99[0] - stats.q01[0] == pytest.approx(MIN_RANGE)
    assert Quantiles(stats).apply(np.array([0.5]))[0] == pytest.approx(0, abs=1e-3)


def test_statistics_come_back_from_their_file(tmp_path, recipe: Recipe) -> None:
    write(tmp_path, recipe.stats)
    assert read(tmp_path) == recipe.stats
    (tmp_path / "norm_stats.json").write_text('{"norm_stats": {"state": {}}}')
    with pytest.raises(DataError, match=r"norm_stats.json cannot be used: norm_stats.state.mean: Field required"):
        read(tmp_path)


def test_delta_joints_leave_the_gripper_absolute() -> None:
    state, actions = np.ones((2, 13)), np.full((2, 4, 8), 3.0)
    relative = DeltaJoints().apply(state, actions)
    assert (relative[..., :7] == 2).all()
    assert (relative[..., 7] == 3).all()
    np.testing.assert_array_equal(DeltaJoints().invert(state, relative), actions)


def test_what_is_encoded_for_training_is_decoded_for_acting(recipe: Recipe, dataset: Dataset) -> None:
    rows = np.array([0, 7, 63])
    actions, _ = batches.chunks(dataset, rows, 16)
    encoded = recipe.encode_actions(dataset.states[rows], actions)
    assert encoded.shape == (3, 16, MODEL.action_dim)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(recipe.decode_actions(dataset.states[rows], encoded), actions, atol=1e-5)


def test_chunks_stay_in_their_episode(dataset: Dataset) -> None:
    row = 2 * EPISODE - 3
    actions, inside = batches.chunks(dataset, np.array([row]), 16)
    np.testing.assert_array_equal(inside[0], [True] * 3 + [False] * 13)
    np.testing.assert_array_equal(actions[0, :3], dataset.actions[row : row + 3])
    assert (actions[0, 3:] == dataset.actions[2 * EPISODE - 1]).all()


@pytest.fixture(scope="module")
def spelling() -> Tokenizer:
    """A tokenizer that spells numbers digit by digit, as PaliGemma's does."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prompts([task.sentence for task in TASKS.values()], np.zeros((len(TASKS), 8)))),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        split_digits=True,
        required_chars=string.digits + string.ascii_letters + string.punctuation,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())


@pytest.fixture(scope="module", params=["small", "spelling"])
def of_two_tasks(recipe: Recipe, request: pytest.FixtureRequest) -> Recipe:
    return replace(
        recipe,
        model=MODEL.model_copy(update={"max_token_len": 200}),
        tokenizer=request.getfixturevalue(request.param),
        others=(TASKS["peginsertionside"].sentence,),
    )


STATES = st.lists(st.floats(-1.5, 1.5), min_size=13, max_size=13)


@given(states=st.lists(STATES, min_size=1, max_size=3), which=st.integers(0, 1))
@settings(deadline=None)
def test_no_prompt_exceeds_the_length_of_its_recipe(
    of_two_tasks: Recipe, states: list[list[float]], which: int
) -> None:
    sentence = (of_two_tasks.sentence, *of_two_tasks.others)[which]
    tokens, mask = of_two_tasks.prompt(np.array(states), [sentence] * len(states))
    assert tokens.shape == mask.shape == (len(states), of_two_tasks.prompt_length)
    assert of_two_tasks.prompt_length % 8 == 0


def test_the_longest_prompt_is_that_of_the_longest_numbers(recipe: Recipe, spelling: Tokenizer) -> None:
    wide = MODEL.model_copy(update={"max_token_len": 200})
    spelled = replace(recipe, model=wide, tokenizer=spelling)
    lengths = {value: int(spelled.prompt(np.full((1, 13), value), ["Push it"])[1].sum()) for value in (-2, -1, 0, 2)}
    assert lengths[-1] < lengths[-2] < lengths[0] == lengths[2], "0, -1, 128, 255"
    assert 0 <= spelled.prompt_length - lengths[0] < 8


def test_a_prompt_length_never_exceeds_the_models(recipe: Recipe) -> None:
    exact = recipe._longest
    assert exact % 8
    tight = replace(recipe, model=MODEL.model_copy(update={"max_token_len": exact}))
    assert tight.prompt_length == exact


def test_a_prompt_that_would_be_cut_is_refused(recipe: Recipe, small: Tokenizer) -> None:
    short = MODEL.model_copy(update={"max_token_len": 16})
    with pytest.raises(ConfigError, match=r"takes \d+ tokens, model.max_token_len is 16; use model.max_token_len=\d+"):
        Recipe(short, CONVENTION, recipe.stats, small, "Push it")


def test_a_tokenizer_larger_than_the_table_is_refused(recipe: Recipe, small: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens, model.vocab_size is 100"):
        Recipe(MODEL.model_copy(update={"vocab_size": 100}), CONVENTION, recipe.stats, small, "Push it")


def test_too_few_action_dimensions_are_refused(recipe: Recipe, small: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="action_dim 7 cannot hold 8 actions"):
        Recipe(MODEL.model_copy(update={"action_dim": 7}), CONVENTION, recipe.stats, small, "Push it")


def test_relative_actions_want_matching_shapes() -> None:
    with pytest.raises(DataError, match=r"states \(2, 3\) and actions \(3, 4, 8\)"):
        transforms.relative_actions(CONVENTION, np.zeros((2, 3)), np.zeros((3, 4, 8)))


def test_stats_are_computed_after_the_delta_transform(dataset: Dataset) -> None:
    delta = batches.data_stats([dataset], CONVENTION, 16)
    absolute = batches.data_stats([dataset], CONVENTION.model_copy(update={"delta_joints": False}), 16)
    assert isinstance(delta, DataStats)
    assert delta.state == absolute.state
    assert delta.actions.q99[:7] != absolute.actions.q99[:7]
    assert delta.actions.q99[7] == absolute.actions.q99[7]
