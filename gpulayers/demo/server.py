"""Serving the demo on the loopback address, never on another."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING

from gpulayers.errors import GPULayersError

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["Server"]

ADDRESS = "127.0.0.1"


class Server:
    """An application on a port of 127.0.0.1.

    Parameters
    ----------
    app : Flask
    port : int
        0 takes any free one.

    Attributes
    ----------
    port : int
        The port taken.
    url : str

    Raises
    ------
    GPULayersError
        If the port is taken or may not be used.
    """

    def __init__(self, app: Flask, port: int = 0) -> None:
        from werkzeug.serving import make_server

        taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # elsewhere it would share the port with another program
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((ADDRESS, port))
            taken.listen()
        except OSError as error:
            taken.close()
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
            raise GPULayersError(f"port {port} {why}; --port 0 takes any free one") from error
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for every request
        with taken:  # the server works on a copy of the socket
            self.port = int(taken.getsockname()[1])
            self._server = make_server(ADDRESS, self.port, app, threaded=True, fd=taken.fileno())
        self.url = f"http://{ADDRESS}:{self.port}/"
        self._thread: threading.Thread | None = None

    def serve(self) -> None:
        """Answer requests until `close`, or Ctrl-C."""
        self._server.serve_forever()

    def start(self) -> Server:
        """Answer requests in a thread of its own; return self."""
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop answering and give the port back."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
