"""Which subjects, drawn where, explain a picture best: the search behind the judge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import ndimage

from training.pinhole.backdrop import MARGIN, View, distance, loose_distance
from training.pinhole.patches import BARE, COARSE, Patch, Variant, coarser, offset, patch, stack, variants
from training.pinhole.scenes import MOUNTS, Family, Relation, Scene, Subject, lay_out
from training.pinhole.subjects import SUBJECTS

FARTHEST = 4
"""How far from its place a subject may be, in pixels: twice the grammar's jitter."""

MOST_MOVES = 3
GROWTHS = (0.95, 1.05)

CANDIDATES, GROWN, LOWERS = 8, 3, 3
"""How many of all are looked at closely, how many of these in other sizes, on how many an upper or a rider is tried."""

LEAST_GAIN = 60.0
"""What a subject must explain to be worth a closer look, in distances of one pixel."""

HANDICAP = 60.0
"""What a subject must explain more than the empty setting does, in distances of one pixel."""

LEAST_EXPLAINED, FARTHEST_MEAN, LARGEST_FLAW = 0.43, 56.0, 0.22
"""A subject is named where it explains this share of what the empty setting does not, is no further off than this on
average, and has no unexplained piece of more than this share of its area. True renders explain four fifths."""

CLEAR = 60.0
"""From this distance on a pixel is clearly not as drawn."""

RIM = 2
"""What so close around a subject is not as drawn speaks against it, in pixels."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layout has a subject: middle and half side in pixels, and what may stand there."""

    x: float
    y: float
    half: float
    names: tuple[str, ...] = tuple(SUBJECTS)
    is_seated: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Its places; where `joint` is set, the one place is that of the lower of two subjects that touch."""

    places: tuple[Place, ...]
    joint: Relation | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A variant laid over the picture: left and top of its patch in pixels of the view, and what it explains there."""

    variant: Variant
    half: float
    left: int
    top: int
    gain: float

    @property
    def patch(self) -> Patch:
        return patch(self.variant, self.half)

    @property
    def middle(self) -> tuple[float, float]:
        """In pixels of the picture without margins."""
        reach = self.patch.alpha.shape[0] / 2 - MARGIN
        return self.left + reach, self.top + reach


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What may have been drawn, lower before upper, and how far each pixel is from it, [H, W]."""

    found: tuple[Found, ...]
    joint: Relation | None
    missed: np.ndarray
    """Looked at closely, to choose by."""
    astray: np.ndarray
    """With lines a little bent and parts thicker or thinner forgiven: what decides if a subject is to be named."""

    @property
    def cost(self) -> float:
        return float(self.missed.sum()) + HANDICAP * len(self.found)


@cache
def layouts(setting: str, width: int, height: int) -> tuple[Layout, ...]:
    """All layouts of the grammar at this size."""
    one, other = Subject("circle", "red"), Subject("horse", "brown")

    def laid(family: Family, subjects: tuple[Subject, ...], count: int, relation: Relation | None) -> tuple[Place, ...]:
        placed = lay_out(Scene(family, setting, subjects, count, relation, BARE), width, height)
        return tuple(Place(p.box.x, p.box.y, round(p.box.half, 2)) for p in placed)

    singles = {laid(Family.SINGLE, (Subject(name, None),), 1, None) for name in ("sun", "mountain")}
    counts = [laid(Family.COUNT, (one,), count, None) for count in (2, 3, 4)]
    pairs = [laid(Family.PAIR, (one, other), 1, relation) for relation in (Relation.NEXT_TO, Relation.ABOVE)]
    lower = laid(Family.PAIR, (one, other), 1, Relation.ON)[:1]
    mount = laid(Family.RIDING, (one, other), 1, Relation.RIDING)[0]
    apart = [Layout(places) for places in (*sorted(singles, key=repr), *counts, *pairs)]
    # What is no mount is tried as one too: else the nearest of the mounts would stand for it.
    ridden = [Layout((replace(mount, names=names),), Relation.RIDING) for names in (tuple(MOUNTS), tuple(SUBJECTS))]
    return (*apart, Layout(lower, Relation.ON), *ridden)


def _area(side: int, left: int, top: int) -> tuple[slice, slice]:
    return slice(top, top + side), slice(left, left + side)


def _glimpse(view: View, place: Place) -> list[Found]:
    """Each variant where it explains most around the place, at COARSE resolution."""
    pile = stack(place.names, place.is_seated, place.half)
    side, reach = pile.alpha.shape[-1], FARTHEST // COARSE
    x, y = (round((middle + MARGIN) / COARSE - side / 2) for middle in (place.x, place.y))
    shifts = (-reach, 0, reach)
    corners = [(x + dx, y + dy) for dx in shifts for dy in shifts]
    gains = []
    for left, top in corners:
        area = _area(side, left, top)
        missed = distance(pile.colours, view.picture[:, *area])
        gains.append(((view.off[area] - missed * view.weight[area]) * pile.alpha).sum((1, 2)))
    found = []
    for k, variant in enumerate(pile.variants):
        best = int(np.argmax([gain[k] for gain in gains]))
        left, top = corners[best]
        found.append(Found(variant, place.half, COARSE * left, COARSE * top, COARSE**2 * float(gains[best][k])))
    return found


def _laid(view: View, found: Found) -> Found:
    """The same with its gain worked out."""
    shown = found.patch
    area = _area(shown.alpha.shape[0], found.left, found.top)
    drawn = shown.colours * shown.alpha + view.empty[:, *area] * (1 - shown.alpha)
    missed = distance(drawn, view.picture[:, *area]) * view.weight[area]
    return replace(found, gain=float((view.off[area] - missed).sum()))


def _settled(view: View, found: Found) -> Found:
    """Moved by single pixels for as long as that explains more."""
    best = _laid(view, found)
    for _ in range(MOST_MOVES):
        moved = (replace(best, left=best.left + dx, top=best.top + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1))
        better = max((_laid(view, one) for one in moved), key=lambda one: one.gain)
        if better.gain <= best.gain:
            break
        best = better
    return best


def _grown(view: View, found: Found) -> Found:
    tried = [found]
    for growth in GROWTHS:
        half = round(found.half * growth, 2)
        shift = (found.patch.alpha.shape[0] - patch(found.variant, half).alpha.shape[0]) // 2
        other = replace(found, half=half, left=found.left + shift, top=found.top + shift)
        tried.append(_settled(view, other))
    return max(tried, key=lambda one: one.gain)


def _search(view: View, coarse: View, places: Sequence[Place]) -> list[Found]:
    """What may stand at one of these places, the best first."""
    glimpsed = [found for place in places for found in _glimpse(coarse, place) if found.gain > LEAST_GAIN]
    glimpsed.sort(key=lambda found: -found.gain)
    looked_at = sorted((_settled(view, found) for found in glimpsed[:CANDIDATES]), key=lambda found: -found.gain)
    return sorted((_grown(view, found) for found in looked_at[:GROWN]), key=lambda found: -found.gain)


def _drawn(view: View, found: Sequence[Found]) -> np.ndarray:
    drawn = view.empty.copy()
    for one in found:
        shown = one.patch
        area = _area(shown.alpha.shape[0], one.left, one.top)
        drawn[:, *area] = shown.colours * shown.alpha + drawn[:, *area] * (1 - shown.alpha)
    return drawn


def _hypothesis(view: View, found: Sequence[Found], joint: Relation | None) -> Hypothesis:
    drawn = _drawn(view, found)
    missed = loose_distance(drawn, view.picture) * view.weight
    from_afar = loose_distance(coarser(drawn), coarser(view.picture)).repeat(COARSE, 0).repeat(COARSE, 1)
    return Hypothesis(tuple(found), joint, missed, np.minimum(missed, from_afar))


def covered(view: View, found: Found, rim: int) -> np.ndarray:
    """Bool [H, W]: its body and so many pixels around it."""
    return ndimage.binary_dilation(_body(view, found), iterations=rim)


def _body(view: View, found: Found) -> np.ndarray:
    body = np.zeros(view.off.shape, bool)
    alpha = found.patch.alpha
    body[_area(alpha.shape[0], found.left, found.top)] = alpha > 0.5
    return body


def fit(nothing: Hypothesis, view: View, hypothesis: Hypothesis, k: int) -> tuple[float, float, float]:
    """Of the k-th subject: the share it explains of what the empty setting does not, the mean distance left, and the
    largest unexplained piece as a share of its area."""
    area = float(_body(view, hypothesis.found[k]).sum())
    region = covered(view, hypothesis.found[k], RIM) & (view.weight > 0)
    for later in hypothesis.found[k + 1 :]:
        region &= ~_body(view, later)
    missed = hypothesis.astray[region].sum()
    labels, count = ndimage.label(ndimage.binary_opening(region & (hypothesis.astray > CLEAR)))
    flaw = max(np.bincount(labels.ravel())[1:], default=0) if count else 0
    return (
        1 - float(missed / max(nothing.astray[region].sum(), 1.0)),
        float(missed / max(region.sum(), 1)),
        float(flaw) / area,
    )


def _is_recognised(nothing: Hypothesis, view: View, hypothesis: Hypothesis, k: int) -> bool:
    explained, mean, flaw = fit(nothing, view, hypothesis, k)
    return explained > LEAST_EXPLAINED and mean < FARTHEST_MEAN and flaw < LARGEST_FLAW


def _on(lower: Found, half: float, is_seated: bool) -> dict[str, Place]:
    """Where each subject would be if it were on the lower one."""
    (x, y), places = lower.middle, {}
    for name in SUBJECTS:
        if name != lower.variant.subject.name:
            dx, dy, share = offset(variants((name,), is_seated)[0], lower.variant.subject)
            place = Place(x + dx * lower.half, y + dy * lower.half, round(half * share, 2), (name,), is_seated)
            places[name] = place
    return places


def _stacked(view: View, coarse: View, layout: Layout) -> Iterator[Hypothesis]:
    """The lower, and on or riding it what explains most of what the lower does not."""
    for lower in _search(view, coarse, layout.places)[:LOWERS]:
        places = _on(lower, layout.places[0].half, layout.joint is Relation.RIDING)
        ground = view.over(_drawn(view, (lower,)))
        uppers = _search(ground, ground.coarser(), list(places.values()))
        for upper in (upper for upper in uppers if _is_at(upper, places[upper.variant.subject.name])):
            yield _hypothesis(view, (lower, upper), layout.joint)
            break


def _is_at(found: Found, place: Place) -> bool:
    x, y = found.middle
    return max(abs(x - place.x), abs(y - place.y)) <= FARTHEST + 1


def _apart(view: View, coarse: View, layout: Layout) -> Iterator[Hypothesis]:
    best = [found[0] for place in layout.places if (found := _search(view, coarse, [place]))]
    yield _hypothesis(view, best, None)


def _recognised(nothing: Hypothesis, view: View, hypothesis: Hypothesis) -> Hypothesis:
    """Only those subjects that are recognised; the rest is left unexplained."""
    kept = [found for k, found in enumerate(hypothesis.found) if _is_recognised(nothing, view, hypothesis, k)]
    if len(kept) == len(hypothesis.found):
        return hypothesis
    return _hypothesis(view, kept, None)


def explain(view: View, setting: str) -> Hypothesis:
    """The hypothesis that leaves least unexplained."""
    height, width = (side - 2 * MARGIN for side in view.off.shape)
    coarse = view.coarser()
    nothing = _hypothesis(view, (), None)
    tried = [nothing]
    for layout in layouts(setting, width, height):
        for hypothesis in (_apart if layout.joint is None else _stacked)(view, coarse, layout):
            tried.append(_recognised(nothing, view, hypothesis))
    return min(tried, key=lambda hypothesis: hypothesis.cost)
