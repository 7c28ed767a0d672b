"""Words of a cluster that refuses something, and logs of pods that come and go. The messages are real ones."""

import pytest

from pi05.events import Event
from pi05.storage import Storage, connect
from pi05ctl.cluster import podlogs
from pi05ctl.cluster.api import as_job
from pi05ctl.cluster.helm import reason
from pi05ctl.cluster.podlogs import PodLogs
from pi05ctl.cluster.refusals import Place, explain
from pi05ctl.errors import Forbidden, NameTaken, TargetError, Unreachable

RUN = "train-pushcube-1"
PLACE = Place("lab", "pi05")
REFUSALS = {
    'create: failed to create: namespaces "nope" not found': (TargetError, "an admin makes the namespace once"),
    "cannot re-use a name that is still in use": (NameTaken, "pi05ctl status shows what has it"),
    'jobs.batch is forbidden: User "eve" cannot list resource "jobs" in API group "batch" in the namespace "pi05"': (
        Forbidden,
        "binds you to the role pi05-user in pi05",
    ),
    "chart requires kubeVersion: >=1.31.0-0 which is incompatible with Kubernetes v1.29.4": (
        TargetError,
        "needs Kubernetes 1.31 or newer",
    ),
    'Kubernetes cluster unreachable: Get "https://127.0.0.1:1/version": dial tcp: connect: connection refused': (
        Unreachable,
        "kubectl config get-contexts",
    ),
    "the kubeconfig's context nope does not exist in /home/eve/.kube/config": (TargetError, "chooses one"),
    "something that nobody has seen yet": (TargetError, "something that nobody has seen yet"),
}


@pytest.mark.parametrize("given", REFUSALS)
def test_a_refusal_is_one_line_with_the_reason_and_the_remedy(given):
    kind, words = REFUSALS[given]
    error = explain(given, PLACE)
    assert type(error) is kind
    assert str(error).startswith(f"context lab, namespace pi05: {given.rstrip('.')}")
    assert words in str(error)
    assert error.exit_code == 3


def test_a_jobset_reads_as_the_job_in_it():
    jobset = {
        "metadata": {"name": RUN, "uid": "7"},
        "spec": {
            "suspend": True,
            "replicatedJobs": [{"name": "train", "template": {"spec": {"completions": 2}}}],
        },
        "status": {"restarts": 1, "conditions": [{"type": "Completed", "status": "True"}]},
    }
    made = as_job(jobset)
    assert (made["metadata"], made["spec"]) == (jobset["metadata"], {"completions": 2, "suspend": True})
    assert made["status"] == {"restarts": 1, "conditions": [{"type": "Complete", "status": "True"}]}
    assert made["made"] == f"{RUN}-train-0"


def test_helms_own_words_are_left_out():
    stderr = "WARNING: x is group-readable\nError: INSTALLATION FAILED: cannot re-use a name that is still in use\n"
    assert reason(stderr) == "cannot re-use a name that is still in use"


class Cluster:
    """Pods by name with the lines they printed, each with the time that Kubernetes gave it."""

    def __init__(self) -> None:
        self.printed: dict[str, list[tuple[str, str]]] = {}

    def pods(self, run: str) -> list[dict]:
        del run
        return [{"metadata": {"name": name, "creationTimestamp": name}} for name in self.printed]

    def log(self, pod: str, timestamps: str = "", sinceTime: str = "") -> bytes:
        lines = [(time, text) for time, text in self.printed[pod] if time >= sinceTime]
        return "".join(f"{time} {text}\n" if timestamps else f"{text}\n" for time, text in lines).encode()


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def storage(tmp_path) -> Storage:
    return connect(tmp_path.as_uri())


@pytest.fixture
def logs(cluster, storage) -> PodLogs:
    return PodLogs(cluster, storage, RUN)


def keep(storage: Storage, pod: str, text: str) -> None:
    """Upload a pod's log, as the pod does."""
    storage.write(f"runs/{RUN}/logs/{pod}.txt", text.encode())


def new(logs: PodLogs) -> str:
    return b"".join(logs.new()).decode()


def test_a_follower_sees_each_line_once(cluster, logs):
    cluster.printed["a"] = [("10:00:01", "one"), ("10:00:02", "two"), ("10:00:02", "two")]
    assert new(logs) == "one\ntwo\ntwo\n"
    assert new(logs) == ""
    cluster.printed["a"] += [("10:00:02", "same moment"), ("10:00:03", "three")]
    assert new(logs) == "same moment\nthree\n"


def test_the_rest_of_a_pod_that_is_gone_comes_from_storage(cluster, logs, storage):
    cluster.printed["a"] = [("10:00:01", "one")]
    assert new(logs) == "one\n"
    del cluster.printed["a"]
    keep(storage, "a", "one\ntwo\n")
    assert new(logs) == "two\n"
    assert new(logs) == ""


def test_a_second_pod_is_named(cluster, logs):
    cluster.printed["a"] = [("10:00:01", "one")]
    assert new(logs) == "one\n"
    cluster.printed["b"] = [("10:00:05", "uno")]
    assert new(logs) == "==> b <==\nuno\n"


def test_all_logs_are_in_the_order_of_their_first_event(cluster, logs, storage):
    first, second = (Event(run="r", kind="started", time=time).line() for time in (1.0, 2.0))
    cluster.printed["a"] = [("10:00:05", second)]
    keep(storage, "z", first + "\n")
    assert logs.read().decode() == f"==> z <==\n{first}\n==> a <==\n{second}\n"


def test_a_log_in_parts_is_one_log(logs, storage):
    for part, text in (("a", "one\n"), ("a.0001", "two\n"), ("a.0002", "three\n")):
        keep(storage, part, text)
    assert logs.read() == b"one\ntwo\nthree\n"
    assert new(logs) == "one\ntwo\nthree\n"
    keep(storage, "a.0003", "four\n")
    assert new(logs) == "four\n"


def test_the_longer_copy_of_a_log_counts(cluster, logs, storage):
    cluster.printed["a"] = [("10:00:01", "one"), ("10:00:02", "two")]
    keep(storage, "a", "one\n")
    assert logs.read() == b"one\ntwo\n"


def test_following_ends_with_the_run(cluster, logs):
    cluster.printed["a"] = [("10:00:01", "one")]
    looks = iter([False, True])

    def ended() -> bool:
        over = next(looks)
        if over:
            cluster.printed["a"].append(("10:00:09", "last words"))
        return over

    assert b"".join(podlogs.follow(logs, ended, lambda _: None)) == b"one\nlast words\n"
