"""What holds for all tests."""

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Let tests interrupt the processes they start: a shell ignores SIGINT for what it runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
