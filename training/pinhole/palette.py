"""The colours of pinhole's world. Ten can be asked for by name; the rest belong to settings and details."""

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (222, 44, 44),
    "orange": (247, 140, 30),
    "yellow": (252, 214, 44),
    "green": (50, 165, 70),
    "blue": (40, 96, 220),
    "purple": (136, 60, 180),
    "pink": (248, 130, 184),
    "brown": (134, 82, 42),
    "black": (44, 44, 50),
    "white": (250, 250, 250),
}

OUTLINE: RGB = (34, 30, 44)
CREAM: RGB = (244, 234, 212)
GREY: RGB = (148, 150, 162)


def blend(first: RGB, second: RGB, share: float) -> RGB:
    """`share` of the second colour in the first."""
    mixed = [round(a + (b - a) * share) for a, b in zip(first, second, strict=True)]
    return (mixed[0], mixed[1], mixed[2])


def darken(colour: RGB, share: float = 0.25) -> RGB:
    return blend(colour, (0, 0, 0), share)


def pastel(colour: RGB) -> RGB:
    """A pale cousin, for backgrounds: subjects of the same name still stand out on it."""
    return blend(colour, (255, 255, 255), 0.55)
