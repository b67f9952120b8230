"""A page on which one draws a digit and watches the network; ``gpulayers demo`` serves it.

app = make_app(Look(network), load_data("mnist-10k").test)
with Server(app, port=0) as server:
    print(server.url)
    server.serve()
"""

from gpulayers.demo.app import make_app
from gpulayers.demo.drawing import centred
from gpulayers.demo.look import Look
from gpulayers.demo.server import Server

__all__ = ["Look", "Server", "centred", "make_app"]
