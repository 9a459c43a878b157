"""When the processes of a server collect garbage."""

from __future__ import annotations

import gc


def collect_from_here() -> None:
    """This process has what it needs: what was imported stays for good, so collections, which begin now where they were
    put off, need not look through it, and come before much has gathered."""
    gc.freeze()
    gc.enable()
