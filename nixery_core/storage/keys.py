"""Every key of the storage, in one place.

.. code-block:: text

    oci-layout, index.json          the storage as an OCI image layout
    blobs/sha256/<hex>              layers, configurations, manifests
    cache/layers/<layer key>        what is known of a layer that was built
    cache/manifests/<cache key>     what is known of an image that was built
    leases/<cache key>/<number>     which registry builds an image right now; rewritten while it
                                    lives and removed at the end, so one not written for an hour is dead
    refs/<name>/_tags/<tag>         which manifest a name and tag stand for
    popularity/images/<digest>      which packages the image with that configuration holds
    popularity/served/<day>/<part>  how often images were served, as one process counted them
    popularity/days/<day>           the parts of a day that is over, in one
    staging/<uuid>                  on the way in; nothing stays here
    gc/...                          what builds and the removal of garbage tell each other
"""

from __future__ import annotations

import uuid

from nixery_core.errors import InvalidDigest, InvalidKey
from nixery_core.model.digest import Digest

OCI_LAYOUT_KEY = "oci-layout"
INDEX_KEY = "index.json"
BLOBS = "blobs/"
STAGING = "staging/"
CACHE = "cache/"
LEASES = "leases/"
LEASE_LIFETIME = 3600.0
"""How long a lease that nobody writes is kept, seconds: no registry is silent for so long and lives."""
LAYERS = "cache/layers/"
"""What is known of layers."""
MANIFESTS = "cache/manifests/"
"""What is known of images."""
REFS = "refs/"
PINS = "gc/pins/"
"""Blobs that someone is about to give a name."""
SWEEPS = "gc/sweeps/"
"""Blobs that someone is about to remove."""
CANDIDATES_KEY = "gc/candidates"
"""Blobs that nothing needed when garbage was last looked for, and since when."""
CLOCKS = "gc/clock/"
"""Objects that are written to ask the storage for the time."""

POPULARITY = "popularity/"
SERVED = "popularity/served/"
"""How often images were served, as single processes counted it."""
DAYS = "popularity/days/"
"""How often images were served, by day."""

_IMAGES = "popularity/images/"
# no component of an image name begins with an underscore
_TAGS = "/_tags/"


def blob_key(digest: Digest) -> str:
    """Return the key of a blob (image-spec, image-layout.md, "Blobs").

    >>> blob_key(Digest.of(b""))
    'blobs/sha256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    return f"{BLOBS}{digest.algorithm}/{digest.hex}"


def layer_cache_key(layer_key: str) -> str:
    """Return the key of the cache entry of a layer; raises InvalidKey."""
    return LAYERS + check_component(layer_key)


def manifest_cache_key(cache_key: str) -> str:
    """Return the key of the cache entry of an image; raises InvalidKey."""
    return MANIFESTS + check_component(cache_key)


def image_packages_key(image: Digest) -> str:
    """Return the key under which the packages of the image with the ID *image* are."""
    return f"{_IMAGES}{image.algorithm}/{image.hex}"


def served_part_key(day: str, part: str) -> str:
    """Return the key of what one process counted on a day, or a part of it; raises InvalidKey.

    >>> served_part_key("2026-11-24", "d5a2-000000")
    'popularity/served/2026-11-24/d5a2-000000'
    """
    return f"{SERVED}{check_component(day)}/{check_component(part)}"


def served_day_key(day: str) -> str:
    """Return the key of what all processes counted on a day; raises InvalidKey."""
    return DAYS + check_component(day)


def ref_key(name: str, tag: str) -> str:
    """Return the key under which *name*:*tag* points to its manifest; raises InvalidKey.

    >>> ref_key("shell/git", "latest")
    'refs/shell/git/_tags/latest'
    """
    key = check_key(f"{REFS}{name}{_TAGS}{check_component(tag)}")
    if parse_ref_key(key) != (name, tag):
        raise InvalidKey(f"no key can be made of the name {name!r} and the tag {tag!r}", key=key)
    return key


def tags_prefix(name: str) -> str:
    """Return what the keys of all tags of a name begin with; raises InvalidKey.

    >>> tags_prefix("shell/git")
    'refs/shell/git/_tags/'
    """
    return check_key(f"{REFS}{name}{_TAGS}"[:-1]) + "/"


def parse_ref_key(key: str) -> tuple[str, str] | None:
    """Return the name and the tag of a key of :func:`ref_key`, or None for any other key.

    >>> parse_ref_key("refs/shell/git/_tags/latest")
    ('shell/git', 'latest')
    """
    if not key.startswith(REFS):
        return None
    name, separator, tag = key.removeprefix(REFS).partition(_TAGS)
    return (name, tag) if separator and name and tag and "/" not in tag else None


def lease_prefix(cache_key: str) -> str:
    """Return what the keys of all generations of a lease begin with; raises InvalidKey."""
    return f"{LEASES}{check_component(cache_key)}/"


def lease_key(cache_key: str, generation: int) -> str:
    """Return the key of one generation of a lease, a number from 1 up; raises InvalidKey.

    >>> lease_key("0a1b", 1)
    'leases/0a1b/1'
    """
    return f"{lease_prefix(cache_key)}{generation}"


def parse_lease_key(key: str) -> tuple[str, int] | None:
    """Return the cache key and the generation of a key of :func:`lease_key`, or None for any other key.

    >>> parse_lease_key("leases/0a1b/1")
    ('0a1b', 1)
    """
    cache_key, _, number = key.removeprefix(LEASES).partition("/")
    if not key.startswith(LEASES) or not cache_key or not (number.isascii() and number.isdigit()):
        return None
    return (cache_key, int(number)) if str(int(number)) == number and number != "0" else None


def parse_blob_key(key: str) -> Digest | None:
    """Return the digest in a key of :func:`blob_key`, or None for any other key.

    >>> parse_blob_key("blobs/sha256/e3b0") is None
    True
    """
    algorithm, slash, hexadecimal = key.removeprefix(BLOBS).partition("/")
    if not key.startswith(BLOBS) or not slash:
        return None
    try:
        return Digest(algorithm, hexadecimal)
    except InvalidDigest:
        return None


def pin_key() -> str:
    """Return a new key for the blobs that a build is about to publish."""
    return f"{PINS}{uuid.uuid4()}"


def sweep_key() -> str:
    """Return a new key for the blobs that a collector is about to remove."""
    return f"{SWEEPS}{uuid.uuid4()}"


def clock_key() -> str:
    """Return a new key for an object whose age is that of now."""
    return f"{CLOCKS}{uuid.uuid4()}"


def staging_key() -> str:
    """Return a new key for something that is on its way into the storage."""
    return f"{STAGING}{uuid.uuid4()}"


def check_staging_key(key: str) -> str:
    """Return *key* if it names something on its way into the storage; raises InvalidKey."""
    if not check_key(key).startswith(STAGING):
        raise InvalidKey(f"{key!r} is not in {STAGING}", key=key, hint="take a key of staging_key()")
    return key


def check_key(key: str) -> str:
    r"""Return *key* if it names an object inside the storage; raises InvalidKey.

    >>> check_key("blobs/../../etc/passwd")
    Traceback (most recent call last):
    nixery_core.errors.InvalidKey: 'blobs/../../etc/passwd' is not a storage key: a component is '..'
    """
    for component in key.split("/"):
        problem = _problem(component)
        if problem:
            raise InvalidKey(f"{key!r} is not a storage key: {problem}", key=key)
    return key


def check_prefix(prefix: str) -> str:
    """Return *prefix* if it is empty, or a key with a ``/`` behind it; raises InvalidKey."""
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidKey(f"{prefix!r} is not a prefix of storage keys", key=prefix, hint="end it with '/'")
        check_key(prefix[:-1])
    return prefix


def check_component(text: str) -> str:
    """Return *text* if it can be one component of a key; raises InvalidKey."""
    problem = "it holds a '/'" if "/" in text else _problem(text)
    if problem:
        raise InvalidKey(f"{text!r} cannot be a component of a storage key: {problem}", key=text)
    return text


def _problem(component: str) -> str:
    if not component:
        return "a component is empty"
    if component in (".", ".."):
        return f"a component is {component!r}"
    if "\\" in component or not component.isprintable():
        return "it holds a backslash or a control character"
    return ""
