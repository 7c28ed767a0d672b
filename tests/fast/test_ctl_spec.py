"""Presets, overrides and what is refused before anything starts."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi05 import tasks
from pi05.errors import ConfigError
from pi05ctl.errors import UsageError
from pi05ctl.spec import runspec
from pi05ctl.spec.described import options
from pi05ctl.spec.runspec import RunSpec, format_value, parse_assignment, parse_value, presets, resolve

PRESETS = Path(runspec.__file__).with_name("presets")


def spec(**overrides) -> RunSpec:
    names = {name.replace("__", "."): value for name, value in overrides.items()}
    return RunSpec(kind="train", task="pushcube", preset="tiny", overrides=names)


@pytest.mark.parametrize("preset", ["tiny", "micro", "small", "lora", "full"])
@pytest.mark.parametrize("task", list(tasks.TASKS))
def test_every_preset_suits_every_task(preset, task):
    options = resolve(RunSpec(kind="train", task=task, preset=preset))
    assert options.model.action_horizon < tasks.find(task).demo_steps


def test_presets_are_offered_smallest_first():
    assert presets() == ["tiny", "micro", "small", "lora", "full"]


def test_a_preset_has_only_sections_that_exist():
    for name in presets():
        said = tomllib.loads((PRESETS / f"{name}.toml").read_text())
        assert set(said) <= {*runspec.Options.model_fields, "tasks"}
        assert set(said.get("tasks", {})) <= set(tasks.TASKS)


def test_what_a_preset_says_for_one_task_holds_for_it_alone_and_less_than_what_the_user_says():
    def steps(task, **overrides):
        return resolve(RunSpec(kind="train", task=task, preset="tiny", overrides=overrides)).train.steps

    assert steps("stackcube") > steps("pickcube")
    assert steps("stackcube", **{"train.steps": 700}) == 700


def test_full_is_the_handover_and_the_released_sizes():
    options = resolve(RunSpec(kind="train", task="stackcube", preset="full"))
    assert (options.train.steps, options.train.batch_size, options.train.fsdp_devices) == (30_000, 64, 8)
    assert options.train.optimizer.peak_lr == 5e-5
    vlm, expert, vit = options.model.vlm, options.model.expert, options.model.vit
    assert (vlm.width, vlm.depth, vlm.mlp_dim, vlm.num_heads, vlm.num_kv_heads) == (2048, 18, 16384, 8, 1)
    assert (expert.width, expert.depth, expert.mlp_dim, expert.head_dim) == (1024, 18, 4096, 256)
    assert (vit.width, vit.depth, vit.mlp_dim, vit.num_heads) == (1152, 27, 4304, 16)
    assert options.convention.state == "joints"


def test_lora_is_full_with_the_published_ranks_on_one_gpu():
    lora, full = (resolve(RunSpec(kind="train", task="stackcube", preset=name)) for name in ("lora", "full"))
    assert (lora.model.vlm.lora_rank, lora.model.expert.lora_rank) == (16, 32)
    gemmas = {name: getattr(lora.model, name).model_copy(update={"lora_rank": 0}) for name in ("vlm", "expert")}
    assert lora.model.model_copy(update=gemmas) == full.model
    assert (lora.train.fsdp_devices, lora.train.weights, lora.train.ema_decay) == (1, full.train.weights, None)


def test_tiny_says_that_it_does_not_see():
    convention = resolve(spec()).convention
    assert (convention.cameras, convention.state) == ((), "joints_and_poses")


def test_what_none_stands_for_is_filled_in():
    options = resolve(RunSpec(kind="eval", task="placesphere", preset="full"))
    assert options.demos.count == 188
    assert options.eval.max_steps == 250
    assert options.train.optimizer.decay_steps == 30_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1000", 1000),
        ("1_000", 1000),
        ("5e-5", 5e-5),
        ("true", True),
        ("none", None),
        ("pi05_base", "pi05_base"),
        ('"200"', "200"),
        ("[1, 2]", [1, 2]),
        ('["base_camera"]', ["base_camera"]),
        ("[base_camera, hand_camera]", ["base_camera", "hand_camera"]),
        ("[]", []),
        ("PaliGemma/llm/.*", "PaliGemma/llm/.*"),
        ("2026-01-01", "2026-01-01"),
        ("inf", "inf"),
        ("1\nsteps = 2", "1\nsteps = 2"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_are_read_as_toml_with_quotes_optional(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(PLAIN | st.lists(PLAIN.filter(lambda value: value is not None)))
def test_a_formatted_value_reads_as_itself(value):
    assert parse_value(format_value(value)) == value


def test_an_assignment_keeps_later_equals_signs():
    assert parse_assignment("train.weights=a=b") == ("train.weights", "a=b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.step=5", "unknown option 'train.step'; did you mean 'train.steps'?"),
        ("steps=5", "did you mean 'train.steps'?"),
        ("train.peak_lr=1", "did you mean 'train.optimizer.peak_lr'?"),
        ("Train.Steps=5", "did you mean 'train.steps'?"),
        ("lr=1", "did you mean 'train.optimizer.peak_lr'?"),
        ("train.lerning_rate=1", "did you mean 'train.optimizer.peak_lr'?"),
        ("epochs=1", "did you mean 'train.steps'?"),
        ("num_demos=1", "did you mean 'demos.count'?"),
        ("train.optimizer=5", "train.optimizer is a section; set one of its values: train.optimizer.peak_lr"),
        ("train.steps", "--set 'train.steps' has no value"),
        ("=5", "unknown option ''"),
    ],
)
def test_an_unknown_path_is_refused_with_the_nearest(text, message):
    with pytest.raises(UsageError) as error:
        parse_assignment(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train__steps": -1}, "train.steps: Input should be greater than 0 (given -1)"),
        ({"train__steps": True}, "train.steps: Input should be a valid integer (given True)"),
        ({"train__steps": "many"}, "train.steps: Input should be a valid integer (given 'many')"),
        ({"compute__dtype": "float16"}, "compute.dtype: Input should be 'float32' or 'bfloat16' (given 'float16')"),
        ({"train__steps": 50}, "optimizer.warmup_steps 100 must be less than the 50 decay steps"),
        ({"model__expert__depth": 3}, "vlm.depth 4 and expert.depth 3 must be equal"),
        ({"train__batch_size": 30, "train__fsdp_devices": 8}, "batch_size 30 is not divisible by 8 devices"),
        ({"train__batch_size": 30, "train__fsdp_devices": 8}, "use 24 or 32"),
        ({"train__batch_size": 2, "train__fsdp_devices": 8}, "use 8"),
        ({"eval__execute_steps": 17}, "eval.execute_steps 17 is more than the 16 actions of a chunk"),
        ({"demos__first_seed": 999_500}, "may try the seeds 999500 to 1002199"),
        ({"train__stpes": 1}, "unknown option 'train.stpes'; did you mean 'train.steps'?"),
    ],
)
def test_impossible_values_are_refused_in_words(overrides, message):
    with pytest.raises(UsageError) as error:
        resolve(spec(**overrides))
    assert message in str(error.value)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(
        UsageError, match="unknown preset 'tinny'; did you mean 'tiny'\\? There are tiny, micro, small, lora, full"
    ):
        resolve(RunSpec(kind="train", task="pushcube", preset="tinny"))


def test_a_preset_is_a_name_and_no_path():
    with pytest.raises(UsageError, match="unknown preset"):
        resolve(RunSpec(kind="train", task="pushcube", preset="../presets/tiny"))


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'pushcube'"):
        resolve(RunSpec(kind="train", task="pushcub", preset="tiny"))


def test_the_command_of_a_spec_asks_for_it_again():
    overrides = {"train.weights": "my base", "train.freeze": ["a.*", "b"], "train.ema_decay": None}
    asked = RunSpec(kind="train", task="pushcube", preset="tiny", overrides=overrides)
    assert asked.command() == (
        "pi05ctl submit train pushcube --target local --preset tiny --set train.ema_decay=none "
        "--set 'train.freeze=[\"a.*\", \"b\"]' --set 'train.weights=my base'"
    )
    assert asked.command("demos").startswith("pi05ctl submit demos pushcube")


# ---- All options, told -----------------------------------------------------------------------------------------------
def test_every_option_has_a_sentence_and_what_each_preset_says():
    told = options("stackcube")
    assert [one.path for one in told if not one.sentence] == []
    assert {tuple(one.values) for one in told} == {tuple(presets())}
    [steps] = options("stackcube", "train.steps")
    assert (steps.kind, steps.values["full"]) == ("whole number > 0", 30_000)
    assert steps.values["tiny"] == resolve(RunSpec(kind="train", task="stackcube", preset="tiny")).train.steps


def test_what_others_call_an_option_is_an_option_of_ours():
    assert set(runspec._OTHER_WORDS.values()) <= {one.path for one in options("pushcube")}


def test_a_section_is_told_alone_and_one_that_is_none_is_refused():
    assert {one.path.rpartition(".")[0] for one in options("pushcube", "train")} == {
        "train",
        "train.optimizer",
        "train.augment",
    }
    with pytest.raises(UsageError, match=r"'trian'; did you mean 'train'\? sections are convention, demos, model.vlm"):
        options("pushcube", "trian")
