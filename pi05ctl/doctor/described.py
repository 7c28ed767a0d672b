"""A training's step -> its plan as a pod of the cluster compiles it, for who has no environment that can.

The pod has the image of trainings and asks for CPUs alone. It is a probe (pi05ctl.doctor.pods) that compiles instead of
looking around, and is removed like one.
"""

from collections.abc import Callable
from importlib.metadata import version

from pi05.chips import Machine
from pi05.config import Described, ProbeJob, TrainJob
from pi05.errors import ConfigError
from pi05.plan.document import Plan
from pi05ctl.cluster.values import Gpus, probe_values
from pi05ctl.doctor.pods import MORE, Prober
from pi05ctl.errors import UsageError

_ASKED = {"cpu": "4", "memory": "12Gi", "scratch": "2Gi", "shm": "64Mi", "gpus": Gpus(count=0, resource="none")}
"""The full preset takes 4 GB and little more than one core."""


class InPod:
    """Compiles in a pod of a cluster.

    Args:
        prober: Installs, watches and removes it.
        say: Tells people why it could not.
    """

    def __init__(self, prober: Prober, say: Callable[[str], None]) -> None:
        self._prober, self._say = prober, say

    def plan(self, job: TrainJob, machine: Machine) -> Plan | None:
        """Return what the pod says at its end."""
        prober, name = self._prober, self._prober.name("train")
        what = Described(job=job, chip=machine.chip.name, gpus=machine.gpus, nodes=machine.nodes)
        probe = ProbeJob(run=name, pods="train", storage=prober.cluster.storage, described=what)
        seconds = int(prober.timeout) + MORE
        values = probe_values(probe, prober.cluster, version("pi05"), prober.revision, light=True, seconds=seconds)
        values = values.model_copy(update={"resources": values.resources.model_copy(update=_ASKED)})
        facts = prober.ended(name, values)
        last = facts.events[-1] if facts.events else None
        if last and last.exit_code == ConfigError.exit_code:
            raise UsageError(last.message or facts.why)
        if facts.phase != "complete" or last is None:
            self._say(f"not compiled, but estimated: {values.image.name}: {facts.phase}: {facts.why}")
            return None
        return Plan.model_validate((last.model_extra or {})["plan"])
