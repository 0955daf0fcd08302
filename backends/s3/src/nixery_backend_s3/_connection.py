"""The bucket and its server, and the client of s3fs that talks to it, one for each process."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import attrs
from fsspec.asyn import sync
from s3fs import S3FileSystem


@attrs.frozen(kw_only=True)
class Place:
    """Which part of which bucket, and how to get there."""

    url: str
    bucket: str
    prefix: str
    """Empty, or ends with a slash."""
    options: Mapping[str, Any] = attrs.field(repr=False)
    """Of S3FileSystem."""
    public_endpoint_url: str | None = None
    """Where clients reach the server, if not where we do."""

    def secrets(self) -> list[str]:
        """Return what no error may show."""
        found = [self.options, self.options.get("client_kwargs") or {}]
        names = ("secret", "password", "token", "aws_secret_access_key", "aws_session_token")
        return [str(options[name]) for options in found for name in names if options.get(name)]


class Connection:
    """The file system of s3fs for one process; a child process gets one of its own."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._fs: S3FileSystem | None = None
        self._owner = 0
        self._endpoint = ""
        self.reached = False
        """Whether the server has ever answered."""
        self.bucket_seen = False
        """Whether the bucket is known to be there."""
        self.obeys = False
        """Whether the server has ever refused to replace an object because it was asked not to."""

    @property
    def fs(self) -> S3FileSystem:
        """The file system; its threads and sockets do not survive a fork, so it is made after it."""
        if self._fs is None or self._owner != os.getpid():
            # s3fs keeps one for equal options, so the connections are shared
            self._fs, self._owner = S3FileSystem(**self._options), os.getpid()
        return self._fs

    def request(self, operation: str, bucket: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request once; the body of the answer is read."""
        fs = self.fs
        answer: dict[str, Any] = sync(fs.loop, _request, fs, operation, bucket, parameters)
        self.reached = True
        return answer

    def sign(self, operation: str, bucket: str, expires: int, parameters: Mapping[str, Any]) -> str:
        """Return a URL for a request; sends nothing."""
        fs = self.fs
        return str(sync(fs.loop, _sign, fs, operation, bucket, expires, parameters))

    def endpoint(self) -> str:
        """Return the address that requests go to; sends nothing."""
        if not self._endpoint:
            fs = self.fs
            client = sync(fs.loop, fs.set_session)
            self._endpoint = str(client.meta.endpoint_url)
        return self._endpoint


async def _request(fs: S3FileSystem, operation: str, bucket: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    await fs.set_session()
    client = await fs.get_s3(bucket)
    method = getattr(client, operation)
    data = parameters.get("Body")
    if data is not None:
        # made here, because a request that is sent again begins at the start; aiohttp sends a file in pieces
        parameters = {**parameters, "Body": io.BytesIO(data)}
    answer: dict[str, Any] = await method(**fs._get_s3_method_kwargs(method, **parameters, Bucket=bucket))
    body = answer.get("Body")
    if body is not None:
        async with body as stream:
            answer["Body"] = await stream.read()
    return answer


async def _sign(fs: S3FileSystem, operation: str, bucket: str, expires: int, parameters: Mapping[str, Any]) -> str:
    await fs.set_session()
    client = await fs.get_s3(bucket)
    allowed = fs._get_s3_method_kwargs(getattr(client, operation), **parameters, Bucket=bucket)
    return str(await client.generate_presigned_url(ClientMethod=operation, Params=allowed, ExpiresIn=expires))
