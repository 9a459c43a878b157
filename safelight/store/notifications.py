"""Hints within and between processes that something changed. A hint may be lost; polling is the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol


class Wire(Protocol):
    """Carries topics from this process to the others of the same store, and theirs to it."""

    def open(self, receive: Callable[[Sequence[str]], None]) -> None:
        """Begin; call `receive` on the event loop with what the others send. Never raises."""

    def send(self, topics: Sequence[str]) -> None:
        """Tell the others, from any thread. Never raises, never blocks."""

    def close(self) -> None:
        """Send what is still here, then stop."""


class Listener:
    """Waits for hints on some topics. A hint that comes between two waits ends the next one at once."""

    def __init__(self) -> None:
        self._was_hinted = asyncio.Event()

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109 - the answer says which of the two it was
        """Wait for a hint, at most `timeout` seconds. True when one came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._was_hinted.wait()
        return self.take()

    def take(self) -> bool:
        """Whether a hint came since the last wait or take."""
        was_hinted = self._was_hinted.is_set()
        self._was_hinted.clear()
        return was_hinted

    def wake(self) -> None:
        self._was_hinted.set()


class Notifications:
    """Who in this process waits for what, and a wire to the others. Use it on the event loop's thread, but for
    `tell`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._is_started = False
        self._listeners: dict[str, set[Listener]] = {}
        self._unsent: dict[str, None] = {}
        self._is_gathering = False

    def start(self) -> None:
        """Join the others. Where that cannot be, hints stay within the process and polling does the rest."""
        self._wire.open(self._wake_all)
        self._event_loop = asyncio.get_running_loop()
        self._is_started = True

    def publish(self, *topics: str) -> None:
        """Wake whoever listens to `topics`, here and in other processes. Never raises, never blocks."""
        self._wake_all(topics)
        if not self._is_started:
            return
        if self._is_gathering:
            self._unsent |= dict.fromkeys(topics)
            return
        # The first of a moment goes at once, since most often it is the only one; what else comes before the loop goes
        # round travels together.
        self._is_gathering = True
        asyncio.get_running_loop().call_soon(self._send_gathered)
        self._wire.send(topics)

    def tell(self, topics: Sequence[str]) -> None:
        """`publish` from any thread, of all topics of one moment: the others hear of them at once, listeners here when
        the loop comes to it."""
        if not topics or not self._is_started:
            return
        self._wire.send(topics)
        # Whoever begins to listen after this looks at the store after it.
        if not self._listeners.keys().isdisjoint(topics):
            # The loop may be gone when a process ends.
            with suppress(RuntimeError):
                self._event_loop.call_soon_threadsafe(self._wake_all, topics)

    def listener(self, *topics: str) -> Listener:
        """A listener to `topics` that lasts as long as these notifications: for whoever does so too."""
        listener = Listener()
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)
        return listener

    @contextmanager
    def listen(self, *topics: str) -> Iterator[Listener]:
        """A listener to `topics`, for as long as the context lasts. Start listening first, then look at the store."""
        listener = self.listener(*topics)
        try:
            yield listener
        finally:
            for topic in topics:
                self._forget(topic, listener)

    def close(self) -> None:
        """Send what is still here and leave the others."""
        if self._is_started:
            self._send_gathered()
            self._wire.close()
        self._is_started = False

    def _forget(self, topic: str, listener: Listener) -> None:
        listeners = self._listeners.get(topic, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(topic, None)

    def _wake_all(self, topics: Sequence[str]) -> None:
        for topic in topics:
            for listener in self._listeners.get(topic, ()):
                listener.wake()

    def _send_gathered(self) -> None:
        topics, self._unsent, self._is_gathering = list(self._unsent), {}, False
        if self._is_started and topics:
            self._wire.send(topics)
