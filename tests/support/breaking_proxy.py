"""A connection between the command and the service that breaks, or stalls, when a test says so."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class BreakingProxy:
    """Passes bytes on to a port, and counts those that go up."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent = 0
        """Bytes towards the service, of all connections."""
        self._before_passing: Callable[[], bool] = lambda: True
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def allow(self, count: int, *, then_stall: threading.Event | None = None) -> None:
        """Lets so many more bytes up; then every connection is reset, at once or when the event is set."""
        limit = self.sent + count

        def check() -> bool:
            if self.sent < limit:
                return True
            if then_stall is None:
                return False
            then_stall.wait()
            return False

        self._before_passing = check

    def mend(self) -> None:
        """Lets everything through again."""
        self._before_passing = lambda: True

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            self._sockets |= {client, server}
            for source, target, counted in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pass_on, args=(source, target, counted))
                self._threads.append(thread)
                thread.start()

    def stop_serving(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        """Break what there is, once nothing is served any more."""
        for each in self._sockets:
            _reset(each)
        for thread in self._threads:
            thread.join()

    def _pass_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while block := source.recv(65536):
                if counted and not self._before_passing():
                    break
                if counted:  # before the service can answer
                    with self._lock:
                        self.sent += len(block)
                target.sendall(block)
        _reset(source)
        _reset(target)


@contextmanager
def breaking_proxy(port: int) -> Iterator[BreakingProxy]:
    proxy = BreakingProxy(port)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop_serving()
        thread.join()
        proxy.close()


def _reset(connection: socket.socket) -> None:
    """As a broken network does: no goodbye."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
