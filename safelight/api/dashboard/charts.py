"""Small charts as SVG, drawn here: no script, no inline style, readable to those who cannot see them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

_BAR = 8
_GAP = 3
_LEAST = 2.0
"""Height of a bar that is not empty, however small: something is not nothing."""


def bars(
    values: Sequence[float | None], *, label: str, height: int = 40, most: float | None = None, kind: str = ""
) -> Markup:
    """A bar for each value, oldest first, all on one scale. `label` says in words what it shows."""
    top = most if most is not None else max((value or 0.0 for value in values), default=0.0)
    width = len(values) * (_BAR + _GAP) - _GAP
    drawn = [_bar(index, value or 0.0, top, height) for index, value in enumerate(values)]
    return Markup(
        '<svg class="chart {kind}" viewBox="0 0 {width} {height}" preserveAspectRatio="none"'
        ' role="img" aria-label="{label}">{drawn}</svg>'
    ).format(kind=kind, width=width, height=height, label=label, drawn=Markup("").join(drawn))


def _bar(index: int, value: float, top: float, height: int) -> Markup:
    length = 1.0 if value <= 0 or top <= 0 else max(_LEAST, value / top * height)
    kind = "bar" if value > 0 else "bar empty"
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="1.5"/>').format(
        kind, index * (_BAR + _GAP), round(height - length, 1), _BAR, round(length, 1)
    )
