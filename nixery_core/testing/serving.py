"""An application behind a real server on a free port of this machine, for tests; needs uvicorn."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def served(application: Any, **options: Any) -> Iterator[str]:
    """Serve an ASGI application with uvicorn in a thread; give ``127.0.0.1:<port>``.

    *options* are those of :class:`uvicorn.Config`.  When the context ends, the server has stopped.
    """
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(application, log_level="error", access_log=False, **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                if time.monotonic() > deadline or not thread.is_alive():
                    raise ConnectionError("the server did not start")
                time.sleep(0.01)
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
