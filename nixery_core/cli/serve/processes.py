"""The processes of ``nixery-core serve``: uvicorn with one application, or with several workers."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import ssl
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import cattrs
import uvicorn

from nixery_core.cli.serve.hints import start_text
from nixery_core.cli.serve.logs import configure_logging
from nixery_core.cli.serve.service import Application, Service, build_service
from nixery_core.cli.serve.settings import ServeSettings
from nixery_core.errors import InvalidConfig
from nixery_core.model.oci import canonical_json
from nixery_core.server.lifecycle import Deadline

SETTINGS_VARIABLE = "NIXERY_SERVE_SETTINGS"
"""How a parent hands its settings to its workers."""
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for the folder of several processes."""

_BACKLOG = 2048


def serve(settings: ServeSettings) -> None:
    """Serve until a signal ends it; raises NixeryError for what can be found out before."""
    configure_logging(settings.log_format, settings.log_level)
    check_tls(settings)
    with bound(settings) as listener:
        port = listener.getsockname()[1]
        if settings.workers == 1:
            _serve_here(settings, listener, port)
            return
        # checks what can be checked, before several processes fail at it again and again
        build_service(settings)
    _serve_there(settings, port)


def check_tls(settings: ServeSettings) -> None:
    """Raise InvalidConfig for a certificate that cannot be used."""
    if not settings.tls_cert:
        return
    for file in (settings.tls_cert, settings.tls_key):
        if not Path(file).is_file():
            raise InvalidConfig(f"there is no file {file}", hint="--tls-cert and --tls-key name files in PEM format")
    try:
        # a key with a pass phrase must not ask for it on the terminal
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_cert, settings.tls_key, "")
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            f"the certificate {settings.tls_cert} or its key cannot be used: {error}",
            hint="both are PEM, the key is plain",
        ) from None


def bound(settings: ServeSettings) -> socket.socket:
    """Return a socket that listens at the address of *settings*; raises InvalidConfig where none can."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise InvalidConfig(
            f"nothing can listen at {settings.host} port {settings.port}: {error.strerror or error}",
            hint="choose others with --host and --port",
        ) from None
    return listener


def _serve_here(settings: ServeSettings, listener: socket.socket, port: int) -> None:
    service = _service(settings, None)
    # uvicorn would take another protocol for a socket of another type
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    server = uvicorn.Server(uvicorn.Config(service.application, **_options(settings)))
    print(start_text(settings, port), flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        # uvicorn has stopped in good order, and passes the signal on
        return


def _serve_there(settings: ServeSettings, port: int) -> None:
    with tempfile.TemporaryDirectory(prefix="nixery-core-metrics-") as folder:
        os.environ[SETTINGS_VARIABLE] = canonical_json(cattrs.unstructure(settings)).decode()
        os.environ[METRICS_VARIABLE] = folder
        print(start_text(settings, port), flush=True)
        try:
            uvicorn.run(
                f"{__name__}:worker",
                factory=True,
                host=settings.host,
                port=settings.port,
                workers=settings.workers,
                **_options(settings),
            )
        except KeyboardInterrupt:
            return
        finally:
            del os.environ[SETTINGS_VARIABLE], os.environ[METRICS_VARIABLE]


def worker() -> Application:
    """Return the application of a worker, in its process."""
    settings = cattrs.structure(json.loads(os.environ[SETTINGS_VARIABLE]), ServeSettings)
    configure_logging(settings.log_format, settings.log_level)
    return _service(settings, os.environ[METRICS_VARIABLE]).application


def _service(settings: ServeSettings, metrics_folder: str | None) -> Service:
    service: Service

    def on_start() -> None:
        _begin_at_signals(service.deadline)

    service = build_service(settings, metrics_folder=metrics_folder, on_start=on_start)
    return service


def _begin_at_signals(deadline: Deadline) -> None:
    """Let the time run from the signal on: uvicorn waits for requests before it tells the application."""
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(signum: int, frame: FrameType | None, before: Any = before) -> None:
            deadline.begin()
            if callable(before):
                before(signum, frame)

        signal.signal(number, handle)


def _options(settings: ServeSettings) -> dict[str, Any]:
    return {
        "log_config": None,
        "access_log": False,
        "lifespan": "on",
        "server_header": False,
        "backlog": _BACKLOG,
        "timeout_graceful_shutdown": max(math.ceil(settings.stop_timeout), 1),
        "ssl_certfile": settings.tls_cert or None,
        "ssl_keyfile": settings.tls_key or None,
    }
