"""The parts of :class:`nixery_core.testing.backend.BackendTests`."""
