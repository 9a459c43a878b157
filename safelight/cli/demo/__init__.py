"""`demo`: everything once, for real, on this machine: a server, a key, the example request, a webhook, the pictures."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelight.catalog import find_weights
from safelight.cli.deploying import new_deployment
from safelight.cli.opening import with_store
from safelight.cli.output import explain, fail, say, say_table
from safelight.cli.overrides import Overrides
from safelight.cli.pictures_out import PictureFolder
from safelight.cli.progress import StepBar
from safelight.config import Settings
from safelight.deployments import PAGE_ALIAS
from safelight.errors import ConfigError, NotFound, RunFailed
from safelight.keys import Scope
from safelight.runs import OutputFormat

if TYPE_CHECKING:
    from safelight.cli.demo.caller import Caller, Steps
    from safelight.cli.demo.receiver import Receiver
    from safelight.store import Store

_KEY_NAME = "demo"
_DELIVERY_SECONDS = 60.0
_MIN_FREE_BYTES = 200_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One call of the demo and what came of it."""

    what: str
    run_id: str
    run_time_ms: float
    seconds: float
    files: tuple[Path, ...]


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures and the data.")
    ] = Path("demo"),
    height: Annotated[int, typer.Option(help="Height in pixels.")] = 768,
    width: Annotated[int, typer.Option(help="Width in pixels.")] = 512,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps.")] = 60,
) -> None:
    """Start a server of its own, send it the example request, once plainly and once with a webhook, and write the pictures."""
    from safelight.cli.demo.caller import EXAMPLE_BODY
    from safelight.cli.demo.server import last_lines, running_server

    started = time.monotonic()
    body = EXAMPLE_BODY | {"height": height, "width": width, "num_inference_steps": steps}
    settings = Settings(data=out / "data")
    _check_machine(settings, out)
    log = out / "server.log"
    with _stopped_in_order():
        key, secret = with_store(settings, lambda store: _prepare(store, settings))
        try:
            with running_server(settings.data, log) as address:
                explain(f"a server runs at {address}; its log is {log}")
                scenes = _play(address, key, secret, body=body, out=out)
        except RunFailed as error:
            raise fail(f"{error.message}\n{last_lines(log)}") from error
        finally:
            with_store(settings, _revoke)
    _tell(scenes, settings.data, time.monotonic() - started)


def _check_machine(settings: Settings, out: Path) -> None:
    """Say what is missing before anything is started. Raises ModelError, ConfigError."""
    find_weights("pinhole", folders={})
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
    if PAGE_ALIAS not in {each.name for each in await store.deployments.list()}:
        wanted = new_deployment(settings, "pinhole", name=PAGE_ALIAS, overrides=Overrides(), revision=None)
        made = await store.deployments.deploy(wanted)
        explain(f"deployed {made.model} as {made.name}")
    await _revoke(store)
    _, key = await store.keys.create(_KEY_NAME, scopes=frozenset({Scope.PREDICT}))
    return key, store.webhook_secret("default")


async def _revoke(store: Store) -> None:
    with contextlib.suppress(NotFound):
        await store.keys.revoke(_KEY_NAME)


def _play(address: str, key: str, secret: str, *, body: dict[str, Any], out: Path) -> list[Scene]:
    from safelight.cli.demo.caller import Caller
    from safelight.cli.demo.receiver import Receiver

    caller, receiver = Caller(address, key), Receiver(secret)
    with receiver.running():
        explain(f"POST {address}/{PAGE_ALIAS}/predict")
        plain = _plain_call(caller, body, out)
        explain(f"the same with webhook_endpoint {receiver.url}")
        return [plain, _webhook_call(caller, receiver, body, out)]


def _plain_call(caller: Caller, body: dict[str, Any], out: Path) -> Scene:
    begun = time.monotonic()
    with StepBar() as bar:
        answer = caller.predict(PAGE_ALIAS, body, watch=lambda steps: _show(bar, steps))
    return _scene("plain", answer, body, out=out, seconds=time.monotonic() - begun)


def _webhook_call(caller: Caller, receiver: Receiver, body: dict[str, Any], out: Path) -> Scene:
    begun = time.monotonic()
    with StepBar() as bar:
        asked = body | {"webhook_endpoint": receiver.url}
        run_id = caller.predict(PAGE_ALIAS, asked, watch=lambda steps: _show(bar, steps))["run_id"]
        caller.wait(run_id, watch=lambda steps: _show(bar, steps))
    received = receiver.take(run_id, timeout_seconds=_DELIVERY_SECONDS)
    explain(f"the webhook came, and its signature is right (event {received.event_id})")
    return _scene("webhook, verified", received.body, body, out=out, seconds=time.monotonic() - begun)


def _scene(what: str, answer: dict[str, Any], body: dict[str, Any], *, out: Path, seconds: float) -> Scene:
    from safelight.cli.demo.caller import pictures_of
    from safelight.pictures import read_texts

    folder = PictureFolder(str(out), prompt=body["prompt"], output_format=OutputFormat.PNG)
    files = [folder.write(each, seed=int(read_texts(each)["seed"])) for each in pictures_of(answer, body)]
    return Scene(
        what=what,
        run_id=answer["run_id"],
        run_time_ms=answer["run_time_ms"],
        seconds=seconds,
        files=tuple(files),
    )


def _show(bar: StepBar, steps: Steps) -> None:
    bar.show(steps.steps_done, steps.steps_total, steps.eta_seconds)


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
    safelight = "safelight" if shutil.which("safelight") else str(Path(sys.executable).with_name("safelight"))
    say(f"\nall of it took {seconds:.1f} s. Next:")
    say(f"  {safelight} runs list --data {data}")
    say(f"  {safelight} webhooks list --data {data}")
    say(f'  {safelight} generate "a red boat on the sea"')
    say(f"  {safelight} serve pinhole")


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
