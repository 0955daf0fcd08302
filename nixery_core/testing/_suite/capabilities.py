"""What only some backends can do."""

from __future__ import annotations

import pytest

from nixery_core.errors import InvalidKey, ObjectNotFound
from nixery_core.model.digest import Digest
from nixery_core.storage.backend import Backend
from nixery_core.storage.capabilities import SupportsLocalFiles, SupportsPublish, SupportsSignedUrls, SupportsUploads
from nixery_core.storage.keys import BLOBS, STAGING, blob_key, staging_key
from nixery_core.testing._suite.base import SuiteBase, noise, skip_without
from nixery_core.testing._suite.keys import BAD_KEYS


class CapabilityTests(SuiteBase):
    """The optional protocols; what a backend has not is skipped."""

    def test_publish(self, backend: Backend) -> None:
        """A staged object becomes a blob, in the place of an equal one, and is no longer staged."""
        if not isinstance(backend, SupportsPublish):
            skip_without(backend, "SupportsPublish")
        data = noise(self.large)
        for _ in range(2):
            staged = staging_key()
            backend.replace(staged, data)
            backend.publish(staged, Digest.of(data))
            assert backend.stat(staged) is None
        assert b"".join(backend.stream(blob_key(Digest.of(data)))) == data

    def test_publish_takes_only_what_is_staged(self, backend: Backend) -> None:
        """A key outside of staging is refused, and a staged object that is not there is not found."""
        if not isinstance(backend, SupportsPublish):
            skip_without(backend, "SupportsPublish")
        backend.create("cache/layers/k", b"x")
        for key in ("cache/layers/k", "staging/../cache/layers/k", "staging/", ""):
            with pytest.raises(InvalidKey):
                backend.publish(key, Digest.of(b"x"))
        with pytest.raises(ObjectNotFound):
            backend.publish(staging_key(), Digest.of(b"x"))
        assert [info.key for info in backend.list("")] == ["cache/layers/k"]

    def test_local_file(self, backend: Backend) -> None:
        """The file of an object holds its bytes; what is not there has none."""
        if not isinstance(backend, SupportsLocalFiles):
            skip_without(backend, "SupportsLocalFiles")
        backend.create("cache/layers/k", b"content")
        path = backend.local_file("cache/layers/k")
        if path is not None:
            assert path.read_bytes() == b"content"
        for key in ("cache/layers/none", "cache/layers", "cache/layers/k/below"):
            assert backend.local_file(key) is None

    def test_uploads_are_listed_and_aborted(self, backend: Backend) -> None:
        """What a large blob has sent so far is an upload or in staging; a cancelled one leaves no upload."""
        if not isinstance(backend, SupportsUploads):
            skip_without(backend, "SupportsUploads")
        writer = backend.open_blob()
        writer.write(noise(self.large))
        for upload in backend.list_uploads():
            assert upload.key.startswith((BLOBS, STAGING))
            assert upload.id
        writer.cancel()
        assert list(backend.list_uploads()) == []

    def test_keys_of_capabilities_are_checked(self, backend: Backend) -> None:
        """No capability takes a key that leads out of the storage."""
        for key in BAD_KEYS:
            if isinstance(backend, SupportsLocalFiles):
                with pytest.raises(InvalidKey):
                    backend.local_file(key)
            if isinstance(backend, SupportsSignedUrls):
                with pytest.raises(InvalidKey):
                    backend.signed_url(key)
