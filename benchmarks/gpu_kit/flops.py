"""A traced function -> FLOPs of its matrix products: what the model asks for, whatever a compiler makes of it."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def of(jaxpr: Any) -> int:
    """Return two for each element of a result and each that is summed over; a loop counts as often as it runs."""
    return sum(_of_one(equation) for equation in jaxpr.eqns)


def _of_one(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in summed)
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    return times * sum(of(inner) for value in equation.params.values() for inner in _inside(value))


def _inside(value: Any) -> Iterator[Any]:
    """Yield the functions in a parameter of an operation."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _inside(one)
