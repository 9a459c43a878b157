"""What one experiment came to, as a row of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """`faults` says in words what was wrong; none, and the promise was kept."""

    promise: str
    done: str
    figure: str
    faults: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        return "kept" if not self.faults else "BROKEN: " + "; ".join(self.faults[:5])


def check(what: bool, sentence: str) -> list[str]:
    """`sentence` where `what` does not hold."""
    return [] if what else [sentence]
