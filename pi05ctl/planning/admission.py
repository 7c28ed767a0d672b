"""A run that is about to go to a cluster -> a note, or a refusal: what cannot fit its GPUs is not queued.

An estimate from sizes decides at once, a plan that was compiled before is believed more, and a compiler is waited for
only where the estimate is too near to the limit to say.
"""

from pi05 import chips
from pi05.config import TrainJob
from pi05.plan.document import Plan
from pi05.plan.estimate import estimate, near
from pi05ctl.cluster.values import gpus_of
from pi05ctl.errors import DoesNotFit
from pi05ctl.planning.forecast import short, verdict
from pi05ctl.planning.planner import Planner, chip_of, training_of
from pi05ctl.spec.render import Rendered
from pi05ctl.spec.settings import Cluster

_UNKNOWN = (
    "whether a training fits its GPUs is not known: pi05.toml does not say what they are "
    f"([cluster.train] chip: {', '.join(chips.CHIPS)})"
)


def note(run: Rendered, cluster: Cluster, planner: Planner) -> str:
    """Return what to say before a run is submitted to a cluster; nothing when it trains nothing, or fits.

    Raises:
        DoesNotFit: Its training needs more memory than its GPUs have.
        ConfigError, UsageError: It cannot be divided among them.
    """
    found = training_of(run)
    gpus = gpus_of(found[0], cluster.train) if found else 0
    if not found or not gpus:
        return ""
    train, job = found
    name = chip_of(cluster)
    if name is None:
        return "" if _fits_any(job, gpus, cluster.train.nodes) else _UNKNOWN
    advice = planner.quickly(job, chips.Machine(chips.find(name), gpus, cluster.train.nodes))
    if _is_near(advice.plan):
        return f"{train.run} may not fit: {short(advice.plan)}, by an estimate. To know: {_plan_command(train)}"
    if advice.plan.fits:
        return ""
    raise DoesNotFit(f"{train.run} cannot fit: {verdict(advice)} (--no-plan submits it all the same)")


def _fits_any(job: TrainJob, gpus: int, nodes: int) -> bool:
    """Return whether a training fits the smallest of the GPUs that are known, by far."""
    smallest = min(chips.CHIPS.values(), key=lambda chip: chip.memory)
    plan = estimate(job, chips.Machine(smallest, gpus, nodes))
    return plan.fits and not near(plan)


def _is_near(plan: Plan) -> bool:
    """Return whether an estimate is too near to the limit to say."""
    return plan.how == "estimated" and near(plan)


def _plan_command(train: Rendered) -> str:
    return train.spec.command().replace("pi05ctl submit", "pi05ctl plan").replace(" --target cluster", "")
