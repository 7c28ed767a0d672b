"""A trace of some steps in the run's storage."""

from pathlib import Path

from pi05.training.loop import Training, start
from tests.train.conftest import TRAIN, Around, make_training, new_around

PROFILED = TRAIN.model_copy(update={"profile": (12, 13)})


def run(training: Training, around: Around) -> None:
    training.fit(start(training, around), around)


def test_a_profile_is_an_artefact_and_changes_no_number(tmp_path: Path) -> None:
    around, plain = new_around(tmp_path / "profiled"), new_around(tmp_path / "plain")
    run(make_training(PROFILED), around)
    run(make_training(), plain)
    assert around.losses == plain.losses
    key = around.paths.profile(12, 13)
    assert around.storage.verify(key) == []
    (trace,) = around.storage.open(key).rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000

    around.storage.delete(around.paths.checkpoint(20))
    run(make_training(PROFILED), around)
    assert around.storage.open(key).rglob("*.xplane.pb").__next__() == trace, "what is there is not made again"
