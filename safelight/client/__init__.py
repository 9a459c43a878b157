"""The Python client of a Safelight server. Of Safelight itself it needs only the words and the errors: no
torch, no database."""

from safelight.client.answers import Result, RunImage, RunRecord
from safelight.client.blocking import Client, RunHandle
from safelight.client.calls import Patience
from safelight.client.errors import InvalidWebhook, ServerUnreachable, UnexpectedAnswer
from safelight.client.nonblocking import AsyncClient, AsyncRunHandle
from safelight.client.webhooks import WebhookMessage, verify_webhook

__all__ = [
    "AsyncClient",
    "AsyncRunHandle",
    "Client",
    "InvalidWebhook",
    "Patience",
    "Result",
    "RunHandle",
    "RunImage",
    "RunRecord",
    "ServerUnreachable",
    "UnexpectedAnswer",
    "WebhookMessage",
    "verify_webhook",
]
