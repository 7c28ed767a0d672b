"""What a cluster says when it refuses something -> one line with its own reason and the remedy.

Helm and the API server use the same words, so one table serves both.
"""

from dataclasses import dataclass

from pi05ctl.errors import Forbidden, NameTaken, TargetError, Unreachable

_LOGIN = "log in to the cluster again (on GKE: gcloud auth login)"
_PROXY = (
    "give its user and password in HTTPS_PROXY (http://USER:PASSWORD@HOST:PORT), or name the API server in NO_PROXY"
)
_BETWEEN = (
    "a proxy or a sign-in page between? Look at HTTPS_PROXY and NO_PROXY, and at server in the kubeconfig; a browser "
    "may have to sign in first"
)
_TRUST = (
    "look at certificate-authority-data in the kubeconfig (of another cluster, or an old one?), and at a proxy between"
)
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
    (("system:anonymous",), TargetError, f"the cluster does not know who asks: {_LOGIN}"),
    (
        ("context", "does not exist"),
        TargetError,
        "kubectl config get-contexts lists what there is; [cluster] context in pi05.toml (or pi05ctl init) chooses one",
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
    (("Unauthorized",), TargetError, _LOGIN),
    (("407",), TargetError, _PROXY),
    (("Proxy Authentication",), TargetError, _PROXY),
    (("sends HTML",), TargetError, _BETWEEN),
    (("no API server",), TargetError, _BETWEEN),
    (("invalid character '<'",), TargetError, _BETWEEN),  # Helm's words for HTML
    (("CERTIFICATE_VERIFY_FAILED",), TargetError, _TRUST),
    (("certificate signed by unknown authority",), TargetError, _TRUST),
    (("certificate has expired",), TargetError, _TRUST),
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
