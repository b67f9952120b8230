"""The web application behind ``gpulayers demo``; for this machine alone."""

from __future__ import annotations

import base64
import binascii
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

import gpulayers
from gpulayers._types import is_dict
from gpulayers.demo.look import Look
from gpulayers.errors import GPULayersError
from gpulayers.training import Split

if TYPE_CHECKING:
    from flask import Flask
    from flask.typing import ResponseReturnValue

__all__ = ["HOSTS", "make_app"]

HOSTS = ("127.0.0.1", "localhost")
LARGEST = 1 << 20  # bytes of a request
MOST_SIDE = 512  # pixels of a drawing
_HEADERS = {
    # nothing is loaded from elsewhere, and nobody puts the page into a frame
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; "
    "form-action 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _BadRequestError(Exception):
    """What a request lacks, for an answer with status 400."""


def _static(name: str) -> bytes:
    """A file of the page, read whole: a response that nobody reads would leave it open."""
    return (resources.files("gpulayers.demo") / "static" / name).read_bytes()


def make_app(look: Look, digits: Split | None = None) -> Flask:
    """Return the application.

    A request whose ``Host`` or ``Origin`` is not this machine is refused, so that no page from
    elsewhere reaches it through a name that points here (DNS rebinding).

    Parameters
    ----------
    look : Look
    digits : Split, optional
        Images (n, 28, 28, 1) uint8 to show examples of.

    Raises
    ------
    GPULayersError
        If Flask is not installed.
    """
    try:
        from flask import Flask, jsonify, request
    except ImportError:
        raise GPULayersError("the demo needs Flask: pip install flask") from None
    from werkzeug.exceptions import HTTPException

    app = Flask("gpulayers.demo", static_folder="static", static_url_path="/static")
    app.config["MAX_CONTENT_LENGTH"] = LARGEST

    def refuse(status: int, text: str) -> ResponseReturnValue:
        return jsonify(error=text), status

    @app.before_request
    def only_this_machine() -> ResponseReturnValue | None:
        if _host_name(request.headers.get("Host", "")) not in HOSTS:
            return refuse(403, "this page answers to 127.0.0.1 and localhost alone")
        origin = request.headers.get("Origin")
        if origin is not None and origin != request.host_url.rstrip("/"):
            return refuse(403, "requests from other pages are refused")
        return None

    @app.after_request
    def harden(response: Any) -> Any:
        response.headers.update(_HEADERS)
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> ResponseReturnValue:
        return refuse(error.code or 500, error.description or error.name)

    @app.errorhandler(_BadRequestError)
    def bad_request(error: _BadRequestError) -> ResponseReturnValue:
        return refuse(400, str(error))

    @app.get("/")
    def page() -> ResponseReturnValue:
        return app.response_class(_static("index.html"), mimetype="text/html")

    @app.get("/favicon.ico")
    def icon() -> ResponseReturnValue:
        return app.response_class(_static("icon.svg"), mimetype="image/svg+xml")

    @app.get("/api/network")
    def network() -> ResponseReturnValue:
        examples = 0 if digits is None else len(digits)
        return jsonify(**look.describe(), examples=examples, version=gpulayers.__version__)

    @app.get("/api/example/<int:i>")
    def example(i: int) -> ResponseReturnValue:
        if digits is None or i >= len(digits):
            return refuse(404, f"there is no example {i}")
        image = base64.b64encode(digits.images[i].tobytes()).decode("ascii")
        return jsonify(image=image, label=int(digits.labels[i]))

    @app.post("/api/look")
    def looked() -> ResponseReturnValue:
        drawing, explain = _drawing(request.get_json(silent=True))
        try:
            return jsonify(look.at(drawing, explain))
        except ValueError as error:  # shapes, classes: what the caller sent
            raise _BadRequestError(str(error)) from error

    return app


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    name, _, port = host.partition(":")
    return name.lower() if not port or port.isdecimal() else ""


def _drawing(body: Any) -> tuple[np.ndarray, int | None]:
    """Check a request: ``{"rows": r, "cols": c, "pixels": base64, "explain": class or null}``."""
    if not is_dict(body):
        raise _BadRequestError("expected a JSON object with rows, cols and pixels")
    rows, cols = _side(body, "rows"), _side(body, "cols")
    pixels = body.get("pixels")
    if not isinstance(pixels, str):
        raise _BadRequestError("pixels must be a base64 string of one byte a pixel")
    try:
        content = base64.b64decode(pixels, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _BadRequestError(f"pixels is not base64: {error}") from error
    if len(content) != rows * cols:
        raise _BadRequestError(
            f"pixels must hold rows * cols = {rows * cols} bytes, got {len(content)}"
        )
    explain = body.get("explain")
    if explain is not None and (not isinstance(explain, int) or isinstance(explain, bool)):
        raise _BadRequestError(f"explain must be a class's number or null, got {explain!r}")
    return np.frombuffer(content, np.uint8).reshape(rows, cols), explain


def _side(body: dict[str, Any], name: str) -> int:
    side = body.get(name)
    if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= MOST_SIDE:
        raise _BadRequestError(f"{name} must be an integer in 1..{MOST_SIDE}, got {side!r}")
    return side
