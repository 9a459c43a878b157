"""Safelight: a self-hosted text-to-image endpoint."""

__version__ = "0.1.0"
