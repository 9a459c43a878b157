"""The host that a URL leads to, for telling hosts apart."""

from __future__ import annotations

import httpx2


def host_of(url: str) -> str:
    """The host of `url`, one spelling per name; empty when there is none to tell."""
    try:
        return httpx2.URL(url).host.removesuffix(".")
    except httpx2.InvalidURL:
        return ""
