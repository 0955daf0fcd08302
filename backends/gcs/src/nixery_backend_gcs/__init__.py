"""Images of nixery_core in buckets of Google Cloud Storage.

>>> from nixery_core import open_backend
>>> open_backend("gs://my-bucket/images")
ObjectStoreBackend('gs://my-bucket/images')
"""

from __future__ import annotations

from nixery_backend_gcs._backend import open_backend

__all__ = ["open_backend"]
