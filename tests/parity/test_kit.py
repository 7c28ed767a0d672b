"""What `scripts/bench gpu` computes of the golden numbers, on this machine's device."""

import pytest

from benchmarks.gpu_kit import parity, sizes


@pytest.mark.usefixtures("golden")
def test_the_kit_finds_the_golden_numbers_equal_in_float32() -> None:
    [(what, measure)] = parity.cases(sizes.CPU)
    errors = measure()
    assert (what, list(errors)) == ("float32, xla", ["velocity", "samples", "gradient_norms", "training_losses"])
    assert max(float(errors[name]) for name in ("velocity", "samples", "gradient_norms")) < 1e-5
    assert float(errors["training_losses"]) < 1e-4
