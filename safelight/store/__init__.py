"""Runs, events, deliveries, keys, deployments and pictures, kept so that what was accepted is never lost."""

from safelight.store.deliveries import Hosts
from safelight.store.deployments import DeploymentTable
from safelight.store.images import ImageFolder, Images, StoredImage
from safelight.store.notifications import Listener, Notifications
from safelight.store.project_secrets import ProjectSecret
from safelight.store.queueing import Backlog
from safelight.store.runs import ANY_ATTEMPTS, ANY_PRIORITY
from safelight.store.store import Store

__all__ = [
    "ANY_ATTEMPTS",
    "ANY_PRIORITY",
    "Backlog",
    "DeploymentTable",
    "Hosts",
    "ImageFolder",
    "Images",
    "Listener",
    "Notifications",
    "ProjectSecret",
    "Store",
    "StoredImage",
]
