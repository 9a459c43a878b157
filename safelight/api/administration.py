"""What an administrator may do beyond a caller: see and change deployments, keys, deliveries and the
runs of all projects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safelight.api.params import NewParams
from safelight.api.service import Service
from safelight.catalog import CATALOG, Catalog, CatalogEntry, check_model, commit_of, kept_name, name_for
from safelight.deployments import Defaults, Deployment, check_name
from safelight.errors import Conflict, FieldError, InvalidFields, ModelError
from safelight.keys import Allowance, Key, Scope
from safelight.runs import (
    Delivery,
    DeliveryStatus,
    EndpointStatus,
    InputName,
    Run,
    RunEvent,
    RunParams,
    RunStatus,
    WebhookEndpoint,
)
from safelight.store import ProjectSecret, Store
from safelight.store.figures import DAY_SECONDS, Activity, Endpoint, Placement
from safelight.store.search import RunSearch

ACTIVITY_SECONDS = 2.0
"""How long counted figures are shown again before they are counted anew, where counting is cheap."""

ACTIVITY_PATIENCE = 20.0
"""Where it is not: this many times what counting took."""

LATELY_SECONDS = 7 * DAY_SECONDS

_LATENT_CELL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOffer:
    """A model that can be deployed. `weights` is where they are on this machine; `remedy` how to get
    them if nowhere."""

    identifier: str
    entry: CatalogEntry | None
    weights: Path | None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class RunStory:
    """A run with all that happened to it."""

    run: Run
    events: Sequence[RunEvent]
    deliveries: Sequence[Delivery]


class Administration:
    """Everything of every project. Whoever calls it has made sure that an administrator asks."""

    def __init__(
        self,
        store: Store,
        service: Service,
        *,
        find_weights: Callable[[str], Path],
        own_models: Sequence[str],
        catalog: Catalog = CATALOG,
        hf_home: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._service = service
        self._find_weights = find_weights
        self._own_models = own_models
        self._catalog = catalog
        self._hf_home = hf_home
        self._monotonic = monotonic
        self._activity: tuple[float, Activity] | None = None
        self._counting = asyncio.Lock()

    async def activity(self) -> Activity:
        """The last day of the server; a moment old at most, so that many who look cost one count."""
        async with self._counting:
            if self._activity is None or self._monotonic() >= self._activity[0]:
                began = self._monotonic()
                activity = await self._store.figures.activity()
                cost_seconds = self._monotonic() - began
                self._activity = (began + max(ACTIVITY_SECONDS, ACTIVITY_PATIENCE * cost_seconds), activity)
            return self._activity[1]

    async def placements(self) -> Sequence[Placement]:
        """What the workers last said."""
        return await self._store.figures.placements()

    # Runs of all projects.

    async def search(
        self, wanted: RunSearch, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[Run], str | None]:
        """A page of runs, newest first, and the cursor of the next. Raises InvalidFields."""
        return await self._store.search.runs(wanted, limit=limit, cursor=cursor)

    async def run(self, run_id: str) -> Run:
        """Raises NotFound."""
        return await self._store.runs.get(run_id)

    async def story(self, run_id: str) -> RunStory:
        """A run, its events and its deliveries. Raises NotFound."""
        run = await self._store.runs.get(run_id)
        deliveries = await self._store.deliveries.list(run_id=run_id)
        return RunStory(run, await self._store.events.after(run_id), deliveries)

    async def cancel(self, run_id: str) -> Run:
        """Raises NotFound."""
        return await self._store.runs.cancel(run_id)

    async def delete(self, run_id: str) -> None:
        """Raises NotFound, and Conflict while it is running."""
        await self._store.runs.delete(run_id)

    async def replay(self, key: Key, run_id: str) -> Run:
        """Start the same run again, same seeds, as `key`. Raises what submitting raises."""
        run = await self._store.runs.get(run_id)
        deployment = await self._service.resolve(run.deployment)
        pictures = {
            each.name: await self._store.images.read(each.path) for each in await self._store.runs.inputs(run_id)
        }
        asked = replace(
            _as_asked(run.params),
            init_image=pictures.get(InputName.INIT_IMAGE),
            mask=pictures.get(InputName.MASK),
        )
        return await self._service.submit(key, deployment, asked)

    # Deployments.

    async def offers(self) -> Sequence[ModelOffer]:
        """The catalogue and the operator's own models, and whether their weights are here."""
        identifiers = [*self._catalog, *(name for name in self._own_models if name not in self._catalog)]
        return await asyncio.to_thread(lambda: [self._offer(identifier) for identifier in identifiers])

    async def weights(self, model: str) -> ModelOffer:
        """Where the weights of any model are."""
        return await asyncio.to_thread(self._offer, model)

    async def deployments(self) -> Sequence[Deployment]:
        """All that is deployed, by name."""
        return await self._store.deployments.list()

    async def versions(self, name: str) -> Sequence[Deployment]:
        """Every version there ever was under a name, newest first."""
        return await self._store.deployments.versions(name)

    async def current(self, name: str) -> Deployment | None:
        """What is deployed under a name now."""
        return next((each for each in await self._store.deployments.list() if each.name == name), None)

    async def deploy(self, model: str, *, name: str = "") -> Deployment:
        """Serve a model of the catalogue, of the settings, or in a folder. Raises InvalidFields."""
        offer = await asyncio.to_thread(self._checked_offer, model)
        wanted = Deployment(
            name=name or name_for(model, catalog=self._catalog),
            version=0,
            model=offer.identifier,
            revision=commit_of(offer.weights),
            defaults=offer.entry.defaults if offer.entry else Defaults(),
        )
        check_name(wanted.name)
        return await self._store.deployments.deploy(wanted)

    async def redeploy(self, wanted: Deployment) -> Deployment:
        """Serve what a deployment was changed into, as its next version. Raises InvalidFields."""
        limits = wanted.limits
        if limits.side_multiple < _LATENT_CELL or limits.side_multiple % _LATENT_CELL:
            message = f"{limits.side_multiple} is not a multiple of {_LATENT_CELL}, which the models need"
            raise InvalidFields([FieldError("side_multiple", message)])
        if wrong := limits.check(_drawn_by_default(wanted.defaults)):
            raise InvalidFields(wrong)
        return await self._store.deployments.deploy(wanted)

    async def activate(self, name: str, version: int) -> Deployment:
        """Serve an earlier version again. Raises NotFound."""
        return await self._store.deployments.activate(name, version)

    async def undeploy(self, name: str) -> None:
        """Raises NotFound."""
        await self._store.deployments.undeploy(name)

    async def runs_by_day(self, name: str, *, num_days: int) -> Mapping[int, int]:
        """Runs of a deployment by days since the epoch."""
        return await self._store.figures.runs_by_day(name, num_days=num_days)

    def _offer(self, model: str) -> ModelOffer:
        entry = self._catalog.get(model)
        try:
            return ModelOffer(identifier=model, entry=entry, weights=self._find_weights(model))
        except ModelError as error:
            return ModelOffer(identifier=model, entry=entry, weights=None, remedy=error.message)

    def _checked_offer(self, model: str) -> ModelOffer:
        """The model to deploy; a folder is named from the root, wherever this server was started."""
        if model in self._own_models:
            return self._offer(model)
        check_model(model, catalog=self._catalog, hf_home=self._hf_home)
        return self._offer(kept_name(model, catalog=self._catalog))

    # Keys.

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too, oldest first."""
        return await self._store.keys.list()

    async def key(self, key_id: str) -> Key:
        """Raises NotFound."""
        return await self._store.keys.get(key_id)

    async def runs_by_key(self) -> Mapping[str, int]:
        """How many runs each key started in the last day."""
        return await self._store.figures.runs_by_key(seconds=DAY_SECONDS)

    async def create_key(
        self, name: str, *, project: str, scopes: frozenset[Scope], expires_at: float | None, allowance: Allowance
    ) -> tuple[Key, str]:
        """A new key and its secret. Raises InvalidFields, Conflict."""
        return await self._store.keys.create(
            name, project=project, scopes=scopes, expires_at=expires_at, allowance=allowance
        )

    async def allow(self, key_id: str, allowance: Allowance) -> Key:
        """What a key may use from now on. Raises NotFound, InvalidFields."""
        return await self._store.keys.allow(key_id, allowance)

    async def rotate_key(self, key_id: str, *, overlap_seconds: float) -> tuple[Key, str]:
        """A new secret for what a key stands for; the old one ends after the overlap. Raises NotFound, Conflict."""
        return await self._store.keys.rotate(key_id, overlap_seconds=overlap_seconds)

    async def revoke_key(self, key_id: str, *, by: Key) -> Key:
        """Raises NotFound, and Conflict for the last key that could let an administrator in."""
        if key_id == by.id and not [each for each in await self._store.keys.list() if _lets_in(each, besides=key_id)]:
            raise Conflict("this is the last admin key; make another one before you revoke it")
        return await self._store.keys.revoke(key_id)

    # Webhooks.

    async def receivers(self) -> Sequence[Endpoint]:
        """Where results of the last week were sent."""
        return await self._store.figures.endpoints(seconds=LATELY_SECONDS)

    async def endpoints(self) -> Sequence[WebhookEndpoint]:
        """The registered endpoints of all projects, oldest first."""
        return await self._store.webhook_endpoints.list()

    async def add_endpoint(self, url: str, *, project: str, events: Iterable[RunStatus]) -> tuple[WebhookEndpoint, str]:
        """Register an endpoint; it and its secret. Raises InvalidFields, Conflict."""
        self._service.webhooks.check(url)
        return await self._store.webhook_endpoints.create(url, project=project, events=events)

    async def switch_endpoint(self, endpoint_id: str, status: EndpointStatus) -> WebhookEndpoint:
        """Enable or disable an endpoint. Raises NotFound."""
        return await self._store.webhook_endpoints.update(endpoint_id, status=status)

    async def rotate_endpoint(self, endpoint_id: str, *, overlap_seconds: float) -> tuple[WebhookEndpoint, str]:
        """A new secret; the one before goes on signing for the overlap. Raises NotFound."""
        return await self._store.webhook_endpoints.rotate(endpoint_id, overlap_seconds=overlap_seconds)

    async def remove_endpoint(self, endpoint_id: str) -> None:
        """Raises NotFound."""
        await self._store.webhook_endpoints.remove(endpoint_id)

    async def resend_failed(self, endpoint_id: str, *, seconds: float) -> int:
        """Make due again what failed at an endpoint lately; how many. Raises NotFound, Conflict."""
        return await self._store.deliveries.resend_since(endpoint_id, time.time() - seconds)

    async def deliveries(self, *, status: DeliveryStatus | None, limit: int) -> Sequence[Delivery]:
        """Deliveries with their attempts, newest first."""
        return await self._store.deliveries.list(status=status, limit=limit)

    async def resend(self, delivery_id: str) -> Delivery:
        """Make a delivery due now. Raises NotFound."""
        return await self._store.deliveries.resend(delivery_id)

    async def project_secret(self, project: str) -> ProjectSecret:
        """What deliveries to the URLs of a project's requests are signed with."""
        return await self._store.project_secrets.newest(project)

    async def rotate_project_secret(self, project: str, *, overlap_seconds: float) -> ProjectSecret:
        """A new one; the one before goes on signing for the overlap. Raises Conflict."""
        return await self._store.project_secrets.rotate(project, overlap_seconds=overlap_seconds)


def _as_asked(params: RunParams) -> NewParams:
    names = RunParams.__dataclass_fields__.keys() & NewParams.__dataclass_fields__.keys()
    return NewParams(**{name: getattr(params, name) for name in names})


def _drawn_by_default(defaults: Defaults) -> RunParams:
    return RunParams(prompt="", **{name: getattr(defaults, name) for name in Defaults.__dataclass_fields__})


def _lets_in(key: Key, *, besides: str) -> bool:
    is_valid = key.revoked_at is None and (key.expires_at is None or key.expires_at > time.time())
    return is_valid and key.id != besides and Scope.ADMIN in key.scopes
