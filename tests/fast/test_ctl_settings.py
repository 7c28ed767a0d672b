"""pi05.toml and the environment."""

from pathlib import Path

import pytest

from pi05ctl.errors import UsageError
from pi05ctl.spec.settings import Toleration, load

PYTHON = Path("/project/.venv/bin/python")


def test_without_a_file_runs_live_beside_where_one_stands(tmp_path):
    found = load(tmp_path, {}, PYTHON)
    assert found.storage == f"file://{tmp_path}/pi05-data"
    assert (found.python, found.target, found.jobs_at_once) == (str(PYTHON), "local", 1)
    assert found.origin is None


def test_the_file_is_found_upward_and_its_paths_are_beside_it(tmp_path):
    (tmp_path / "pi05.toml").write_text('storage = "runs"\npython = "env/python"\njobs_at_once = 3\n')
    inside = tmp_path / "a/b"
    inside.mkdir(parents=True)
    found = load(inside, {}, PYTHON)
    assert found.storage == f"file://{tmp_path}/runs"
    assert found.python == f"{tmp_path}/env/python"
    assert found.jobs_at_once == 3


def test_a_url_is_taken_as_it_is(tmp_path):
    (tmp_path / "pi05.toml").write_text('storage = "file:///elsewhere/x"\n')
    assert load(tmp_path, {}, PYTHON).storage == "file:///elsewhere/x"


def test_a_folder_with_blanks_becomes_a_url(tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    assert load(folder, {}, PYTHON).storage.endswith("/my%20runs/pi05-data")


def test_the_variable_outranks_the_file_and_is_named(tmp_path):
    (tmp_path / "pi05.toml").write_text('storage = "runs"\n')
    found = load(tmp_path, {"PI05_STORAGE": "file:///scratch"}, PYTHON)
    assert (found.storage, found.origin) == ("file:///scratch", "PI05_STORAGE")


def test_the_planner_is_looked_for_beside_the_project_and_its_environment(tmp_path):
    work, project = tmp_path / "work", tmp_path / "project"
    planner = project / ".venv-planner/bin/python"
    planner.parent.mkdir(parents=True)
    planner.touch()
    work.mkdir()
    python = project / ".venv/bin/python"
    assert load(work, {}, python).planner_python == str(planner)
    assert load(work, {}, PYTHON).planner_python == f"{work}/.venv-planner/bin/python"
    nearer = work / ".venv-planner/bin/python"
    nearer.parent.mkdir(parents=True)
    nearer.touch()
    assert load(work, {}, python).planner_python == str(nearer)


def test_a_cluster_is_described_by_what_differs(tmp_path):
    (tmp_path / "pi05.toml").write_text(
        """
        [cluster]
        storage = "gs://bucket/runs"
        tolerations = [{ key = "spot", effect = "NoSchedule" }]
        [cluster.images]
        train = "registry/train:1"
        [cluster.train]
        nodes = 2
        """
    )
    cluster = load(tmp_path, {}, PYTHON).cluster
    assert (cluster.train.nodes, cluster.train.gpus, cluster.namespace) == (2, 8, "pi05")
    assert cluster.tolerations == (Toleration(key="spot", effect="NoSchedule"),)
    assert cluster.unset == ["cluster.images.sim", "cluster.images.ctl"]


def test_a_cluster_nobody_described_is_known_by_its_placeholders(tmp_path):
    unset = load(tmp_path, {}, PYTHON).cluster.unset
    assert unset == ["cluster.storage", "cluster.images.train", "cluster.images.sim", "cluster.images.ctl"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('storrage = "x"', "unknown key 'storrage'; did you mean 'storage'?"),
        ('jobs_at_once = "3"', "jobs_at_once: Input should be a valid integer (given '3')"),
        ("jobs_at_once = 0", "jobs_at_once: Input should be greater than 0"),
        ("storage = ", "is not TOML"),
        ("cluster = 3", "cluster: Input should be an object (given 3)"),
        ("[cluster.train]\ngpsu = 4", "unknown key 'cluster.train.gpsu'; did you mean 'cluster.train.gpus'?"),
        ('[cluster.train]\nmemory = "12GB"', "cluster.train.memory: String should match pattern"),
        ('[cluster]\nqueue = "Team_A"', "cluster.queue: String should match pattern"),
        (
            "[cluster.env]\nA = 1",
            "cluster.env: A is 1; use a string, or the name of a secret: A = { secretKeyRef = { name, key } }",
        ),
        ('[cluster.env]\nHOME = "/x"', "cluster.env: HOME is set by the chart, as are HOME, TMPDIR, POD, INDEX"),
        ('[cluster.labels]\n"pi05.dev/run" = "x"', "cluster.labels: pi05.dev/run is given by the chart"),
        ('[cluster]\nimage_pull_secret = "x"', "did you mean 'cluster.image_pull_secrets'?"),
    ],
)
def test_a_file_that_means_nothing_is_refused(tmp_path, text, message):
    (tmp_path / "pi05.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        load(tmp_path, {}, PYTHON)
    assert message in str(error.value)
    assert "pi05.toml" in str(error.value)
