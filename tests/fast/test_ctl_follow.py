"""Following runs: lines without a terminal, bars on one, and time that runs out."""

import io
from dataclasses import replace

from pi05ctl.cli import follow
from pi05ctl.errors import Unreachable
from pi05ctl.runs.status import Look, RunStatus

RUNNING = RunStatus(
    run="train-pushcube-1", task="pushcube", kind="train", state="Running", step=100, total=400, unit="steps"
)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def play(*scenes: RunStatus) -> tuple[Clock, Look]:
    """Return a clock and a look that shows one scene after the other, the last one again and again."""
    left = list(scenes)

    def look():
        scene = left.pop(0) if len(left) > 1 else left[0]
        return [scene], [scene]

    return Clock(), look


def lines(*scenes: RunStatus) -> list[str]:
    clock, look = play(*scenes)
    stream = io.StringIO()
    with follow.display(clock, stream) as show:
        follow.follow(look, clock, clock.sleep, show=show)
    return stream.getvalue().splitlines()


def test_it_ends_with_the_run():
    clock, look = play(RUNNING, RUNNING, replace(RUNNING, state="Done"))
    ended = follow.follow(look, clock, clock.sleep)
    assert ended
    assert ended[0].state == "Done"
    assert clock.now == 2 * follow.POLL


def test_it_ends_with_the_last_of_several():
    states = iter(["Running", "Running", "Failed"])

    def look():
        both = [replace(RUNNING, state="Done"), replace(RUNNING, state=next(states))]
        return both, both

    clock = Clock()
    ended = follow.follow(look, clock, clock.sleep)
    assert ended
    assert [status.state for status in ended] == ["Done", "Failed"]


def test_a_timeout_is_no_end():
    clock, look = play(RUNNING)
    assert follow.follow(look, clock, clock.sleep, timeout=10) is None
    assert 10 <= clock.now < 11


def test_a_timeout_of_nothing_looks_once():
    clock, look = play(replace(RUNNING, state="Done"))
    assert follow.follow(look, clock, clock.sleep, timeout=0)


def test_without_a_terminal_a_line_is_for_news_only():
    scenes = [replace(RUNNING, step=step) for step in range(100, 400)]  # 150 seconds
    said = lines(replace(RUNNING, state="Starting", step=None), *scenes, replace(RUNNING, state="Done", step=400))
    assert said[0] == "train-pushcube-1  Starting"
    assert said[1].startswith("train-pushcube-1  Running  100/400  25 %")
    assert said[-1] == "train-pushcube-1  Done  400"
    assert 25 <= len(said) <= 150 / follow.LINE_EVERY + 3


def test_a_stage_that_waits_its_turn_is_not_news():
    assert lines(replace(RUNNING, state="Pending"), replace(RUNNING, state="Done"))[0].split()[1] == "Done"


def test_a_reason_is_said():
    failed = replace(RUNNING, state="Failed", why="killed")
    assert lines(RUNNING, failed)[-1].endswith("killed")


class Terminal(io.StringIO):
    """A stream that somebody reads."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_a_stage():
    stream, clock = Terminal(), Clock()
    waiting = replace(RUNNING, run="eval-pushcube-1", kind="eval", state="Pending", step=None, total=None)
    with follow.display(clock, stream) as show:
        show([RUNNING, waiting])
        show([replace(RUNNING, state="Done", step=400), replace(waiting, state="Running", total=50, step=10)])
    text = stream.getvalue()
    assert "train" in text
    assert "eval" in text
    assert "10/50" in text


def test_a_cluster_that_does_not_answer_is_asked_again():
    answers = iter([Unreachable("no route"), ([replace(RUNNING, state="Done")],) * 2])
    complaints: list[str] = []

    def look():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    clock = Clock()
    ended = follow.follow(look, clock, clock.sleep, complain=complaints.append) or ()
    assert [one.state for one in ended] == ["Done"]
    assert complaints == ["no route (asked again)"]


def test_a_reason_is_shown_as_it_is_written() -> None:
    why = "pull [/red] of \x1b[2Jimage failed"
    failed = replace(RUNNING, state="Failed", why=why)
    assert follow.describe(failed).endswith("pull [/red] of \\x1b[2Jimage failed")
    stream, clock = Terminal(), Clock()
    with follow.display(clock, stream) as show:
        show([failed])
    assert "[/red]" in stream.getvalue()
