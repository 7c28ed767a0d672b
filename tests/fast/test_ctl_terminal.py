"""What reaches a terminal, and what a pipe gets."""

import io

import pytest

from pi05ctl.cli import terminal
from pi05ctl.errors import UsageError


class Tty(io.StringIO):
    """A stream that somebody reads."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("loss 0.1\n\tand a tab", "loss 0.1\n\tand a tab"),
        ("\x1b]0;a title\x07", "\\x1b]0;a title\\x07"),
        ("\x9b2J cleared", "\\x9b2J cleared"),
        ("ab\rcd", "ab\\rcd"),
        ("a line\r\n", "a line\n"),
        ("exe\u202egnp", "exe\\u202egnp"),
        ("naïve, 立方体", "naïve, 立方体"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(written: str, shown: str) -> None:
    assert terminal.plain(written) == shown


def test_a_log_is_plain_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Tty()
    monkeypatch.setattr("sys.stdout", screen)
    terminal.out_bytes(b"step 1\x1b[31m\xff\n")
    assert screen.getvalue() == "step 1\\x1b[31m�\n"


def test_a_log_is_as_it_was_in_a_pipe(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    terminal.out_bytes(b"step 1\x1b[31m\xff\n")
    assert capfdbinary.readouterr().out == b"step 1\x1b[31m\xff\n"


def test_what_others_wrote_is_plain_in_words_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("it failed: \x1b[2J")
    assert capsys.readouterr().err == "pi05ctl: it failed: \\x1b[2J\n"
    assert "\x1b" not in terminal.table(("WHY",), [("\x1b[2J",)])


def test_a_question_is_asked_until_its_answer_can_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(answer: str) -> None:
        if answer != "b":
            raise UsageError(f"{answer} is not b")

    monkeypatch.setattr("sys.stdin", io.StringIO("c\n\n"))
    assert terminal.ask("which", "b", check) == "b"
    assert capsys.readouterr().err == "which [b]: pi05ctl: c is not b\nwhich [b]: "
