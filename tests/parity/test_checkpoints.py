"""Files of the reference implementation, read by us, and files of ours in the same form."""

from pathlib import Path

import jax
import numpy as np
import pytest

from pi05.data import stats
from pi05.errors import DataError
from pi05.model import tree, weights
from tests.parity.golden import Golden


def test_reads_a_released_checkpoint(golden: Golden) -> None:
    found = weights.read(golden.folder / "checkpoint/params", golden.model())
    for path, wanted in golden.params.items():
        np.testing.assert_array_equal(found[path], wanted, err_msg=path)


def trained(golden: Golden) -> Path:
    return next(path for path in (golden.folder / "checkpoint_trained").iterdir() if path.name.isdigit())


def test_reads_a_trained_checkpoint(golden: Golden) -> None:
    found = weights.read(trained(golden) / "params", golden.model())
    sums = {path: float(np.asarray(array, np.float64).sum()) for path, array in found.items()}
    raw, averaged = (
        {path: float(golden.outputs[f"final_{which}_sum/{path}"]) for path in found} for which in ("param", "ema")
    )
    assert sums == pytest.approx(raw, rel=1e-6, abs=1e-6) or sums == pytest.approx(averaged, rel=1e-6, abs=1e-6)


def test_writes_what_it_reads(golden: Golden, tmp_path: Path) -> None:
    weights.write(tmp_path / "params", golden.params)
    found = weights.read(tmp_path / "params", golden.model())
    assert all(np.array_equal(found[path], wanted) for path, wanted in golden.params.items())
    ours, theirs = (weights._leaves(f) for f in (tmp_path / "params", golden.folder / "checkpoint/params"))
    assert {path: keys for path, (keys, _) in ours.items()} == {path: keys for path, (keys, _) in theirs.items()}


def test_names_every_leaf_that_does_not_fit(golden: Golden) -> None:
    wide, width = golden.meta["action_dim"], golden.meta["expert"]["width"]
    other = golden.model().model_copy(update={"action_dim": wide + 1})
    words = rf"3 leaves.*action_in_proj/kernel: expected \[{wide + 1}, {width}\], found \[{wide}, {width}\]"
    with pytest.raises(DataError, match=words):
        weights.read(golden.folder / "checkpoint/params", other)


def test_statistics_agree_with_histograms(golden: Golden) -> None:
    """The published quantiles come from histograms that are re-binned as they grow: a fraction of a percent off."""
    with np.load(golden.folder / "norm.npz") as file:
        data = {name: values.reshape(-1, values.shape[-1]) for name, values in file.items()}
    published = stats.read(next((trained(golden) / "assets").iterdir()))
    for name, theirs in (("state", published.state), ("actions", published.actions)):
        ours = stats.statistics(data[name])
        np.testing.assert_allclose(ours.mean, theirs.mean, atol=1e-5)
        np.testing.assert_allclose(ours.std, theirs.std, rtol=1e-4)
        for quantile, fraction in (("q01", 0.01), ("q99", 0.99)):
            assert np.all(np.abs((data[name] <= getattr(theirs, quantile)).mean(axis=0) - fraction) < 0.005)
            error = np.abs(np.subtract(getattr(ours, quantile), getattr(theirs, quantile)))
            assert np.all(error < 0.01 * np.ptp(data[name], axis=0)), (name, quantile)


def test_parameters_can_be_read_onto_devices_as_what_is_asked_for(golden: Golden) -> None:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        path: jax.ShapeDtypeStruct(leaf.shape, "bfloat16" if "mlp" in path else "float32", sharding=place)
        for path, leaf in tree.leaves(golden.model()).items()
    }
    found = weights.read(golden.folder / "checkpoint/params", golden.model(), target)
    for path, wanted in target.items():
        assert (found[path].sharding, found[path].dtype) == (place, wanted.dtype)
        np.testing.assert_array_equal(found[path], golden.params[path].astype(wanted.dtype), err_msg=path)


def test_leaves_are_read_a_few_at_a_time_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_AT_ONCE", 10)
    assert weights._groups({"a": 3, "b": 30, "c": 5, "d": 4, "e": 2}) == [["b"], ["c", "d"], ["a", "e"]]
