"""What pi05ctl says while the API server is slow, or answers with what was: never that a run is lost."""

import json
from dataclasses import replace

import pytest

from tests.cluster import runs
from tests.cluster.conftest import until
from tests.cluster.runs import ended, small, status, submit, until_step
from tests.cluster.slow import slow

LONG = small(train__steps=100_000, train__save_every=100_000)


@pytest.fixture(scope="module")
def site(site, tmp_path_factory):
    if not site.cluster.own:
        pytest.skip("the proxy is before the harness's API server (PI05_TEST_KUBECONFIG)")
    runs.settings(site)
    with pytest.MonkeyPatch.context() as patch:
        runs.put_dataset(site, patch, tmp_path_factory.mktemp("data") / "dataset")
    return site


@pytest.fixture
def far(site):
    """The site through the proxy, and the proxy."""
    with slow() as server:
        yield replace(site, cluster=replace(site.cluster, kubeconfig=server.kubeconfig)), server
    for name, row in runs.table(site).items():
        if row["state"] not in ("Done", "Failed", "Cancelled"):
            site.pi05ctl("cancel", name, "--now")


def test_while_helm_installs_a_run_is_starting_and_nobody_else_starts_it(site, far):
    distant, server = far
    server.late = 4.0
    name = runs.name(site, "train", "pushcube", *LONG, "--only")
    submitting = distant.start("submit", "train", "pushcube", *LONG, "--only", "-o", "json")
    until("the record", lambda: name in runs.table(site), 60)
    seen = set()
    while submitting.poll() is None:
        seen.add(status(site, name)["state"])
    code, output = ended(submitting)
    assert (code, json.loads(output)[0]["outcome"]) == (0, "started"), output
    assert "Starting" in seen
    assert not seen & {"Failed", "Cancelled", "Done"}
    server.late = 0.0
    assert submit(site, "train", "pushcube", *LONG, "--only", outcome="running") == name


def test_a_cancel_waits_for_the_submission_that_is_on_its_way(site, far):
    distant, server = far
    server.late = 3.0
    words = (*LONG, "--set", "train.seed=1", "--only")
    name = runs.name(site, "train", "pushcube", *words)
    submitting = distant.start("submit", "train", "pushcube", *words)
    until("the record", lambda: name in runs.table(site), 60)
    done = site.pi05ctl("cancel", name, "--now")
    assert done.returncode == 0, done.stderr
    assert ended(submitting)[0] == 0
    assert status(site, name)["state"] == "Cancelled"
    assert site.pods(name) == []


def test_a_list_from_before_is_no_reason_to_give_a_run_up(site, far):
    distant, server = far
    assert distant.pi05ctl("status").returncode == 0  # the lists as they are from now on
    server.stale = True
    words = (*LONG, "--set", "train.seed=2", "--only")
    name = submit(distant, "train", "pushcube", *words)
    rows = {row["run"]: row for row in json.loads(distant.pi05ctl("status", "-o", "json").stdout)}
    assert rows[name]["state"] == "Starting"
    until_step(distant, name, 1)  # one run is asked for as it is
    assert distant.pi05ctl("wait", name, "--timeout", "5").returncode == 124
    assert distant.pi05ctl("cancel", name, "--now").returncode == 0
    assert status(site, name)["state"] == "Cancelled"
