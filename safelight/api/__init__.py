"""The door: HTTP over the store's runs. FastAPI and starlette live here and nowhere else; no torch, no
pictures' pixels."""

from safelight.api.app import create_app
from safelight.api.dashboard import build_desk
from safelight.api.server import DoorServer, make_server
from safelight.api.service import Service

__all__ = ["DoorServer", "Service", "build_desk", "create_app", "make_server"]
