"""Leases under any interleaving of any number of registries, with clocks that agree on nothing."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nixery_core.server.leases import Leases, generations
from nixery_core.storage.plugins import open_backend

KEY, TTL = "c" * 64, 10.0
REPLICAS = st.integers(0, 3)


class LeaseMachine(RuleBasedStateMachine):
    """Four registries want one lease; they look, speak, stop and die in any order.

    The model is the promise: who speaks at least once within each ttl is never followed, so of all
    that do, one holds the lease.
    """

    def __init__(self):
        super().__init__()
        self.backend = open_backend(f"memory://lease-machine-{id(self)}")
        for info in list(self.backend.list("")):
            self.backend.delete(info.key)
        self.time = 0.0
        # each clock has a start of its own
        self.watches = [self.look(number) for number in range(4)]
        self.held = {}
        self.spoke = {}

    def look(self, number):
        return Leases(self.backend, ttl=TTL, clock=lambda: self.time + 1000.0 * number).watch(KEY)

    # eighths of a second add up exactly
    @rule(eighths=st.integers(1, 32))
    def time_passes(self, eighths):
        self.time += eighths / 8

    @rule(number=REPLICAS)
    def acquire(self, number):
        if number in self.held:
            return
        lease = self.watches[number].acquire()
        if lease is not None:
            self.held[number] = lease
            self.spoke[number] = self.time

    @rule(number=REPLICAS)
    def beat(self, number):
        if number in self.held and self.held[number].beat():
            self.spoke[number] = self.time

    @rule(number=REPLICAS)
    def release(self, number):
        if number in self.held:
            self.held.pop(number).release()
            self.spoke.pop(number)

    @rule(number=REPLICAS)
    def die(self, number):
        """The object stays, and nobody speaks for it."""
        self.held.pop(number, None)
        self.spoke.pop(number, None)
        self.watches[number] = self.look(number)

    @invariant()
    def who_speaks_in_time_is_alone(self):
        speaking = [number for number in self.held if self.time - self.spoke[number] < TTL]
        assert len(speaking) <= 1, {number: self.held[number].generation for number in speaking}

    @invariant()
    def the_lease_is_held_once(self):
        assert sum(lease.held() for lease in self.held.values()) <= 1

    @precondition(lambda self: not self.held)
    @rule()
    def a_lease_that_nobody_holds_can_be_had(self):
        """Whoever died, two looks a ttl apart are enough."""
        watch = self.look(0)
        lease = watch.acquire()
        if lease is None:
            self.time += TTL
            lease = watch.acquire()
        assert lease is not None
        lease.release()
        assert generations(self.backend, KEY) == []


LeaseMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_leases = pytest.mark.property(LeaseMachine.TestCase)
