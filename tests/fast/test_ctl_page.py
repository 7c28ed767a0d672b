"""The report: one page, well formed, with the numbers it was given and nothing from elsewhere."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from pi05.events import Event
from pi05ctl import drawing
from pi05ctl.page import Report, losses, page
from pi05ctl.results import Episode, Evaluation
from pi05ctl.status import RunStatus

TRACKS = {"tcp": ((0.0, 0.0), (0.1, 0.1)), "object": ((0.0, 0.1), (0.2, 0.1)), "goal": ((0.2, 0.1),)}
EPISODES = tuple(Episode(seed, seed % 10 != 3, seed % 10 > 3, 80, 150, TRACKS) for seed in range(50))
CONTENT = Report(
    status=RunStatus(run="pipeline-pushcube-abcdef", task="pushcube", kind="pipeline", state="Done"),
    parts=(RunStatus(run="train-pushcube-123456", task="pushcube", kind="train", state="Done", step=2400, total=2400),),
    losses=((1, 1.2), (100, 0.3), (2400, 0.02)),
    evaluation=Evaluation(EPISODES, "checkpoint", 2400),
    command="pi05ctl submit pipeline pushcube --set 'train.freeze=[\"<b>\"]'",
    job_json='{"freeze": "<script>"}',
    written="2026-11-23 12:00",
)


class Checker(HTMLParser):
    """Collects text and attributes, and what is not closed."""

    void = frozenset({"meta", "tr", "td", "th", "circle", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str | None] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def read(content: Report) -> Checker:
    checker = Checker()
    checker.feed(page(content))
    assert checker.open == []
    return checker


def test_it_says_what_was_found():
    words = read(CONTENT).words
    assert "90 %" in words
    assert "45 of 50 unseen episodes solved by checkpoint 2400; 95 % interval 79 to 96 % (Wilson)" in words
    assert "Push and move a cube to a goal region" in words
    assert "From 1.2 at step 1 to 0.02 at step 2,400." in words
    assert CONTENT.command in words
    assert CONTENT.job_json in words
    assert "train-pushcube-123456" in words


def test_it_needs_nothing_from_elsewhere():
    assert read(CONTENT).links == []
    assert "http" not in page(CONTENT)
    assert "@import" not in page(CONTENT)
    assert "url(" not in page(CONTENT)


def test_it_works_in_the_dark_and_on_a_phone():
    assert "prefers-color-scheme: dark" in page(CONTENT)
    assert 'name="viewport"' in page(CONTENT)


def test_failures_are_drawn_first():
    captions = re.findall(r"<figcaption>(\d+) <span class=(\w+)>", page(CONTENT))
    assert captions[:5] == [(str(seed), "bad") for seed in (3, 13, 23, 33, 43)]
    assert len(captions) == 12


def test_every_episode_is_in_the_table():
    assert re.findall(r"<tr><td>(\d+)<td>", page(CONTENT)) == [str(seed) for seed in range(50)]


def test_the_oracle_is_not_called_unseen():
    words = read(replace(CONTENT, evaluation=Evaluation(EPISODES, "oracle"))).words
    assert "45 of 50 replayed episodes solved by oracle" in words


@pytest.mark.parametrize(
    "poor",
    [
        replace(CONTENT, evaluation=None),
        replace(CONTENT, evaluation=Evaluation(())),
        replace(CONTENT, losses=()),
        replace(CONTENT, losses=((1, 1.2),)),
        replace(CONTENT, parts=()),
        replace(CONTENT, evaluation=Evaluation(tuple(replace(e, tracks={}, steps=None) for e in EPISODES))),
    ],
)
def test_what_is_missing_is_left_out(poor):
    assert read(poor).words


def test_a_part_of_an_evaluation_is_not_its_result():
    part = read(replace(CONTENT, evaluation=Evaluation(EPISODES, "checkpoint", 2400, total=len(EPISODES) + 9))).words
    assert f"Not evaluated yet: {len(EPISODES)} of {len(EPISODES) + 9} episodes are there" in part


def test_without_an_evaluation_it_says_so():
    assert "Not evaluated yet" in read(replace(CONTENT, evaluation=None)).words


def event(step: int, **metrics: float) -> Event:
    return Event(run="r", kind="progress", time=0.0, step=step, metrics=metrics)


def test_a_repeated_step_counts_once_and_as_it_was_last():
    assert losses([event(1, loss=9.0), event(2, loss=8.0), event(1, loss=7.0), event(3)]) == ((1, 7.0), (2, 8.0))


@pytest.mark.parametrize(
    "points",
    [
        [(1, 1.2), (2400, 0.02)],
        [(1, 0.0833), (29_900, 0.0045)],
        [(0, 1.0), (1, 1.0)],
        [(0, 0.0), (10, 0.0)],
        [(0, -1.0), (10, 5.0)],
        [(1, 1e-9), (2, 1e6)],
        [(1, 1.0), (2, 10.0)],
    ],
)
def test_a_curve_stays_inside_its_frame(points):
    svg = ElementTree.fromstring(drawing.curve(points, "loss"))
    _, _, width, height = (float(number) for number in svg.attrib["viewBox"].split())
    line = next(child for child in svg if child.tag == "polyline")
    places = [tuple(float(part) for part in place.split(",")) for place in line.attrib["points"].split()]
    assert len(places) == len(points)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    ticks = [float(child.attrib["y"]) for child in svg if child.tag == "text"]
    assert len(ticks) >= 3
    assert all(0 <= y <= height for y in ticks)


def test_a_falling_loss_falls_on_the_page():
    svg = ElementTree.fromstring(drawing.curve([(1, 1.2), (100, 0.3), (2400, 0.02)], "loss"))
    line = next(child for child in svg if child.tag == "polyline")
    heights = [float(place.split(",")[1]) for place in line.attrib["points"].split()]
    assert heights == sorted(heights)


def test_drawings_share_one_scale():
    small = replace(EPISODES[0], tracks={"object": ((0.0, 0.0), (0.1, 0.0))})
    large = replace(EPISODES[1], tracks={"object": ((0.0, 0.0), (0.2, 0.0))})
    lengths = []
    for svg in drawing.episodes([small, large]):
        line = next(child for child in ElementTree.fromstring(svg) if child.tag == "polyline")
        (_, first), (_, last) = (place.split(",") for place in line.attrib["points"].split())
        lengths.append(float(first) - float(last))  # forward is up
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.2)
