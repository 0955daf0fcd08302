"""Requests to GCS, each sent once, with the session and the credentials of gcsfs."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import attrs
from fsspec.asyn import sync
from gcsfs.core import GCSFileSystem

from nixery_backend_gcs._errors import Refused


@attrs.frozen
class Answer:
    """What GCS said."""

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=False)


class Connection:
    """The file system of gcsfs for one process; a child process gets one of its own."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._fs: GCSFileSystem | None = None
        self._owner = 0
        self.reached = False
        """Whether the service has ever answered."""
        self.bucket_seen = False
        """Whether the bucket is known to be there."""

    @property
    def fs(self) -> GCSFileSystem:
        """The file system; its threads and sockets do not survive a fork, so it is made after it."""
        if self._fs is None or self._owner != os.getpid():
            # gcsfs keeps one for equal options, so the connections are shared
            self._fs, self._owner = GCSFileSystem(**self._options), os.getpid()
        return self._fs

    @property
    def is_google(self) -> bool:
        """Whether requests go to Google's own servers."""
        return str(self.fs._location).startswith("https://") and ".googleapis.com" in str(self.fs._location)

    def url(self, *path: str, upload: bool = False) -> str:
        """Return the URL of a resource, whose names are quoted: ``b``, bucket, ``o``, object ..."""
        base = f"{self.fs._location}{'/upload' if upload else ''}/storage/v1"
        return "/".join([base, *(quote(part, safe="") for part in path)])

    def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        data: bytes | bytearray | memoryview | None = None,
        good: tuple[int, ...] = (),
    ) -> Answer:
        """Send one request once; raises Refused for a status of 400 and more that is not in *good*."""
        fs = self.fs
        answer: Answer = sync(fs.loop, _send, fs, method, url, dict(params or {}), dict(headers or {}), json, data)
        self.reached = True
        if answer.status >= 400 and answer.status not in good:
            raise Refused(answer.status, answer.body)
        return answer


async def _send(
    fs: GCSFileSystem,
    method: str,
    url: str,
    params: dict[str, str],
    headers: dict[str, str],
    json: object,
    data: bytes | bytearray | memoryview | None,
) -> Answer:
    await fs._set_session()
    async with fs.session.request(
        method,
        url,
        params=fs._get_params(params),
        headers=fs._get_headers(headers),
        json=json,
        # aiohttp sends a file in pieces
        data=None if data is None else io.BytesIO(data),
        timeout=fs.requests_timeout,
        # 308 means that an upload goes on
        allow_redirects=False,
    ) as answer:
        return Answer(answer.status, answer.headers, await answer.read())
