"""A run and the settings of a cluster -> the values of its release."""

import pytest

from pi05ctl.cluster.values import SCHEMA, schema
from pi05ctl.errors import UsageError
from pi05ctl.spec.settings import Cluster, EvalPods, TrainPods
from tests.chart.profiles import PROFILES, profile


def test_the_schema_is_that_of_the_models():
    assert SCHEMA.read_text() == schema(), "python -m pi05ctl.cluster.values writes it"


def test_each_kind_has_its_image():
    images = {name: shown.values.image.name.split("/")[1] for name, shown in PROFILES.items()}
    assert images["demos"] == images["eval_four_shards"] == "pi05-sim:0.1.0"
    assert images["train_full"] == "pi05-train:0.1.0"
    assert images["pipeline"] == "pi05-ctl:0.1.0"


@pytest.mark.parametrize("preset", ["tiny", "full"])
def test_a_training_takes_the_gpus_of_the_settings(preset):
    assert profile("train", "pushcube", preset).values.resources.gpus.count == 8
    two = Cluster(train=TrainPods(gpus=2))
    assert profile("train", "pushcube", preset, two, **{"train.fsdp_devices": 0}).values.resources.gpus.count == 2


def test_a_preset_that_names_its_devices_gets_as_many():
    assert profile("train", "pushcube", "tiny", **{"train.fsdp_devices": 4}).values.resources.gpus.count == 4


@pytest.mark.parametrize("preset", ["small", "lora"])
def test_a_preset_for_one_gpu_gets_one(preset):
    assert profile("train", "pushcube", preset).values.resources.gpus.count == 1


def test_parameters_may_be_sharded_within_each_of_several_nodes():
    nodes = Cluster(train=TrainPods(nodes=2))
    values = profile("train", "pushcube", "tiny", nodes, **{"train.fsdp_devices": 8}).values
    assert (values.pods, values.resources.gpus.count) == (2, 8)


@pytest.mark.parametrize(
    ("nodes", "overrides"),
    [
        (1, {"train.batch_size": 30}),
        (3, {"train.batch_size": 32}),
        (2, {"train.fsdp_devices": 32}),
    ],
)
def test_work_that_cannot_be_divided_is_refused_before_it_is_queued(nodes, overrides):
    with pytest.raises(UsageError, match="do not fit"):
        _ = profile("train", "pushcube", "tiny", Cluster(train=TrainPods(nodes=nodes)), **overrides).values


def test_a_training_without_gpus_is_one_too():
    values = profile("train", "pushcube", "tiny", Cluster(train=TrainPods(gpus=0))).values
    assert (values.resources.gpus.count, values.container.env) == (0, {})


def test_more_than_a_quarter_of_the_shards_is_no_bad_luck():
    failed = {}
    for shards in (1, 4, 100):
        values = profile("eval", "pushcube", "tiny", Cluster(eval=EvalPods(shards=shards))).values
        failed[shards] = values.max_failed_shards
    assert failed == {1: 1, 4: 1, 100: 25}


def test_the_users_environment_outranks_ours():
    mine = Cluster(env={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"})
    env = profile("train", "pushcube", "tiny", mine).values.container.env
    assert env == {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}


def test_where_a_run_goes_is_no_part_of_its_name():
    names = {profile("train", "pushcube", "tiny", cluster).run.run for cluster in (Cluster(), Cluster(namespace="x"))}
    assert len(names) == 1
