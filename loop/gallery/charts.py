"""The geometry of charts: lines over rounds with intervals, in the coordinates of an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loop.gallery.measures import Measured, Point
from policies.acceptance.paired import Lead

WIDTH, HEIGHT = 290, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 10, 10, 26
_STEPS = (0.5, 1, 2, 5, 10, 20, 25)
"""Distances of ticks in percent, of which the smallest with at most `_MAX_TICKS` is taken."""
_MAX_TICKS = 5
_MAX_ROUND_TICKS = 8


@dataclass(frozen=True, slots=True)
class Tick:
    place: float
    label: str


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    label: str
    """What it says when pointed at."""
    bar: tuple[float, float] | None
    """The ends of its interval."""


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    number: int
    """From 0, for its color."""
    path: str
    """The points of the line; empty for single marks."""
    band: str
    """The outline of its intervals; empty without."""
    dots: list[Dot]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of `WIDTH` x `HEIGHT`."""

    title: str
    note: str
    summary: str
    """The chart in words."""
    rounds: list[Tick]
    percents: list[Tick]
    lines: list[Line]


def chart(measured: Measured) -> Chart:
    """Draw series of shares, in percent."""
    points = [point for one in measured.series for point in one.points]
    assert points, "a chart has a point"
    ticks = _ticks([100 * value for point in points for value in (point.value, point.low, point.high) if value is not None])
    rounds = sorted({point.round for point in points})
    scale = _Scale(rounds[0], rounds[-1], ticks[0], ticks[-1])
    lines = []
    for number, one in enumerate(measured.series):
        dots = [_dot(one.name, point, scale) for point in one.points]
        path = " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in dots) if one.is_line else ""
        lines.append(Line(one.name, number, path, _band(one.points, scale) if one.is_line else "", dots))
    every = math.ceil(len(rounds) / _MAX_ROUND_TICKS)
    round_ticks = [Tick(scale.x(round), str(round)) for round in rounds[::every]]
    percents = [Tick(scale.y(tick / 100), f"{tick:g}") for tick in ticks]
    return Chart(measured.title, measured.note, _summary(measured), round_ticks, percents, lines)


@dataclass(frozen=True, slots=True)
class _Scale:
    first_round: int
    last_round: int
    low: float
    high: float

    def x(self, round: int) -> float:
        width = WIDTH - _LEFT - _RIGHT
        span = self.last_round - self.first_round
        return _LEFT + (width * (round - self.first_round) / span if span else width / 2)

    def y(self, share: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (self.high - 100 * share) / (self.high - self.low)


def _ticks(values: Sequence[float]) -> list[float]:
    """Round percentages that enclose the values."""
    low, high = min(values), max(values)
    step = next((one for one in _STEPS if math.ceil(high / one) - math.floor(low / one) < _MAX_TICKS), _STEPS[-1])
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:  # one value, on a tick
        first, last = (first - 1, last) if last * step >= 100 else (first, last + 1)
    return [step * tick for tick in range(first, last + 1)]


def _dot(name: str, point: Point, scale: _Scale) -> Dot:
    bar = None if point.low is None or point.high is None else (scale.y(point.high), scale.y(point.low))
    return Dot(scale.x(point.round), scale.y(point.value), f"{name}, round {point.round}: {in_words(point)}", bar)


def in_words(point: Point) -> str:
    """A number with its interval."""
    interval = "" if point.low is None or point.high is None else f" [{100 * point.low:.1f}, {100 * point.high:.1f}]"
    return f"{100 * point.value:.1f} %{interval}"


def _band(points: Sequence[Point], scale: _Scale) -> str:
    """The outline of the intervals, along their upper ends and back along the lower ones."""
    if len(points) < 2:
        return ""
    bounds = [(scale.x(one.round), scale.y(one.high), scale.y(one.low)) for one in points if one.low is not None and one.high is not None]
    if len(bounds) < len(points):
        return ""
    there, back = [(x, high) for x, high, _ in bounds], [(x, low) for x, _, low in reversed(bounds)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in [*there, *back])


def _summary(measured: Measured) -> str:
    said = [f"{one.name}: " + ", ".join(f"round {point.round} {in_words(point)}" for point in one.points) for one in measured.series]
    return f"{measured.title}. " + "; ".join(said)


@dataclass(frozen=True, slots=True)
class LeadBar:
    """A lead with its interval, on an axis 0..100 that all rounds share."""

    low: float
    value: float
    high: float
    zero: float


def lead_bars(leads: Sequence[Lead | None]) -> list[LeadBar | None]:
    """The leads of all rounds on one symmetric axis."""
    bounds = [abs(value) for one in leads if one is not None for value in (one.low, one.difference, one.high)]
    reach = max([*bounds, 0.01])

    def place(value: float) -> float:
        return round(50 + 48 * value / reach, 2)

    return [one and LeadBar(place(one.low), place(one.difference), place(one.high), place(0)) for one in leads]
