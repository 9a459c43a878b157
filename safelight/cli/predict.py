"""`predict`: ask a server."""

from __future__ import annotations


def predict() -> None:
    """Ask a server."""
