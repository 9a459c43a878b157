"""API keys as the rest of the house sees them: who is calling and what they may do. The secret itself never gets here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key may be used for. `admin` includes the other two."""

    PREDICT = "predict"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One API key without its secret. `prefix` is its public beginning; times are on the database's clock."""

    id: str
    name: str
    prefix: str
    project: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None

    def has_scope(self, scope: Scope) -> bool:
        """Whether the key was given `scope`, itself or through `admin`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def can_read_runs(self) -> bool:
        """Whether the key may read the runs of its own project: who may start runs may also look at them."""
        return self.has_scope(Scope.READ) or self.has_scope(Scope.PREDICT)
