"""From nothing to a success rate inside the cluster, each stage through Kueue's queue.

Nothing of this machine is needed after the submission.
"""

import json

import pytest

from pi05.results import Result, merge
from tests.cluster import runs
from tests.cluster.conftest import until
from tests.cluster.runs import small, status, submit, until_state

OVERLAY = "kueue"
OPTIONS = small(demos__count=4, demos__block=2, eval__episodes=4)


@pytest.fixture(scope="module")
def site(site):
    runs.settings(site, queue="pi05", demos={"shards": 2}, eval={"shards": 4})
    return site


@pytest.fixture(scope="module")
def pipeline(site) -> str:
    return submit(site, "pipeline", "pushcube", *OPTIONS)


def _stage(pipeline_row: dict, kind: str) -> bool:
    return str(pipeline_row["stage"] or "").startswith(kind)


def test_its_pod_may_be_deleted_while_a_stage_runs(site, pipeline):
    until("the first stage", lambda: _stage(status(site, pipeline), "demos"), seconds=300, pause=1)
    [pod] = site.pods(pipeline)
    demos = [row["run"] for row in runs.table(site).values() if row["kind"] == "demos"]
    before = {pod["metadata"]["name"] for pod in site.pods(demos[0])}
    site.kubectl("delete", "pod", pod["metadata"]["name"])
    until(
        "a new controller", lambda: any(p["metadata"]["name"] != pod["metadata"]["name"] for p in site.pods(pipeline))
    )
    assert before <= {pod["metadata"]["name"] for pod in site.pods(demos[0])}  # the stage was left alone


def test_it_ends_with_a_success_rate_of_all_episodes(site, pipeline):
    end = until_state(site, pipeline, "Done", "Failed", seconds=900)
    assert end["state"] == "Done", end
    assert end["metrics"]["episodes"] == 4
    done = site.pi05ctl("results", "-o", "json")
    [found] = json.loads(done.stdout)
    assert found["metrics"]["episodes"] == 4
    assert found["metrics"]["success_once"] == end["metrics"]["success_once"]
    rows = runs.table(site)
    assert {row["kind"]: row["state"] for row in rows.values()} == dict.fromkeys(
        ("pipeline", "demos", "train", "eval"), "Done"
    )
    assert {row["parent"] for row in rows.values()} == {None, pipeline}


@pytest.mark.usefixtures("pipeline")
def test_kueue_has_admitted_the_pipeline_and_each_stage(site):
    workloads = site.get("workloads.kueue.x-k8s.io")["items"]
    owners = {one["metadata"]["ownerReferences"][0]["name"] for one in workloads}
    assert owners == runs.table(site).keys()


@pytest.mark.usefixtures("pipeline")
def test_each_stage_is_a_release_that_helm_and_kubectl_see(site):
    names = {job["metadata"]["name"] for job in site.get("jobs", "-l", "app.kubernetes.io/part-of=pi05")["items"]}
    assert names == runs.table(site).keys()
    [evaluation] = [name for name in names if name.startswith("eval-")]
    assert len(site.pods(evaluation)) == 4


def test_the_report_is_in_the_bucket(site, pipeline, monkeypatch):
    page = runs.storage(site, monkeypatch).read(f"runs/{pipeline}/report/index.html").decode()
    assert "Wilson" in page or "95 %" in page


@pytest.mark.usefixtures("pipeline")
def test_four_shards_find_what_one_process_finds(site, monkeypatch):
    """Episode for episode, every number of it."""
    [four] = [row["run"] for row in runs.table(site).values() if row["kind"] == "eval"]
    [train] = [row["run"] for row in runs.table(site).values() if row["kind"] == "train"]
    runs.settings(site, queue="pi05", demos={"shards": 2}, eval={"shards": 1})
    one = submit(site, "eval", "pushcube", "--of", train, "--again")
    until_state(site, one, "Done", seconds=400)
    bucket = runs.storage(site, monkeypatch)

    def result(run: str) -> Result:
        names = bucket.children(f"runs/{run}/results")
        shards = [name for name in names if name.removesuffix(".json").isdigit()]
        return merge(Result.model_validate_json(bucket.read(f"runs/{run}/results/{name}")) for name in shards)

    assert len(site.pods(one)) == 1
    assert result(one).episodes == result(four).episodes


def test_submitting_it_again_does_nothing(site, pipeline):
    assert submit(site, "pipeline", "pushcube", *OPTIONS, outcome="done") == pipeline


def test_a_stage_that_somebody_cancels_stays_cancelled_and_ends_the_pipeline(site):
    run = submit(site, "pipeline", "pushcube", *small(demos__count=4, demos__block=2, train__steps=100_000), "--again")
    until("the training", lambda: _stage(status(site, run), "train"), seconds=300, pause=1)
    train = status(site, run)["stage"]
    until_state(site, train, "Running", seconds=120)
    assert site.pi05ctl("cancel", train).returncode == 0
    end = until_state(site, run, "Failed", "Done", seconds=120)
    assert (end["state"], end["exit_code"]) == ("Failed", 67)
    assert len(site.pods(run)) == 1
    assert status(site, train)["state"] == "Cancelled"
