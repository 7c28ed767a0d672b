"""Options and answers -> pi05.toml, with what each value is beside it. Pure, but for `write`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from pi05.chips import CHIPS
from pi05.config import explain
from pi05.errors import nearest
from pi05ctl.errors import UsageError, unknown
from pi05ctl.spec.settings import FILE, REGISTRY, Cluster, Images, Pods, TrainPods

DEFAULT = Cluster()
_KINDS: tuple[tuple[str, Pods, str], ...] = (
    ("train", DEFAULT.train, "One pod a node, with all its GPUs."),
    ("demos", DEFAULT.demos, "Pods that share the work, on the CPU."),
    ("eval", DEFAULT.eval, "Pods that share the episodes, on the CPU."),
    ("pipeline", DEFAULT.pipeline, "The pod that submits the stages and waits."),
)


Ask = Callable[[str, str, Callable[[str], None]], str]
"""Asks a question with a default for an answer, and again while the check raises UsageError."""


@dataclass(frozen=True)
class Given:
    """The options of the command line; None is not given.

    Attributes:
        context, namespace, storage, queue: As in Answers.
        registry, tag: Of the images, all together.
        images: Image by name, each by itself.
    """

    context: str | None = None
    namespace: str | None = None
    storage: str | None = None
    registry: str | None = None
    tag: str | None = None
    images: Mapping[str, str] = field(default_factory=dict[str, str])
    queue: str | None = None


@dataclass(frozen=True)
class Answers:
    """What is asked for.

    Attributes:
        context: Of the kubeconfig; None is whichever is current.
        namespace: Where runs live.
        storage: gs://bucket/folder or s3://bucket/folder.
        images: What pods run.
        queue: Kueue's LocalQueue; None for none.
    """

    context: str | None = None
    namespace: str = DEFAULT.namespace
    storage: str = DEFAULT.storage
    images: Images = DEFAULT.images
    queue: str | None = None

    def cluster(self) -> Cluster:
        """Return the settings that they make; raise UsageError for what cannot be."""
        if not self.storage.startswith(("gs://", "s3://")):
            raise UsageError(
                f"storage {self.storage!r} is not one that pods can reach; use gs://bucket/folder or s3://bucket/folder"
            )
        try:
            return Cluster.model_validate(
                {
                    "context": self.context,
                    "namespace": self.namespace,
                    "storage": self.storage,
                    "images": self.images.model_dump(),
                    "queue": self.queue,
                }
            )
        except ValidationError as error:
            raise UsageError(explain(error)) from error


def collect(given: Given, known: Sequence[str], current: str | None, version: str, ask: Ask) -> Answers:
    """Return the answers: what is given, and else what `ask` says.

    Args:
        given: The options.
        known: Contexts of the kubeconfig.
        current: The current one.
        version: Of this project, the default tag of images.
        ask: Asks, or takes every default.
    """

    def answer(option: str | None, question: str, default: str, check: Callable[[str], None]) -> str:
        if option is None:
            return ask(question, default, check)
        check(option)
        return option

    contexts = f"context ({', '.join(known)})" if known else "context (empty: whichever is current)"
    return Answers(
        context=answer(given.context, contexts, current or "", lambda name: check_context(name, known)) or None,
        namespace=answer(given.namespace, "namespace", DEFAULT.namespace, lambda name: _check(namespace=name)),
        storage=answer(given.storage, "storage (gs:// or s3://...)", DEFAULT.storage, lambda url: _check(storage=url)),
        images=_images(given, version, answer),
        queue=answer(given.queue, "Kueue's queue (empty: none)", "", lambda name: _check(queue=name or None)) or None,
    )


def image_options(assignments: Sequence[str]) -> dict[str, str]:
    """Return images by name from `name=image`; raise UsageError for another form or name."""
    images: dict[str, str] = {}
    for assignment in assignments:
        name, equals, image = assignment.partition("=")
        if name not in Images.model_fields:
            raise unknown("image", name, list(Images.model_fields))
        if not equals or not image:
            raise UsageError(f"--image {assignment} names no image; use {name}=REPOSITORY:TAG")
        images[name] = image
    return images


def check_context(name: str, known: Sequence[str]) -> None:
    """Raise UsageError, with the nearest name, for a context that the kubeconfig does not have."""
    if name and name not in known:
        hint = nearest(name, known) or f"; there are {', '.join(known) or 'none'}"
        raise UsageError(f"the kubeconfig has no context {name!r}{hint}")


def _check(**setting: str | None) -> None:
    """Raise UsageError when a setting cannot be."""
    Answers(**setting).cluster()  # pyright: ignore[reportArgumentType]


def _check_registry(registry: str) -> None:
    """Raise UsageError for what is no prefix of an image's name."""
    if "://" in registry or any(letter.isspace() for letter in registry):
        raise UsageError(f"registry {registry!r} is not a prefix of image names; use host/folder, such as ghcr.io/me")


def _images(given: Given, version: str, answer: Callable[[str | None, str, str, Callable[[str], None]], str]) -> Images:
    """Return the images: one prefix for all, or each by itself."""
    names = list(Images.model_fields)
    if set(given.images) == set(names):
        return Images(**given.images)
    registry = answer(given.registry, "registry (a prefix; empty: each image by itself)", REGISTRY, _check_registry)
    if not registry:
        each = {name: answer(given.images.get(name), f"image {name}", "", _check_image) for name in names}
        return Images(**each)
    tag = answer(given.tag, "tag of the images", version, _check_registry)
    together = {name: f"{registry.rstrip('/')}/pi05-{name}:{tag}" for name in names}
    return Images(**{**together, **given.images})


def _check_image(image: str) -> None:
    if not image:
        raise UsageError("no image; use REPOSITORY:TAG")
    _check_registry(image)


def text(answers: Answers) -> str:
    """Return pi05.toml."""
    cluster = answers.cluster()
    images = "\n".join(f"{name} = {_toml(image)}" for name, image in cluster.images)
    return f"""\
# Where pi05ctl runs things. It is looked for here and in the folders above; everything has a default.

target = "cluster"        # of every command unless --target says otherwise; local is this machine

[cluster]
# Context of the kubeconfig (kubectl config get-contexts); without it, whichever is current.
{_line("context", cluster.context, "name-of-a-context")}
# Where runs live. kubectl apply -k k8s/overlays/... makes it, with the accounts and rights that runs need.
namespace = {_toml(cluster.namespace)}
# All that runs read and write: datasets, checkpoints, results, logs. Pods and this machine must reach it.
storage = {_toml(cluster.storage)}
# Kueue's LocalQueue (k8s/overlays/kueue); without it, Kubernetes starts whatever fits, in no order.
{_line("queue", cluster.queue, "pi05")}
# What nodes call a GPU.
gpu_resource = {_toml(cluster.gpu_resource)}
# What all pods get in Kubernetes' own words; in [cluster.train] and so on, what pods of that kind get besides: labels,
# annotations, env, env_from, volumes, volume_mounts, node_selector, tolerations, affinity, topology_spread_constraints,
# image_pull_secrets, service_account, priority_class_name, runtime_class_name, scheduler_name, resources,
# limits, security_context.
# Limits of what pods only request, where a quota asks for them.
# limits = {{ cpu = "64", "ephemeral-storage" = "400Gi" }}
# Taints that nodes of runs may have, beside the GPUs' own.
# tolerations = [{{ key = "team", operator = "Equal", value = "robots", effect = "NoSchedule" }}]
# More environment of the pods; secrets are named and never read: every run shows what stands here. With s3:// the
# region, or AWS_ENDPOINT_URL of another maker's store, and its keys from a Secret.
# env = {{ AWS_REGION = "eu-central-1", TOKEN = {{ secretKeyRef = {{ name = "SECRET", key = "KEY" }} }} }}
# Secrets that open private registries.
# image_pull_secrets = ["registry"]

# What pods run; scripts/images --push REGISTRY builds, pushes and names them.
[cluster.images]
{images}

# What pods ask for, by kind of run, with what they get without a word here.
{"".join(_pods(name, default, meaning) for name, default, meaning in _KINDS)}"""


def write(folder: Path, answers: Answers, force: bool) -> Path:
    """Write pi05.toml into a folder; raise UsageError when one is there that is not to be replaced."""
    path, content = folder / FILE, text(answers)
    try:
        with path.open("w" if force else "x") as file:
            file.write(content)
    except FileExistsError as error:
        raise UsageError(f"{path} exists; --force replaces it") from error
    return path


def next_steps(answers: Answers) -> str:
    """Return what to do after init, one step a line."""
    cluster = answers.cluster()
    namespace = cluster.namespace
    other = "" if namespace == DEFAULT.namespace else f" (first: `namespace: {namespace}` in the overlay)"
    overlay = ("eks" if cluster.storage.startswith("s3://") else "gke") + ("-kueue" if cluster.queue else "")
    flag = f" --context {cluster.context}" if cluster.context else ""
    steps = [f"set {', '.join(cluster.unset)} in {FILE}"] if cluster.unset else []
    steps += [
        f"kubectl{flag} apply -k k8s/overlays/{overlay}   # once, by an admin{other}",
        f"scripts/images --push {_registry(cluster.images)}   # once a version: the three images",
        "pi05ctl doctor   # names what is still missing",
        "pi05ctl submit pipeline pushcube --preset tiny --follow",
    ]
    return "".join(f"  {number}. {step}\n" for number, step in enumerate(steps, 1))


def _registry(images: Images) -> str:
    """Return where images of a checkout would be pushed to."""
    return images.train.rpartition("/")[0] or "REGISTRY"


_SHOWN = {
    "nodes",
    "shards",
    "gpus",
    "cpu",
    "memory",
    "scratch",
    "shm",
    "retries",
    "grace_seconds",
    "deadline_seconds",
}


def _pods(name: str, default: Pods, meaning: str) -> str:
    """Return the table of a kind of pod, each value a comment."""
    fields = default.model_dump(include=_SHOWN)
    first = [key for key in ("nodes", "shards", "gpus") if key in fields]
    order = [*first, *(key for key in fields if key not in first)]
    lines = "".join(f"# {key} = {_toml(fields[key])}\n" for key in order)
    if isinstance(default, TrainPods):
        lines += f"# Which GPUs those are ({', '.join(CHIPS)}); submit then refuses what cannot fit.\n"
        lines += '# chip = "h100"\n'
        lines += "# Labels of the nodes that have them; here, for only trainings tolerate the taint of such nodes.\n"
        lines += '# node_selector = { "cloud.google.com/gke-accelerator" = "nvidia-h100-80gb" }\n'
        lines += "# Several nodes as one JobSet, which the cluster must have.\n"
        lines += "# jobset = true\n"
    return f"\n# {meaning}\n# [cluster.{name}]\n{lines}"


def _line(key: str, value: str | None, example: str) -> str:
    """Return a line that sets a value, or that shows how."""
    return f"# {key} = {_toml(example)}" if value is None else f"{key} = {_toml(value)}"


def _toml(value: object) -> str:
    """Return a value as TOML; its strings are JSON's, but for what lies beyond 16 bits."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
