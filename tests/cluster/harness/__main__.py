"""The command line: python -m tests.cluster.harness up | down | status | env."""

import argparse
import shlex
import subprocess
import sys
import time

from tests.cluster.harness import binaries, cluster, machine, processes


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.harness", description="A Kubernetes for the tests.")
    parser.add_argument("command", choices=("up", "down", "status", "env"))
    command = parser.parse_args().command
    try:
        return {"up": up, "down": down, "status": status, "env": env}[command]()
    except machine.Unsuitable as why:
        print(f"cluster: {why}", file=sys.stderr)
        return 3


def up() -> int:
    start = time.monotonic()
    new = cluster.up()
    print(f"cluster: {'up after' if new else 'was up; looked for'} {time.monotonic() - start:.1f} s")
    return env()


def down() -> int:
    start = time.monotonic()
    cluster.down()
    print(f"cluster: down after {time.monotonic() - start:.1f} s")
    return 0


def status() -> int:
    names = processes.started()
    for name in names:
        print(f"{name:12} {processes.pid(name) or 'gone'}")
    if not names:
        print("cluster: there is none")
        return 1
    kubectl = str(binaries.folder() / "kubectl")
    return subprocess.run([kubectl, "get", "nodes,pods", "-A"], env=cluster.environment(), check=False).returncode


def env() -> int:
    for name, value in cluster.environment().items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
