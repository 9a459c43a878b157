"""`serve`: the server in the foreground."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli.deploying import deploy_missing, explain_deployment
from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, settings_of
from safelight.cli.output import explain, say
from safelight.config import Settings, require_shared_store
from safelight.deployments import Deployment
from safelight.keys import Scope
from safelight.logs import configure_logging
from safelight.tracing import check_installed

if TYPE_CHECKING:
    from safelight.store import Store

_EXAMPLE_PROMPT = "a photo of an astronaut riding a horse on mars."


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Deploy these first if missing.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Unset: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. Unset: 8000.")] = None,
    with_workers: Annotated[
        bool,
        typer.Option(
            "--workers/--no-workers", help="Whether to draw too. Without, `safelight worker` does it elsewhere."
        ),
    ] = True,
    data: DataOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve everything that is deployed. Stops cleanly on Ctrl+C or SIGTERM; a second one ends at once."""
    settings = settings_of(config, data, server__host=host, server__port=port)
    if not with_workers:
        require_shared_store(settings)
    check_installed(settings.tracing)
    configure_logging(settings.log, process="serve")
    ready = _Ready()

    def prepare() -> None:
        nonlocal ready
        ready = with_store(settings, lambda store: _prepare(store, settings, models or []))
        if ready.key is not None:
            say(f"admin key, shown this once: {ready.key}")

    def announce(address: str) -> None:
        say(f"serving at {address}")
        say(
            f"dashboard at {address}/dashboard"
            + (f"/sign-in?token={ready.link} (works once, within an hour)" if ready.link else "")
        )
        for line in _next_steps(settings, address, ready):
            say(line)

    from safelight.supervisor import Supervisor

    raise typer.Exit(Supervisor(settings, announce=announce).serve(with_workers=with_workers, prepare=prepare))


@dataclass(frozen=True, slots=True)
class _Ready:
    """What is served, and the first key with its sign-in link where one was made."""

    served: tuple[Deployment, ...] = ()
    key: str | None = None
    link: str | None = None


async def _prepare(store: Store, settings: Settings, models: list[str]) -> _Ready:
    """Try the pictures' place; deploy what is missing; make the first key."""
    await store.images.check()
    for made in await deploy_missing(store, settings, models):
        explain(f"deployed {made.model} as {made.name}, version {made.version}")
        explain_deployment(settings, made)
    secret = link = None
    if await store.keys.count() == 0:
        key, secret = await store.keys.create("admin", scopes=frozenset({Scope.ADMIN}))
        link = await store.sign_in_links.create(key.id)
    return _Ready(tuple(await store.deployments.list()), secret, link)


def _next_steps(settings: Settings, address: str, ready: _Ready) -> list[str]:
    where = "" if settings.data == Settings().data else f" --data {shlex.quote(str(settings.data))}"
    if not ready.served:
        return ["", f"nothing is deployed yet: safelight deploy pinhole{where}"]
    lines = ["", "try it:", ""]
    if ready.key is None:
        lines.append(f"KEY=$(safelight keys create my-laptop{where})")
    return [*lines, curl_line(address, ready.served[0].name, ready.key or "$KEY"), ""]


def curl_line(address: str, name: str, key: str) -> str:
    """A request that works when pasted into a shell, and leaves a picture behind."""
    decode = (
        "import base64, json;"
        " open('picture.png', 'wb').write(base64.b64decode(json.load(open('answer.json'))['result'][0]))"
    )
    return (
        f"curl --fail-with-body --silent --show-error --output answer.json {address}/{name}/predict"
        f' -H "Authorization: {key}" -H "Content-Type: application/json"'
        f' -d \'{{"prompt": "{_EXAMPLE_PROMPT}"}}\''
        f' && python3 -c "{decode}"'
    )
