"""Promise 6: a disk that is full, and a database that is gone. Real API and worker; nothing that was
accepted is lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
from PIL import Image

from tests.postgres import Postgres

from .crew import Crew, furnish, in_child, settings_for
from .figures import Figure, check
from .judge import judge, settle
from .traffic import Ledger, body_of

BACK_SECONDS = 5.0
SETTLE_SECONDS = 90.0
NO_MOUNT = "needs the right to mount a small file system"


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of that size on `folder`; False where it cannot be had."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "safelight-faults", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class Asking:
    """One client that asks once for each number and keeps what it was told."""

    def __init__(self, crew: Crew, key: str, ledger: Ledger) -> None:
        self._client = httpx2.Client(base_url=crew.url, timeout=30, trust_env=False)
        self._key = key
        self._ledger = ledger
        self._number = 0
        self.answers: Counter[int] = Counter()

    def ask(self) -> int:
        headers = {"Authorization": self._key, "Prefer": "respond-async"}
        answer = self._client.post("/pinhole/predict", json=body_of(self._number, None), headers=headers)
        self.answers[answer.status_code] += 1
        if answer.is_success:
            self._ledger.note(self._number, answer.json()["run_id"])
        self._number += 1
        return answer.status_code

    def seconds_until_accepted(self, within: float) -> float:
        begun = time.monotonic()
        while self.ask() != 202 and time.monotonic() < begun + within:
            time.sleep(0.1)
        return time.monotonic() - begun

    def close(self) -> None:
        self._client.close()


def full_disk(folder: Path, *, num_rounds: int) -> Figure | None:
    """Fill the disk under a working server, see it refuse, make room again. None where no small disk can be had."""
    done, back, faults = "disk filled while runs are asked for and drawn", 0.0, list[str]()
    with small_disk(folder / "disk", 24) as is_mounted:
        if not is_mounted:
            return None
        settings = settings_for(folder / "disk")
        key = in_child(furnish, settings)
        accepted = Ledger(folder / "accepted")
        with Crew(settings, folder, num_workers=1).working() as crew:
            asking = Asking(crew, key, accepted)
            for _ in range(num_rounds):
                asking.seconds_until_accepted(30)
                ballast = folder / "disk" / "ballast"
                _fill(ballast)
                deadline = time.monotonic() + 3
                while time.monotonic() < deadline:
                    asking.ask()
                    time.sleep(0.02)
                ballast.unlink()
                back = max(back, asking.seconds_until_accepted(30))
            asking.close()
            faults += check(in_child(settle, settings, SETTLE_SECONDS), "not all runs ended") + crew.own_deaths
        half = [path for path in (folder / "disk" / "data" / "images").rglob("*.*") if not _is_whole(path)]
        found = in_child(judge, settings, [(int(number), run_id) for number, run_id in accepted.lines()], None)
    refused = asking.answers[503] + asking.answers[507]
    faults += found.faults + check(not half, f"{len(half)} half pictures") + check(refused > 0, "nothing was refused")
    faults += check(back <= BACK_SECONDS, f"back after {back:.1f} s")
    faults += check(set(asking.answers) <= {202, 429, 503, 507}, f"answers {dict(asking.answers)}")
    figure = (
        f"{refused} refused with 503 or 507, {len(half)} half pictures, back within {back:.1f} s,"
        f" {found.num_runs} runs kept"
    )
    return Figure("6", f"{num_rounds} times: {done}", figure, faults)


def _is_whole(picture: Path) -> bool:
    try:
        with Image.open(picture) as opened:
            opened.load()
    except OSError:
        return False
    return True


def _fill(path: Path) -> None:
    block = b"\0" * 4096
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(block)


def database_gone(folder: Path, server: Postgres, *, seconds: float) -> Figure:
    """PostgreSQL stopped under a working server, and started again."""
    settings = settings_for(folder, server.url())
    key = in_child(furnish, settings)
    accepted = Ledger(folder / "accepted")
    faults: list[str] = []
    with Crew(settings, folder, num_workers=2).working() as crew:
        asking = Asking(crew, key, accepted)
        asking.seconds_until_accepted(30)
        for _ in range(20):
            asking.ask()
        server.stop()
        deadline = time.monotonic() + seconds
        slowest = 0.0
        while time.monotonic() < deadline:
            begun = time.monotonic()
            asking.ask()
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.1)
        refused = asking.answers[503]
        server.start()
        back = asking.seconds_until_accepted(30)
        asking.close()
        faults += check(in_child(settle, settings, SETTLE_SECONDS), "not all runs ended")
        crew.check()
        faults += crew.own_deaths
    found = in_child(judge, settings, [(int(number), run_id) for number, run_id in accepted.lines()], None)
    faults += (
        found.faults + check(back <= BACK_SECONDS, f"back after {back:.1f} s") + check(refused > 0, "nothing refused")
    )
    faults += check(set(asking.answers) <= {202, 503}, f"answers {dict(asking.answers)}")
    figure = (
        f"{refused} refused with 503 (slowest {slowest:.1f} s), back within {back:.1f} s, {found.num_runs} runs kept"
    )
    return Figure("6 (database)", f"PostgreSQL gone for {seconds:.0f} s under a working server", figure, faults)
