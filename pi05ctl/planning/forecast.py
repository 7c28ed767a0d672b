"""A training's plan -> what people read of it before they book GPUs, and what machines read. Pure."""

from typing import Any

from pi05.chips import Chip, Machine
from pi05.plan.document import Plan
from pi05ctl.planning.planner import Advice
from pi05ctl.planning.proposals import Changes
from pi05ctl.spec.runspec import RunSpec, format_value
from pi05ctl.views.tables import duration, text_table

_KINDS = {
    "parameters": "weights, float32 where they are trained",
    "moments": "AdamW's",
    "averages": "of the weights (EMA)",
    "batch": "",
    "temporary": "activations, gradients, gathered weights",
}

_ESTIMATED = "estimated from sizes, within some 10 % (scripts/_setup cuda makes what can compile)"


def lines(advice: Advice, spec: RunSpec, machine: Machine, price: float | None) -> list[str]:
    """Return what a person wants to know, a line each.

    Args:
        advice: What is planned.
        spec: The training, or the pipeline that it is a part of.
        machine: On which GPUs.
        price: Of one GPU and hour, in any currency.
    """
    plan = advice.plan
    shown = [_heading(plan, spec, machine), "", *_needs(plan), "", *_times(plan, machine.chip), ""]
    shown += _speed(plan, price)
    if advice.instead is not None:
        shown += ["", _instead(advice.instead, advice.changes)]
    if plan.fits or advice.instead is not None:
        overrides = {**spec.overrides, **advice.changes}
        shown.append(f"start it: {spec.model_copy(update={'overrides': overrides}).command()}")
    return shown


def data(advice: Advice, price: float | None) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        "plan": _data(advice.plan, price),
        "changes": dict(advice.changes),
        "instead": None if advice.instead is None else _data(advice.instead, price),
    }


def verdict(advice: Advice) -> str:
    """Return in one sentence why a plan does not fit, and what would."""
    plan = advice.plan
    if advice.instead is None:
        what = "the state alone" if plan.needs.state > plan.memory else "every way to compute it"
        other = advice.larger
        use = f"take {other.words}" if other else "take larger GPUs, or a smaller batch on more of them"
        return f"{short(plan)}; {what} is too large for {plan.gpus * plan.nodes} of them: {use}"
    return f"{short(plan)}; with {options(advice.changes)} it needs {_gb(advice.instead.needs.total)}"


def short(plan: Plan) -> str:
    """Return what a GPU needs and has."""
    return f"a step needs {_gb(plan.needs.total)} GB a GPU, and JAX has {_gb(plan.memory)} of each {plan.chip}"


def options(changes: Changes) -> str:
    """Return settings as pi05ctl takes them."""
    return " ".join(f"--set {path}={format_value(value)}" for path, value in changes.items())


def _data(plan: Plan, price: float | None) -> dict[str, Any]:
    money = {} if price is None else {"cost": round(plan.gpu_hours * price, 2)}
    derived = {
        "fits": plan.fits,
        "needs_total": plan.needs.total,
        "checkpoint_copies": plan.copies,
        "samples_per_second": round(plan.samples_per_second, 1),
        "hours": round(plan.hours, 3),
        "gpu_hours": round(plan.gpu_hours, 2),
    }
    return plan.model_dump(mode="json") | derived | money


def _heading(plan: Plan, spec: RunSpec, machine: Machine) -> str:
    how = "read from the compiled program" if plan.how == "compiled" else _ESTIMATED
    tokens = f"{'' if plan.tokens_known else 'some '}{plan.tokens} tokens"
    return f"{spec.task}, preset {spec.preset}: batch {plan.batch_size}, {tokens}, on {machine.words}; {how}"


def _needs(plan: Plan) -> list[str]:
    """Return the bytes of a GPU by kind, beside its memory."""
    sizes = plan.needs.model_dump()
    rows = [(kind, _gb(sizes[kind]), meaning) for kind, meaning in _KINDS.items()]
    room = "fits" if plan.fits else "DOES NOT FIT"
    rows.append(("in all", _gb(plan.needs.total), f"of {_gb(plan.memory)} that JAX has: {room}"))
    if plan.fits:
        copy = "has room beside it" if plan.copies else "has no room: training waits while one is written"
        rows.append(("a copy to save", _gb(plan.needs.state), copy))
    return text_table(("BYTES A GPU", "GB", ""), rows).splitlines()


def _times(plan: Plan, chip: Chip) -> list[str]:
    """Return what binds a step, and for how long at least."""
    times = plan.times
    arithmetic = f"{plan.flops / 1e12:.1f} TFLOP ({plan.model_flops / 1e12:.1f} of the model)"
    network = f", {plan.network / 1e9:.2f} GB a node to others" if plan.nodes > 1 else ""
    overlap = "as the program has them" if plan.how == "compiled" else "for the most part"
    rows = [
        ("compute", times.compute, f"{arithmetic}, at {chip.peak / 1e12:,.0f} TFLOP/s"),
        ("memory", times.memory, f"{plan.traffic / 1e9:,.0f} GB, at {chip.bandwidth / 1e12:.2f} TB/s"),
        ("launches", times.launches, f"{plan.kernels:,} kernels"),
        ("wire", times.wire, f"{plan.wire / 1e9:.2f} GB, at {chip.link / 1e9:.0f} GB/s{network}"),
        ("a step, at least", times.step, f"wire beside kernels {overlap}"),
    ]
    return text_table(("A STEP", "MS", ""), [(name, f"{1e3 * s:.1f}", words) for name, s, words in rows]).splitlines()


def _speed(plan: Plan, price: float | None) -> list[str]:
    """Return speed, time and money of the whole run."""
    took = duration(plan.hours * 3600)
    cost = "" if price is None else f"; at {price:g} a GPU and hour: {plan.gpu_hours * price:,.2f}"
    return [
        f"{plan.samples_per_second:,.0f} samples a second at most",
        f"{plan.steps:,} steps take {took} at least: {plan.gpu_hours:.1f} GPU hours{cost}",
    ]


def _instead(plan: Plan, changes: Changes) -> str:
    """Return the setting that fits."""
    return (
        f"with {options(changes)} it fits: {_gb(plan.needs.total)} of {_gb(plan.memory)} GB, "
        f"{1e3 * plan.times.step:.1f} ms a step, {duration(plan.hours * 3600)} at least"
    )


def _gb(amount: int) -> str:
    return f"{amount / 1e9:.2f}" if amount < 1e10 else f"{amount / 1e9:.1f}"
