"""What a training needs on GPUs that are not there, from sizes alone: the table of arrays, bytes, refusals."""

import math

import jax
import pytest
from jax.sharding import AbstractMesh

from pi05.chips import CHIPS, Machine, find
from pi05.config import TrainJob
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.errors import ConfigError
from pi05.model import device
from pi05.plan import parts
from pi05.plan.document import Plan
from pi05.plan.estimate import check, estimate
from pi05.plan.prompt import assumed_length
from pi05.training import step
from pi05ctl.spec.render import render
from pi05ctl.spec.runspec import RunSpec, parse_assignment, presets
from pi05ctl.spec.settings import Settings

EIGHT = Machine(find("h100"), 8)


def job(preset: str = "full", *assignments: str, task: str = "stackcube") -> TrainJob:
    overrides = dict(parse_assignment(text) for text in assignments)
    spec = RunSpec(kind="train", task=task, preset=preset, target="cluster", overrides=overrides)
    made = render(spec, Settings(storage="", python="", planner_python="")).job
    assert isinstance(made, TrainJob)
    return made


def looped(*assignments: str) -> Plan:
    return estimate(job("full", "compute.layers=looped", *assignments), EIGHT)


@pytest.mark.parametrize("preset", presets())
def test_the_same_arrays_are_trained(preset):
    told = job(preset)
    assert sorted(parts.trained_paths(told)) == sorted(step.trainable_paths(told.model, told.train.freeze))


def test_cudnn_takes_the_same_heads():
    assert parts.CUDNN == device._WIDEST


@pytest.mark.parametrize("preset", ["full", "lora", "small"])
@pytest.mark.parametrize("shards", [1, 8])
def test_what_lies_on_a_gpu_between_two_steps_is_exact(preset, shards):
    told = job(preset, f"train.fsdp_devices={shards}")
    mesh = AbstractMesh((8 // shards, shards), ("data", "fsdp"))
    places = step.state_sharding(mesh, told.model, told.train, told.compute)
    state = step.abstract_state(told.model, told.train, told.compute)

    def held(arrays: object, where: object) -> int:
        pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(where), strict=True)
        return sum(array.dtype.itemsize * math.prod(place.shard_shape(array.shape)) for array, place in pairs)

    needs = estimate(told, EIGHT).needs
    assert needs.parameters == pytest.approx(held(state.params, places.params), rel=3e-4)  # but for frozen norms
    assert needs.moments == pytest.approx(held(state.opt_state, places.opt_state), rel=1e-6)  # but for two counters
    assert needs.averages == held(state.ema, places.ema)


def test_the_small_tokenizer_has_the_length_that_is_assumed():
    told = job("tiny", task="pushcube")
    tokens = Tokenizer.load(TINY).longest(["Push and move a cube to a goal region in front of it."], 21)
    assert assumed_length(told) == pytest.approx(tokens, abs=8)


def test_what_is_kept_grows_with_the_samples_and_shrinks_with_what_is_computed_again():
    needs = [looped(*words).needs.temporary for words in (["train.batch_size=128"], [], ["compute.recompute=cheap"])]
    needs.append(looped("compute.recompute=layers").needs.temporary)
    assert needs == sorted(needs, reverse=True)
    kept = needs[0] - needs[1]
    assert needs[0] + 2 * kept == pytest.approx(looped("train.batch_size=256").needs.temporary, rel=1e-6)


def test_four_microbatches_need_less_than_the_whole_and_more_than_a_quarter():
    whole, parts = looped("train.batch_size=128"), looped("train.batch_size=128", "compute.microbatches=4")
    assert whole.needs.temporary / 4 < parts.needs.temporary < whole.needs.temporary
    assert parts.times.step > whole.times.step


def test_a_faster_chip_takes_less_time_and_needs_the_same():
    h100, b200 = (estimate(job(), Machine(find(chip), 8)) for chip in ("h100", "b200"))
    assert b200.times.step < h100.times.step
    assert b200.needs.state == h100.needs.state


def test_between_nodes_there_are_gradients_and_inside_one_there_are_none():
    told = job("full", "train.batch_size=128")
    assert estimate(told, EIGHT).network == 0
    gradients = 2 * 3_353_433_872
    assert gradients < estimate(told, Machine(find("h100"), 8, 2)).network < 1.3 * gradients


def test_one_gpu_sends_nothing():
    assert estimate(job("lora"), Machine(find("l40s"), 1)).wire == 0


def test_without_cudnn_there_are_logits():
    with_it, without = (looped(f"compute.attention={how}") for how in ("auto", "xla"))
    assert without.needs.temporary > with_it.needs.temporary
    assert without.times.memory > with_it.times.memory


@pytest.mark.parametrize(
    ("assignments", "machine", "message"),
    [
        (["train.batch_size=64"], Machine(find("h100"), 8, 3), "not divisible by 3 nodes of 8 h100; use 48 or 72"),
        (["train.batch_size=8"], Machine(find("h100"), 8, 2), "use 16"),
        ([], Machine(find("h100"), 4), "train.fsdp_devices 8 does not divide 4 h100; use a divisor of 4"),
        (["compute.microbatches=3"], EIGHT, "64 is not divisible by 8 h100 in 3 microbatches; use 48 or 72"),
    ],
)
def test_what_does_not_divide_is_refused(assignments, machine, message):
    with pytest.raises(ConfigError, match=message):
        check(job("full", *assignments), machine)


def test_every_chip_has_a_plan():
    assert {estimate(job("small", task="pushcube"), Machine(chip, 1)).fits for chip in CHIPS.values()} == {True}
