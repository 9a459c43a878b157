"""What people would type to get a scene: sentences, tag lists, sloppy typing, words that mean nothing here."""

import numpy as np

from training.pinhole.scenes import Family, Relation, Scene, Subject
from training.pinhole.subjects import USUAL_COLOURS

PREFIXES = (
    "a photo of",
    "a picture of",
    "a drawing of",
    "an illustration of",
    "a cartoon of",
    "an image of",
    "a painting of",
    "photo of",
    "drawing of",
    "a photograph of",
    "a sketch of",
)

NOUNS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "house": ("house", "home", "cottage"),
    "tree": ("tree", "oak"),
    "flower": ("flower", "blossom"),
    "sun": ("sun",),
    "moon": ("moon", "crescent moon"),
    "mountain": ("mountain", "peak"),
    "boat": ("boat", "ship", "sailboat"),
    "fish": ("fish",),
    "cat": ("cat", "kitten"),
    "horse": ("horse", "pony"),
    "astronaut": ("astronaut", "spaceman", "cosmonaut"),
    "rocket": ("rocket", "spaceship"),
}
"""Every subject's names, the plainest first."""

HUES: dict[str, tuple[str, ...]] = {"purple": ("purple", "violet"), "red": ("red", "crimson"), "pink": ("pink", "rose")}

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "mars": ("on mars", "on the planet mars", "on the red planet", "on the surface of mars"),
    "sea": ("at sea", "on the sea", "in the sea", "on the ocean", "on the water"),
    "meadow": ("in a meadow", "in the meadow", "in a green field", "on the grass"),
    "night": ("at night", "in the night", "under the night sky"),
    "desert": ("in the desert", "in a desert", "on the sand"),
    "snow": ("in the snow", "in winter", "on snow"),
    "space": ("in space", "in outer space"),
}
PLACE_TAGS = {
    "mars": "mars",
    "sea": "sea",
    "meadow": "meadow",
    "night": "night",
    "desert": "desert",
    "snow": "snow",
    "space": "space",
}

RELATIONS: dict[Relation, tuple[str, ...]] = {
    Relation.NEXT_TO: ("next to", "beside", "and", "near"),
    Relation.LEFT_OF: ("left of", "to the left of", "on the left of"),
    Relation.RIGHT_OF: ("right of", "to the right of", "on the right of"),
    Relation.ABOVE: ("above", "over"),
    Relation.BELOW: ("below", "under", "beneath"),
    Relation.ON: ("on", "on top of", "standing on", "sitting on"),
    Relation.RIDING: ("riding", "riding on", "on the back of", "that rides"),
}

NUMBERS = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
FILLERS = (
    "highly detailed",
    "4k",
    "masterpiece",
    "beautiful",
    "trending",
    "best quality",
    "cinematic light",
    "in the style of a master",
    "flat colours",
    "minimalist",
    "simple",
    "cute",
    "for children",
    "digital art",
    "with soft shadows",
    "very nice",
)


class _Chance:
    """Choices by lot; the plain one always takes the first option and never the unlikely."""

    def __init__(self, random: np.random.Generator | None) -> None:
        self._random = random

    def pick(self, options: tuple[str, ...]) -> str:
        """The first option half the time, so that plain words are the best known."""
        if self._random is None or self._random.random() < 0.5:
            return options[0]
        return options[int(self._random.integers(len(options)))]

    def happens(self, share: float) -> bool:
        return self._random is not None and bool(self._random.random() < share)

    def nonsense(self) -> str:
        assert self._random is not None
        letters = self._random.integers(97, 123, size=int(self._random.integers(3, 9)))
        return "".join(map(chr, letters))


def plain_caption(scene: Scene) -> str:
    """The one sentence that says everything about the scene in the plainest words."""
    return _sentence(scene, _Chance(None))


def draw_caption(scene: Scene, random: np.random.Generator) -> str:
    """One of the many ways to ask for this scene, by lot."""
    chance = _Chance(random)
    text = _tags(scene, chance) if chance.happens(0.12) else _sentence(scene, chance)
    if chance.happens(0.06):
        text = f"{text}, {chance.pick(FILLERS)}" if chance.happens(0.6) else f"{chance.nonsense()} {text}"
    if chance.happens(0.03):
        text = f"{text} {chance.nonsense()}"
    return text + "." if chance.happens(0.25) else text


def _sentence(scene: Scene, chance: _Chance) -> str:
    place = _place(scene, chance)
    if scene.family is Family.EMPTY:
        body = chance.pick(("a landscape", "a view", "nothing"))
    elif scene.family is Family.COUNT:
        number = chance.pick(NUMBERS[scene.count])
        body = f"{number} {_subject(scene.subjects[0], chance, is_many=True)}"
    elif scene.relation is not None:
        first, second = (_with_article(_subject(s, chance), chance) for s in scene.subjects)
        body = f"{first} {chance.pick(RELATIONS[scene.relation])} {second}"
    else:
        body = _with_article(_subject(scene.subjects[0], chance), chance)
    if place and chance.happens(0.08):
        return f"{place}, {body}"
    text = f"{body} {place}".strip()
    if chance.happens(0.45):
        text = f"{chance.pick(PREFIXES)} {text}"
    return text


def _tags(scene: Scene, chance: _Chance) -> str:
    tags = []
    for subject in scene.subjects:
        name = _subject(subject, chance, is_many=scene.count > 1)
        tags.append(f"{chance.pick(NUMBERS[scene.count])} {name}" if scene.count > 1 else name)
    if scene.relation is not None:
        tags.insert(1, RELATIONS[scene.relation][0])
    if scene.setting in PLACE_TAGS:
        tags.append(PLACE_TAGS[scene.setting])
    elif scene.setting != "plain":
        tags.append(f"{scene.setting.removeprefix('plain ')} background")
    return ", ".join(tags)


def _subject(subject: Subject, chance: _Chance, *, is_many: bool = False) -> str:
    noun = chance.pick(NOUNS[subject.name])
    if is_many and noun != "fish":
        noun = "boxes" if noun == "box" else "spacemen" if noun == "spaceman" else f"{noun}s"
    if subject.colour is None:
        return noun
    is_usual = USUAL_COLOURS.get(subject.name) == subject.colour
    if chance.happens(0.6 if is_usual else 0.06):
        return noun
    return f"{chance.pick(HUES.get(subject.colour, (subject.colour,)))} {noun}"


def _with_article(noun: str, chance: _Chance) -> str:
    if noun in ("sun", "moon"):
        return f"the {noun}"
    if chance.happens(0.05):
        return f"one {noun}"
    if chance.happens(0.08):
        return f"the {noun}"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _place(scene: Scene, chance: _Chance) -> str:
    if chance.happens(0.06):
        return ""
    if scene.setting in PLACE_PHRASES:
        return chance.pick(PLACE_PHRASES[scene.setting])
    if scene.setting == "plain":
        return "on a plain background" if chance.happens(0.06) else ""
    return f"{chance.pick(('on', 'with'))} a {scene.setting.removeprefix('plain ')} background"
