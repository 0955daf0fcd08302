"""The promises of a storage backend as tests: what every backend passes, shipped ones and yours.

.. code-block:: python

    import pytest
    from nixery_core.testing import BackendTests

    class TestMyBackend(BackendTests):
        @pytest.fixture
        def backend(self, tmp_path):
            return MyBackend(tmp_path)

pytest and hypothesis have to be installed.  Each test gets a backend over an empty storage of its own.
"""

from __future__ import annotations

from nixery_core.testing._suite.blobs import BlobTests
from nixery_core.testing._suite.capabilities import CapabilityTests
from nixery_core.testing._suite.faults import FaultTests
from nixery_core.testing._suite.keys import BAD_KEYS, KeyTests
from nixery_core.testing._suite.model import ModelTests
from nixery_core.testing._suite.objects import ObjectTests
from nixery_core.testing._suite.reading import ReadingTests

__all__ = ["BAD_KEYS", "BackendTests"]


class BackendTests(BlobTests, ObjectTests, ReadingTests, CapabilityTests, KeyTests, ModelTests, FaultTests):
    """Subclass it and give it a fixture ``backend``.

    ``large``
        Size of the large blob, bytes: more than your backend sends at once.
    ``other_processes``
        Whether other processes find the same storage by its reference; False for memory.
    ``proxied``
        A fixture that returns your backend behind a
        :class:`~nixery_core.testing.faulty_proxy.FaultyProxy`, and that proxy: for a storage that is
        reached by TCP.  Without it the tests of bad connections are skipped.
    """
