"""The version, where everyone may import it."""

__version__ = "0.1.0"
