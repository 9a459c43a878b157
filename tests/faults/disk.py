"""A disk that loses power: a record of a process's system calls, and what may be left of its files at any moment of it.

What was synced is there. Of the rest any part may be: each write whole, torn at sectors, or not at all, whatever became
of those before it; of unsynced names (new, renamed, removed files) the first so many.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
CALLS = "openat,write,pwrite64,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir"
NO_STRACE = "needs strace, and the right to use it: apt-get install strace"

LINE = re.compile(r"(\d+) +(?:<\.\.\. \w+ resumed>(.*)|(\w+)\((.*))$", re.DOTALL)
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(?:\.\.\.)?')
PATH = re.compile(r"<((?:\\x[0-9a-f]{2})*)>")
ANSWER = re.compile(r"\) += (-?\d+)")
NUMBERS = re.compile(r", (\d+)(?=[,)])")


def can_record() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode == 0


def record(command: Sequence[str], log: Path) -> None:
    strace = ["strace", "-f", "-y", "-xx", "-s", "4000000", "-o", str(log), "-e", f"trace={CALLS}"]
    subprocess.run([*strace, *command], check=True)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that went well, with the lines of the log where it began and ended."""

    name: str
    begun: int
    ended: int
    paths: tuple[str, ...]
    data: bytes
    numbers: tuple[int, ...]
    text: str


def read_log(log: Path) -> Iterator[Call]:
    """The calls in the order they ended."""
    unfinished: dict[str, tuple[int, str, str]] = {}
    with log.open() as lines:
        for number, line in enumerate(lines):
            found = LINE.match(line.rstrip("\n"))
            if found is None:
                continue
            thread, rest, name, text = found.groups()
            begun = number
            if rest is not None:
                begun, name, start = unfinished.pop(thread)
                text = start + rest
            elif text.endswith("<unfinished ...>"):
                unfinished[thread] = number, name, text.removesuffix("<unfinished ...>").rstrip()
                continue
            answer = ANSWER.search(text)
            if answer is not None and int(answer[1]) >= 0:
                yield _call(name, begun, number, text)


def _call(name: str, begun: int, ended: int, text: str) -> Call:
    strings = [_unescape(each) for each in STRING.findall(text)]
    named = tuple(_unescape(each).decode(errors="replace") for each in PATH.findall(text))
    is_by_file = name in ("write", "pwrite64", "fsync", "fdatasync", "ftruncate")
    paths = named[:1] if is_by_file else tuple(each.decode(errors="replace") for each in strings)
    data = strings[0] if name in ("write", "pwrite64") and strings else b""
    plain = STRING.sub('""', PATH.sub("<>", text))
    return Call(name, begun, ended, paths, data, tuple(map(int, NUMBERS.findall(plain))), plain)


def _unescape(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes put at a place of a file; `data` None: its length becomes `at`."""

    at: int
    data: bytes | None
    number: int


@dataclass(eq=False)
class File:
    safe: bytearray = field(default_factory=bytearray)
    unsafe: list[Change] = field(default_factory=list)
    length: int = 0

    def sync(self, begun: int) -> None:
        """What had been written when the sync began is safe when it ends."""
        for change in self.unsafe:
            if change.number < begun:
                _apply(self.safe, change.at, change.data)
        self.unsafe = [change for change in self.unsafe if change.number >= begun]

    def after_cut(self, rng: random.Random) -> bytes:
        left = bytearray(self.safe)
        share = rng.choice((0.0, 0.5, 1.0))
        for change in self.unsafe:
            if rng.random() < share:
                _apply(left, change.at, change.data)
            elif change.data is not None and rng.random() < 0.5:
                for at in range(0, len(change.data), SECTOR):
                    if rng.random() < 0.5:
                        _apply(left, change.at + at, change.data[at : at + SECTOR])
        return bytes(left)


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    if data is None:
        del content[at:]
    else:
        content[at : at + len(data)] = data


@dataclass(frozen=True, slots=True)
class Naming:
    """A name that comes, goes, or moves. `file` None with `kind` "folder"."""

    kind: str
    path: str
    file: File | None = None
    target: str = ""


class Disk:
    """The files below one folder, as the calls so far have left them."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._names: dict[str, File | None] = {self._root: None}
        self._safe: dict[str, File | None] = {self._root: None}
        self._unsafe: list[Naming] = []

    def take(self, call: Call) -> None:
        if not call.paths or not all(path.startswith(self._root) for path in call.paths):
            return
        path = call.paths[0]
        match call.name:
            case "openat":
                if "O_CREAT" in call.text and path not in self._names:
                    self._name(Naming("file", path, File()))
            case "write" | "pwrite64" | "ftruncate":
                self._change(call, self._names.get(path))
            case "fsync" | "fdatasync":
                self._sync(call.begun, path)
            case "mkdir" | "mkdirat":
                self._name(Naming("folder", path))
            case "rename" | "renameat" | "renameat2":
                self._name(Naming("move", path, target=call.paths[1]))
            case _:
                self._name(Naming("gone", path))

    def cut(self, rng: random.Random, into: Path) -> None:
        """What may be left when the power goes now."""
        names = dict(self._safe)
        for naming in self._unsafe[: rng.choice((0, rng.randint(0, len(self._unsafe)), len(self._unsafe)))]:
            _carry_out(names, naming)
        into.mkdir(mode=0o700)
        for path, file in sorted(names.items()):
            place = into / os.path.relpath(path, self._root)
            if not place.parent.is_dir():
                continue
            if file is None:
                place.mkdir(exist_ok=True)
            else:
                place.write_bytes(file.after_cut(rng))

    def _change(self, call: Call, file: File | None) -> None:
        if file is None:
            return
        if call.name == "ftruncate":
            change = Change(call.numbers[0], None, call.ended)
            file.length = change.at
        else:
            at = call.numbers[-1] if call.name == "pwrite64" else file.length
            change = Change(at, call.data, call.ended)
            file.length = max(file.length, at + len(call.data))
        file.unsafe.append(change)

    def _sync(self, begun: int, path: str) -> None:
        file = self._names.get(path)
        if file is not None:
            file.sync(begun)
            return
        mine = [naming for naming in self._unsafe if str(Path(naming.path).parent) == path]
        for naming in mine:
            _carry_out(self._safe, naming)
        self._unsafe = [naming for naming in self._unsafe if naming not in mine]

    def _name(self, naming: Naming) -> None:
        _carry_out(self._names, naming)
        self._unsafe.append(naming)


def _carry_out(names: dict[str, File | None], naming: Naming) -> None:
    if naming.kind == "move":
        if naming.path in names:
            names[naming.target] = names.pop(naming.path)
    elif naming.kind == "gone":
        names.pop(naming.path, None)
    else:
        names[naming.path] = naming.file
