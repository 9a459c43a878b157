"""`demo`: everything once, for real, on this machine: a server, a key, the example request, a webhook, the pictures."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.catalog import find_weights
from safelight.cli.deploying import new_deployment
from safelight.cli.opening import with_store
from safelight.cli.output import explain, fail, say, say_table
from safelight.cli.overrides import Overrides
from safelight.config import Settings, load_settings
from safelight.deployments import DREAMBOOTH_ALIAS
from safelight.errors import ConfigError, NotFound, RunFailed
from safelight.keys import Scope

if TYPE_CHECKING:
    from safelight.cli.demo.scenes import Scene, Stage
    from safelight.store import Store

_KEY_NAME = "demo"
_MIN_FREE_BYTES = 200_000_000


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures and the data.")
    ] = Path("demo"),
    height: Annotated[int, typer.Option(help="Height in pixels.")] = 768,
    width: Annotated[int, typer.Option(help="Width in pixels.")] = 512,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps.")] = 60,
) -> None:
    """Start a server of its own, send it the example request, once plainly and once with a webhook, and
    write the pictures."""
    from safelight.cli.demo.request import EXAMPLE_BODY
    from safelight.cli.demo.scenes import Stage
    from safelight.cli.demo.server import environment, last_lines, running_server

    started = time.monotonic()
    body = EXAMPLE_BODY | {"height": height, "width": width, "num_inference_steps": steps}
    settings = load_settings(environ=environment(), flags={"data": out / "data"})
    _check_machine(settings, out)
    log = out / "server.log"
    with _stopped_in_order():
        key, secret = with_store(settings, lambda store: _prepare(store, settings))
        try:
            with running_server(settings.data, log) as address:
                explain(f"a server runs at {address}; its log is {log}")
                scenes = _play(Stage(address=address, key=key, body=body, out=out), secret)
        except RunFailed as error:
            raise fail(f"{error.message}\n{last_lines(log)}") from error
        finally:
            with_store(settings, _revoke)
    _tell(scenes, settings.data, time.monotonic() - started)


def _check_machine(settings: Settings, out: Path) -> None:
    """Say what is missing before anything is started. Raises ModelError, ConfigError."""
    find_weights("pinhole", folders=settings.models)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {out} cannot be made: {error.strerror}; name another one with --out") from error
    if (free := shutil.disk_usage(out).free) < _MIN_FREE_BYTES:
        raise ConfigError(
            f"only {free // 1_000_000} MB are free for {out}; make room, or name another folder with --out"
        )


async def _prepare(store: Store, settings: Settings) -> tuple[str, str]:
    """Deploy pinhole under the name of the example; a fresh key, and the secret webhooks are signed with."""
    if DREAMBOOTH_ALIAS not in {each.name for each in await store.deployments.list()}:
        wanted = new_deployment(settings, "pinhole", name=DREAMBOOTH_ALIAS, overrides=Overrides(), revision=None)
        made = await store.deployments.deploy(wanted)
        explain(f"deployed {made.model} as {made.name}")
    await _revoke(store)
    _, key = await store.keys.create(_KEY_NAME, scopes=frozenset({Scope.PREDICT}))
    return key, (await store.project_secrets.newest("default")).secret


async def _revoke(store: Store) -> None:
    with contextlib.suppress(NotFound):
        await store.keys.revoke(_KEY_NAME)


def _play(stage: Stage, secret: str) -> list[Scene]:
    from safelight.cli.demo.receiver import Receiver
    from safelight.cli.demo.scenes import plain_call, webhook_call

    receiver = Receiver(secret)
    with receiver.running():
        return [plain_call(stage), webhook_call(stage, receiver)]


def _tell(scenes: list[Scene], data: Path, seconds: float) -> None:
    rows = (
        (
            scene.what,
            scene.run_id,
            f"{scene.run_time_ms / 1000:.1f} s",
            f"{scene.seconds:.1f} s",
            "\n".join(map(str, scene.files)),
        )
        for scene in scenes
    )
    say("")
    say_table(("CALL", "RUN", "MODEL", "WHOLE", "PICTURES"), rows, empty="")
    safelight = "safelight" if shutil.which("safelight") else _from_here(Path(sys.executable).with_name("safelight"))
    say(f"\nall of it took {seconds:.1f} s. Next:")
    say(f"  {safelight} runs list --data {data}")
    say(f"  {safelight} webhooks list --data {data}")
    say(f'  {safelight} generate "a red boat on the sea"')
    say(f"  {safelight} serve pinhole")


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextlib.contextmanager
def _stopped_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block the way Ctrl+C does, so that the server is stopped too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
