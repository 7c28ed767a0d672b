"""The command line: python -m tests.cluster.harness up | down | status | env | programs | images [NAME...] | queues."""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.cluster.harness import binaries, cluster, images, machine, processes
from tests.cluster.harness.queues import install


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.harness", description="A Kubernetes for the tests.")
    commands = parser.add_subparsers(required=True)
    for command in (up, down, status, env, programs, queues):
        commands.add_parser(command.__name__, help=command.__doc__).set_defaults(do=lambda _, do=command: do())
    build = commands.add_parser("images", help=build_images.__doc__)
    build.add_argument("names", nargs="*", type=image, metavar=" | ".join(images.NAMES))
    build.set_defaults(do=lambda given: build_images(given.names or images.NAMES))
    given = parser.parse_args()
    try:
        return given.do(given)
    except machine.Unsuitable as why:
        print(f"cluster: {why}", file=sys.stderr)
        return 3


def up() -> int:
    """Bring the cluster up, or find that it is."""
    start = time.monotonic()
    new = cluster.up()
    print(f"cluster: {'up after' if new else 'was up; looked for'} {time.monotonic() - start:.1f} s")
    return env()


def down() -> int:
    """Take it down."""
    start = time.monotonic()
    cluster.down()
    print(f"cluster: down after {time.monotonic() - start:.1f} s")
    return 0


def status() -> int:
    """Show processes, node and pods."""
    names = processes.started()
    for name in names:
        print(f"{name:12} {processes.pid(name) or 'gone'}")
    if not names:
        print("cluster: there is none")
        return 1
    kubectl = str(binaries.folder() / "kubectl")
    return subprocess.run([kubectl, "get", "nodes,pods", "-A"], env=cluster.environment(), check=False).returncode


def env() -> int:
    """Print what a shell needs to use it."""
    for name, value in cluster.environment().items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def programs() -> int:
    """Build the programs that a cluster is made of, unless they are there; start nothing."""
    machine.check()
    print(binaries.build())
    return 0


def queues() -> int:
    """Install JobSet and Kueue in the cluster that is up."""
    start = time.monotonic()
    install(binaries.folder())
    print(f"cluster: JobSet and Kueue work after {time.monotonic() - start:.1f} s")
    return 0


def image(name: str) -> str:
    """Return a name that images/ has; argparse words the refusal."""
    if name not in images.NAMES:
        raise argparse.ArgumentTypeError(f"unknown image {name}; there are {', '.join(images.NAMES)}")
    return name


def build_images(names: Sequence[str]) -> int:
    """Build and push images of the code as it is, and print their names."""
    for name in names:
        print(f"{name} = {images.build(name)!r}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
