"""Deliveries on their way out: which addresses may be called, how a delivery is signed, and the loop that sends them."""

from safelight.webhooks.deliverer import Deliverer
from safelight.webhooks.signing import new_secret, sign
from safelight.webhooks.targets import TargetPolicy

__all__ = ["Deliverer", "TargetPolicy", "new_secret", "sign"]
