"""The places scenes are set in: what is painted before any subject. Everything has a fixed place, moved
by one jitter."""

from collections.abc import Callable

from training.pinhole.drawing import Canvas, Point, ellipse
from training.pinhole.palette import COLOURS, CREAM, RGB, blend, pastel

HORIZON = 0.62

Painting = Callable[[Canvas, float], None]


def horizon_of(canvas: Canvas, jitter: float) -> float:
    """Jitter from -1 to 1 moves the horizon by two percent of the height."""
    return canvas.height * (HORIZON + 0.02 * jitter)


def _ground(canvas: Canvas, horizon: float, colour: RGB) -> None:
    canvas.fill([(0, horizon), (canvas.width, horizon), (canvas.width, canvas.height), (0, canvas.height)], colour)


def _hills(canvas: Canvas, horizon: float, heights: list[float], colour: RGB) -> None:
    step = canvas.width / (len(heights) - 1)
    ridge: list[Point] = [(k * step, horizon - h * canvas.short_side) for k, h in enumerate(heights)]
    canvas.fill([(0, horizon + 2), *ridge, (canvas.width, horizon + 2)], colour)


def _discs(canvas: Canvas, places: list[tuple[float, float, float, float]], colour: RGB) -> None:
    """Each place: x and y as shares of the picture, rx and ry as shares of the short side."""
    for x, y, rx, ry in places:
        centre = (x * canvas.width, y * canvas.height)
        canvas.fill(ellipse(*centre, rx * canvas.short_side, ry * canvas.short_side), colour)


STARS = [(0.08, 0.1), (0.24, 0.2), (0.4, 0.06), (0.57, 0.15), (0.74, 0.07), (0.92, 0.18), (0.14, 0.36), (0.88, 0.4)]
LOW_STARS = [(0.06, 0.62), (0.2, 0.82), (0.42, 0.93), (0.62, 0.9), (0.8, 0.76), (0.94, 0.62)]


def mars(canvas: Canvas, jitter: float) -> None:
    horizon = horizon_of(canvas, jitter)
    _hills(canvas, horizon, [0.07, 0.13, 0.05, 0.03, 0.1, 0.16, 0.06], (186, 92, 62))
    _ground(canvas, horizon, (204, 84, 46))
    craters = [
        (0.14, 0.76, 0.09, 0.028),
        (0.84, 0.7, 0.075, 0.024),
        (0.62, 0.93, 0.12, 0.035),
        (0.26, 0.95, 0.07, 0.022),
    ]
    _discs(canvas, craters, (164, 60, 34))


def sea(canvas: Canvas, jitter: float) -> None:
    horizon = horizon_of(canvas, jitter)
    _ground(canvas, horizon, (36, 132, 190))
    waves = [
        (0.16, 0.72, 0.1, 0.012),
        (0.8, 0.69, 0.12, 0.012),
        (0.5, 0.94, 0.14, 0.014),
        (0.86, 0.86, 0.09, 0.012),
        (0.12, 0.89, 0.11, 0.013),
    ]
    _discs(canvas, waves, (120, 190, 226))


def meadow(canvas: Canvas, jitter: float) -> None:
    horizon = horizon_of(canvas, jitter)
    _hills(canvas, horizon, [0.02, 0.06, 0.09, 0.07, 0.03, 0.02, 0.05, 0.08, 0.05], (112, 178, 92))
    _ground(canvas, horizon, (134, 200, 84))
    blossoms = [
        (0.1, 0.74, 0.014, 0.014),
        (0.3, 0.93, 0.016, 0.016),
        (0.7, 0.95, 0.016, 0.016),
        (0.9, 0.8, 0.015, 0.015),
    ]
    _discs(canvas, blossoms, (255, 240, 150))


def night(canvas: Canvas, jitter: float) -> None:
    horizon = horizon_of(canvas, jitter)
    _discs(canvas, [(x, y, 0.009, 0.009) for x, y in STARS], (240, 240, 200))
    _ground(canvas, horizon, (34, 66, 62))


def desert(canvas: Canvas, jitter: float) -> None:
    horizon = horizon_of(canvas, jitter)
    _hills(canvas, horizon, [0.02, 0.05, 0.1, 0.13, 0.1, 0.04, 0.02, 0.03, 0.07, 0.05], (222, 170, 96))
    _ground(canvas, horizon, (238, 198, 120))
    _discs(canvas, [(0.2, 0.8, 0.16, 0.018), (0.8, 0.9, 0.18, 0.02)], (220, 172, 96))


def snow(canvas: Canvas, jitter: float) -> None:
    horizon = horizon_of(canvas, jitter)
    _hills(canvas, horizon, [0.04, 0.12, 0.05, 0.03, 0.08, 0.17, 0.06], (176, 200, 222))
    _ground(canvas, horizon, (236, 242, 250))
    flakes = [(x, y, 0.011, 0.011) for x, y in STARS]
    _discs(canvas, flakes, (252, 254, 255))


def space(canvas: Canvas, jitter: float) -> None:
    _discs(canvas, [(x, y + 0.01 * jitter, 0.009, 0.009) for x, y in STARS + LOW_STARS], (235, 235, 255))
    _discs(canvas, [(0.86, 0.17, 0.09, 0.09)], (120, 96, 190))


PLACES: dict[str, tuple[RGB, Painting]] = {
    "mars": ((240, 190, 146), mars),
    "sea": ((168, 216, 244), sea),
    "meadow": ((186, 228, 250), meadow),
    "night": ((32, 38, 92), night),
    "desert": ((252, 232, 184), desert),
    "snow": ((204, 220, 238), snow),
    "space": ((24, 16, 52), space),
}
"""Settings by name: the colour of the sky, and what is painted on it."""

PLAIN: dict[str, RGB] = (
    {"plain": CREAM}
    | {f"plain {name}": pastel(COLOURS[name]) for name in ("blue", "green", "yellow", "pink", "purple")}
    | {"plain grey": blend(CREAM, (120, 124, 136), 0.6)}
)
"""Backgrounds of one colour by name."""

SETTINGS = (*PLAIN, *PLACES)


def paint(setting: str, width: int, height: int, jitter: float) -> Canvas:
    if setting in PLAIN:
        return Canvas(width, height, PLAIN[setting])
    sky, painting = PLACES[setting]
    canvas = Canvas(width, height, sky)
    painting(canvas, jitter)
    return canvas
