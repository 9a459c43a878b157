"""For all tests."""

from __future__ import annotations

import os

# Compiling for OpenVINO takes a few seconds for each server that starts; the tests of it say so themselves.
os.environ.setdefault("SAFELIGHT_ENGINE__BACKEND", "torch")
