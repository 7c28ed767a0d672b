"""What the tests of parity share: the golden numbers, and matrix products in all of float32."""

import jax
import pytest

from tests.parity import golden as files
from tests.parity.golden import Golden


@pytest.fixture(scope="session")
def golden() -> Golden:
    folder = files.place()
    if folder is None:
        pytest.skip(f"no golden numbers at {files.DEFAULT}; set PI05_GOLDEN to a folder of the form of pi05_small")
    jax.config.update("jax_default_matmul_precision", "highest")
    return files.load(folder)
