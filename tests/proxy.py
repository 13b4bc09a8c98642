"""A TCP relay in front of a real server: it can lose answers and be down, as a network can."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.ports import free_ports


class Proxy:
    """Relays to `endpoint` from a loopback port of its own while up.

    Attributes:
        endpoint: its own URL.
        lose_answers: so many of the next answers are read from the server, then dropped with the connection.
    """

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._server = (str(parts.hostname), int(parts.port or 80))
        (self._port,) = free_ports(1)  # nobody takes it while the network is down
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._up = True
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.lose_answers = 0
        self._spawn(self._accept, self._listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def down(self) -> None:
        """Refuse connections and cut those that are open."""
        _hang_up(self._listener)
        self._listener.close()
        with self._lock:
            self._up = False
            for opened in self._open:
                _hang_up(opened)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def up(self) -> None:
        """Be there again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._up = True
        self._spawn(self._accept, self._listener)

    def _spawn(self, act: object, *arguments: object) -> None:
        thread = threading.Thread(target=act, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client = listener.accept()[0]
                self._spawn(self._relay, client)

    def _relay(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._server) as server:
            with self._lock:
                if not self._up:  # it went down between accepting and relaying
                    return
                self._open |= {client, server}
            back = threading.Thread(target=self._answers, args=(server, client), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(65536):
                    server.sendall(data)
            _hang_up(server)
            back.join()
            with self._lock:
                self._open -= {client, server}

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                with self._lock:
                    lost, self.lose_answers = self.lose_answers > 0, max(0, self.lose_answers - 1)
                if lost:
                    break
                client.sendall(data)
        _hang_up(client)


def _hang_up(opened: socket.socket) -> None:
    with suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
