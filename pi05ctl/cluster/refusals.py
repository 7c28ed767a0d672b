"""What a cluster says when it refuses something -> one line with its own reason and the remedy.

Helm and the API server use the same words, so one table serves both.
"""

from dataclasses import dataclass

from pi05ctl.errors import Forbidden, NameTaken, TargetError, Unreachable

_ADMIN = "kubectl apply -k k8s/overlays/gke (or another overlay)"


@dataclass(frozen=True)
class Place:
    """Where something was asked for.

    Attributes:
        context: Context of the kubeconfig; None is the current one.
        namespace: Where runs live.
    """

    context: str | None
    namespace: str

    @property
    def where(self) -> str:
        """The cluster, for people."""
        return f"context {self.context}" if self.context else "the current context"


def explain(reason: str, place: Place) -> TargetError:
    """Return the error for a reason that Helm or the API server gave; the first row that fits counts."""
    reason = " ".join(reason.split()).rstrip(".")
    kind, remedy = next(
        ((kind, remedy) for words, kind, remedy in _ROWS if all(word in reason for word in words)), (TargetError, "")
    )
    text = f"{place.where}, namespace {place.namespace}: {reason}"
    return kind(f"{text}; {remedy.format(namespace=place.namespace)}" if remedy else text)


_ROWS: tuple[tuple[tuple[str, ...], type[TargetError], str], ...] = (
    (("cannot re-use a name that is still in use",), NameTaken, "pi05ctl status shows what has it"),
    (
        ("cannot be imported into the current release",),
        TargetError,
        "something else made that object: delete it, or submit with --again for another name",
    ),
    (
        ("context", "does not exist"),
        TargetError,
        "kubectl config get-contexts lists what there is; [cluster] context in pi05.toml (or pi05ctl init) chooses one",
    ),
    (
        ("Invalid kube-config", "Expected object with name"),
        TargetError,
        "kubectl config get-contexts lists what there is; [cluster] context in pi05.toml (or pi05ctl init) chooses one",
    ),
    (
        ("Invalid kube-config",),
        TargetError,
        "set KUBECONFIG to your cluster's file, or fetch one (on GKE: gcloud container clusters get-credentials NAME)",
    ),
    (
        ("incompatible with Kubernetes",),
        TargetError,
        "pi05 needs Kubernetes 1.31 or newer (podFailurePolicy, podReplacementPolicy); upgrade the cluster",
    ),
    (("namespaces", "not found"), TargetError, f"an admin makes the namespace once: {_ADMIN}"),
    (("exceeded quota",), TargetError, "kubectl describe resourcequota -n {namespace} shows what is used"),
    (
        ("forbidden",),
        Forbidden,
        f"an admin gives the rights once: {_ADMIN}, and binds you to the role pi05-user in {{namespace}}; "
        "pi05ctl doctor lists what is missing",
    ),
    (("Unauthorized",), TargetError, "log in to the cluster again (on GKE: gcloud auth login)"),
    (("cluster unreachable",), Unreachable, "check the network and the context: kubectl config get-contexts"),
    (("connection refused",), Unreachable, "check the network and the context: kubectl config get-contexts"),
    (("i/o timeout",), Unreachable, "check the network and the context: kubectl config get-contexts"),
    (("no such host",), Unreachable, "check the network and the context: kubectl config get-contexts"),
    (("EOF",), Unreachable, "the API server closed the connection; it may be restarting"),
    (
        ("don't meet the specifications of the schema",),
        TargetError,
        "a value of [cluster] in pi05.toml is not one that the chart takes",
    ),
)
"""Words of a reason, what it is, and what to do about it."""
