"""Images of nixery_core in buckets of S3, and of every server that speaks its protocol.

>>> from nixery_core import open_backend
>>> open_backend("s3://my-bucket/images", key="...", secret="...", endpoint_url="http://127.0.0.1:9000")
S3Backend('s3://my-bucket/images')
"""

from __future__ import annotations

from nixery_backend_s3._backend import S3Backend, open_backend

__all__ = ["S3Backend", "open_backend"]
