"""Simulators in processes of their own: the same episodes, and words when something goes wrong."""

import os
import time
from pathlib import Path

import pytest

from pi05.errors import ConfigError, TemporaryError
from pi05.evaluation.course import Station
from pi05.evaluation.rollout import rollout
from pi05.evaluation.workers import Pool, Workers
from tests.line import LIMIT, Line, Refusing, Stubborn, Walker, chatty, ignore

SEEDS = [0, 1, 2, 5, -3]


def episodes(fleet: Workers | Station) -> list:
    return [trial.episode for trial in rollout(fleet, Walker(), SEEDS, LIMIT, 4, ignore)]


def test_episodes_do_not_depend_on_how_many_processes_share_them() -> None:
    alone = episodes(Station([Line()], images=False))
    for environments, processes in ((4, 3), (2, 2)):
        with Workers(Line, environments, processes, images=True) as fleet:
            assert episodes(fleet) == alone


def test_a_policy_sees_the_images_of_its_own_episodes() -> None:
    actor = Walker()
    with Workers(Line, 3, 2, images=True) as fleet:
        rollout(fleet, actor, [0, 1, 2], 4, 4, ignore)
    assert actor.seen[0]["base_camera"][:, 1, 1, 2].tolist() == [100, 101, 102]


def test_what_cannot_be_made_is_refused_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match="no such camera; use another"):
        Workers(Refusing, 2, 2, images=False)


def test_an_error_in_a_process_is_told_even_when_it_cannot_cross_the_pipe() -> None:
    with Workers(Stubborn, 2, 2, images=False) as fleet:
        with pytest.raises(RuntimeError, match="Unportable"):
            fleet.begin([1, 7])
        assert len(fleet.begin([1, 2])) == 2, "an answer that was not fetched would come now"


def test_a_process_that_is_killed_is_named_and_the_job_may_try_again() -> None:
    with (
        Workers(Stubborn, 2, 2, images=False) as fleet,
        pytest.raises(TemporaryError, match=r"process 1 was killed by signal 9; .* use fewer eval.environments"),
    ):
        fleet.begin([1, 8])


def test_a_process_that_hangs_is_killed_and_the_job_may_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workers(Stubborn, 2, 2, images=False) as fleet:
        monkeypatch.setattr("pi05.evaluation.workers.PATIENCE", 0.2)
        with pytest.raises(TemporaryError, match=r"process 0 has not answered for 0 s and was killed; the episodes"):
            fleet.begin([9, 1])


def test_processes_end_with_their_parent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Pool(2) as pool:
        assert list(pool.map(chatty, [(number, tmp_path) for number in range(3)])) == [0, 1, 4]
        pids = [int((tmp_path / str(number)).read_text()) for number in range(3)]
        assert pids[0] == pids[2] != pids[1]
    assert capfd.readouterr().out == "", "stdout is for events"
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert os.getpid() not in pids
