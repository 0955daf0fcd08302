"""A small package set and its binary cache, made by Python alone: something to build images of anywhere."""

from nixery_core.demo.cache import DemoCache, write_demo_cache

__all__ = ["DemoCache", "write_demo_cache"]
