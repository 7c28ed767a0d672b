"""The Kubernetes API, as far as runs need it: jobs, pods, events and logs of one namespace, as plain dictionaries.

The official client brings credentials (kubeconfig, plugins, a pod's own account) and the connection; objects stay the
JSON that the server sent, because turning ten thousand pods into Python classes takes longer than the whole command.
"""

import importlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from pydantic_core import from_json

from pi05ctl.cluster import kubeconfig
from pi05ctl.cluster.refusals import Place, explain
from pi05ctl.errors import Forbidden, TargetError
from pi05ctl.runs.facts import CONTAINER

if TYPE_CHECKING:
    from kubernetes.client.api_client import ApiClient

Object = dict[str, Any]
SELECTOR = "app.kubernetes.io/part-of=pi05"
_RUNS = f"{SELECTOR},pi05.dev/kind!=probe"
"""All runs. A probe of `pi05ctl doctor` is none; it is found by its own name only."""
RUN_LABEL = "pi05.dev/run"
JOBSETS = "jobset.x-k8s.io/v1alpha2"
"""API of JobSet (jobset.sigs.k8s.io), which a cluster may have or not."""
_JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
_JOB_WORDS = {"Completed": "Complete"}
"""Conditions of a JobSet that a Job calls otherwise."""
_AT_ONCE = 32
"""Requests under way at a time."""
_PATIENCE = 10.0
"""Seconds that a request is tried again while the API server does not answer; a restart takes about 5."""
_PAUSE = 0.5
_TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and to wait for an answer."""


class Kubernetes:
    """One namespace of one cluster.

    Args:
        context: Context of the kubeconfig; None takes the current one, or in a pod the pod's own account.
        namespace: Where runs live.
        patience: Seconds to go on asking an API server that does not answer.
    """

    def __init__(self, context: str | None, namespace: str, patience: float = _PATIENCE) -> None:
        self.place, self._patience = Place(context, namespace), patience

    @property
    def namespace(self) -> str:
        """Where runs live."""
        return self.place.namespace

    def load(self) -> None:
        """Import the official client now; otherwise the first request does. (Threads that import get in their way.)"""
        for name in ("kubernetes.config", "kubernetes.client.api_client"):
            importlib.import_module(name)

    def check(self) -> None:
        """Read the kubeconfig now, and log in; raise TargetError when it cannot be used. (Helm has other words.)"""
        _ = self._client

    def version(self) -> str:
        """Return the server's version, `v1.34.4`."""
        return str(self.get("/version")["gitVersion"])

    def jobs(self, run: str | None = None) -> list[Object]:
        """Return the Jobs of all runs, or of one; a JobSet, in the form of a Job, stands for that which it has made."""
        query = {"labelSelector": _selector(run)}
        jobs = self._list("batch/v1", "jobs", query, current=run is not None)
        sets = [as_job(one) for one in self._jobsets(query)]
        return [job for job in jobs if _JOBSET_LABEL not in job["metadata"]["labels"]] + sets

    def pods(self, run: str | None = None, fields: str | None = None) -> list[Object]:
        """Return the pods of all runs, or of one.

        Args:
            run: Whose pods.
            fields: A field selector, such as `status.phase!=Succeeded`.
        """
        query = {"labelSelector": _selector(run)}
        return self._list("v1", "pods", query | ({"fieldSelector": fields} if fields else {}), current=run is not None)

    def events(self, names: Iterable[str]) -> list[Object]:
        """Return the events about objects of these names (Jobs, pods), the oldest first."""
        queries = [{"fieldSelector": f"involvedObject.name={name}"} for name in names]
        found = self.together([(self._path("v1", "events"), query) for query in queries])
        lists = [json.loads(self._judged(200, answer)) for answer in found if answer]
        events = [event for one in lists for event in one.get("items", [])]
        return sorted(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")

    def configmap(self, name: str) -> Object | None:
        """Return a ConfigMap; None when there is none."""
        return self.find(f"{self._path('v1', 'configmaps')}/{quote(name)}")

    def log(self, pod: str, **query: str | int) -> bytes:
        """Return what a pod printed; empty when it has not started or is gone. `query`: tailLines, sinceTime, ..."""
        answer = self.together([self.log_request(pod, **query)])[0]
        return answer or b""

    def log_request(self, pod: str, **query: str | int) -> "tuple[str, Mapping[str, Any]]":
        """Return what `together` wants for a pod's log."""
        return f"{self._path('v1', 'pods')}/{quote(pod)}/log", {"container": CONTAINER, **query}

    def together(self, requests: "Sequence[tuple[str, Mapping[str, Any]]]") -> list[bytes | None]:
        """Return the answers to many GET requests, made in parallel; None for what is not there or not ready."""

        def ask(request: "tuple[str, Mapping[str, Any]]") -> bytes | None:
            status, body = self._ask("GET", *request)
            return body if status < 300 else None

        if len(requests) == 1:
            return [ask(requests[0])]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(ask, requests))

    def kill_pods(self, run: str) -> None:
        """Delete a run's pods without a grace period, one by one: the right to delete collections is not needed."""
        for pod in self.pods(run):
            self._delete(f"{self._path('v1', 'pods')}/{quote(pod['metadata']['name'])}", gracePeriodSeconds=0)

    def remove(self, run: str) -> None:
        """Delete a run's Jobs, which Helm has lost, with their pods, and what the chart makes beside them."""
        for job in self.jobs(run):
            api, resource = (JOBSETS, "jobsets") if job.get("kind") == "JobSet" else ("batch/v1", "jobs")
            path = f"{self._path(api, resource)}/{quote(job['metadata']['name'])}"
            self._delete(path, propagationPolicy="Background")
        for resource in ("configmaps", "services"):
            path = f"{self._path('v1', resource)}/{quote(run)}"
            found = self.find(path)
            if found is not None and found["metadata"].get("labels", {}).get(RUN_LABEL) == run:
                self._delete(path)

    def allowed(self, verb: str, group: str, resource: str, subresource: str = "") -> bool:
        """Return whether we may do something in the namespace."""
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": subresource}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = json.loads(self._checked("POST", path, {}, review))
        return bool(answer["status"]["allowed"])

    def get(self, path: str, **query: str) -> Object:
        """Return one object or list; raise TargetError when it cannot be had."""
        return cast("Object", json.loads(self._checked("GET", path, query)))

    def find(self, path: str, **query: str) -> Object | None:
        """Return one object or list; None when there is none."""
        status, body = self._ask("GET", path, query)
        if status == 404 and not _is_html(body):
            return None
        return cast("Object", json.loads(self._judged(status, body)))

    def _delete(self, path: str, **query: str | int) -> None:
        """Delete one object, unless it is gone."""
        status, body = self._ask("DELETE", path, query)
        if status != 404 or _is_html(body):
            self._judged(status, body)

    def _list(self, api: str, resource: str, query: Mapping[str, Any], current: bool) -> list[Object]:
        """Return objects: as they are now, or for a table from the server's cache, whatever its age."""
        cached = {} if current else {"resourceVersion": "0"}
        answer = self._checked("GET", self._path(api, resource), {**query, **cached})
        return cast("list[Object]", from_json(answer)["items"])

    def _jobsets(self, query: Mapping[str, Any]) -> list[Object]:
        """Return JobSets; none where the cluster does not have them, or we may not see them."""
        if not self._has_jobsets:
            return []
        try:
            found = self.find(self._path(JOBSETS, "jobsets"), **query)
        except Forbidden:
            return []
        return list((found or {}).get("items", []))

    @cached_property
    def _has_jobsets(self) -> bool:
        return self.find(f"/apis/{JOBSETS}") is not None

    def _path(self, api: str, resource: str) -> str:
        prefix = "/api/v1" if api == "v1" else f"/apis/{api}"
        return f"{prefix}/namespaces/{quote(self.namespace)}/{resource}"

    def _checked(self, method: str, path: str, query: Mapping[str, Any], body: Object | None = None) -> bytes:
        """Return the answer's body; raise TargetError with the server's reason when it is not a good one."""
        return self._judged(*self._ask(method, path, query, body))

    def _judged(self, status: int, body: bytes) -> bytes:
        if status < 300 and body.lstrip()[:1] in (b"{", b"["):
            return body
        raise explain(_message(body) or _no_answer(status, body), self.place)

    def _ask(self, method: str, path: str, query: Mapping[str, Any], body: Object | None = None) -> tuple[int, bytes]:
        """Return status and body; ask again for a while when the server does not answer."""
        from urllib3.exceptions import HTTPError

        until = time.monotonic() + self._patience
        while True:
            try:
                status, answer = self._once(method, path, query, body)
            except (HTTPError, OSError) as error:
                problem = str(getattr(error, "reason", None) or error)
            except (ValueError, AssertionError) as error:  # what cannot be sent: a token with a line's end in it
                raise explain(f"cannot ask the API server: {type(error).__name__}: {error}", self.place) from error
            else:
                if status not in (429, 500, 502, 503, 504):
                    return status, answer
                problem = _message(answer) or _no_answer(status, answer)
            if time.monotonic() >= until:
                raise explain(f"cluster unreachable: {problem}", self.place)
            time.sleep(_PAUSE)

    def _once(self, method: str, path: str, query: Mapping[str, Any], body: Object | None) -> tuple[int, bytes]:
        """Make one request through the official client's connection and credentials."""
        client: Any = self._client
        asked = client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = client.call_api(*asked, _request_timeout=_TIMEOUT)
        return response.status, response.read() or b""

    @cached_property
    def _client(self) -> "ApiClient":
        """The official client with the credentials of the context, or of the pod that we are in."""
        from kubernetes.client.api_client import ApiClient

        try:
            settings = kubeconfig.configuration(self.place.context)
        except kubeconfig.NoKubeconfig as error:
            settings = None if self.place.context else _of_this_pod()
            if settings is None:
                raise explain(str(error), self.place) from error
        except TargetError as error:
            raise explain(str(error), self.place) from error
        settings.retries = False  # here, and for longer
        settings.connection_pool_maxsize = _AT_ONCE
        try:
            return ApiClient(settings)
        except Exception as error:  # of urllib3, for what is no address: it asserts some of it
            proxies = f"look at proxy-url in the kubeconfig and at HTTPS_PROXY, which is {settings.proxy or 'not set'}"
            raise explain(f"{type(error).__name__}: {error}; {proxies}", self.place) from error


def as_job(jobset: Object) -> Object:
    """Return a JobSet of one Job in the form of a Job: what it is told, how it stands, and what its Job is called."""
    spec, job = jobset["spec"], jobset["spec"]["replicatedJobs"][0]
    status = jobset.get("status", {})
    conditions = [{**c, "type": _JOB_WORDS.get(c["type"], c["type"])} for c in status.get("conditions", [])]
    return {
        "kind": "JobSet",
        "metadata": jobset["metadata"],
        "spec": {"completions": job["template"]["spec"]["completions"], "suspend": spec.get("suspend", False)},
        "status": {"conditions": conditions, "restarts": status.get("restarts", 0)},
        "made": f"{jobset['metadata']['name']}-{job['name']}-0",
    }


def _of_this_pod() -> Any:
    """Return the official client's settings for the account of the pod that we are in; None outside of pods."""
    import kubernetes.config
    from kubernetes.client.configuration import Configuration

    config: Any = kubernetes.config
    settings = Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        return None
    return settings


def _message(body: bytes) -> str:
    """Return the reason in a Status object."""
    try:
        answer: Any = json.loads(body)
        return str(answer["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _no_answer(status: int, body: bytes) -> str:
    """Return what an answer is that no API server gives."""
    if status == 407:
        return "a proxy asks for a password (HTTP 407)"
    if _is_html(body):
        return f"what answers is no API server but sends HTML (HTTP {status})"
    return f"what answers is no API server (HTTP {status}: {body[:80].decode(errors='replace')!r})"


def _is_html(body: bytes) -> bool:
    """Return whether an answer is a page, which no API server sends."""
    return body.lstrip()[:1] == b"<"


def _selector(run: str | None) -> str:
    return f"{SELECTOR},{RUN_LABEL}={run}" if run else _RUNS
