"""Keeping a storage healthy: finding what is damaged or left over, and removing what no one needs.

:func:`~nixery_core.keeping.fsck.fsck` looks at every object, and
:func:`~nixery_core.keeping.garbage.collect_garbage` removes blobs that no image needs.  Both may run
while images are built and pulled, on this machine or others.
"""
