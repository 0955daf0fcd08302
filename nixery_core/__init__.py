"""Container images from Nix package names, kept in any storage that fsspec reaches.

.. code-block:: python

    from nixery_core import ImageBuilder, ImageSpec, NixpkgsChannel, open_backend

    builder = ImageBuilder(NixpkgsChannel("nixos-unstable"), open_backend("file:///var/lib/images"))
    image = builder.build(ImageSpec.parse("shell/git/htop"))
    print(image.descriptor.digest)
"""

from nixery_core._batch import BatchResult
from nixery_core.builder import ImageBuilder
from nixery_core.cache_source import BinaryCacheSource
from nixery_core.cancellation import Cancellation
from nixery_core.errors import NixeryError
from nixery_core.events import BuildEvent
from nixery_core.image import Image, ImagePlan
from nixery_core.index.channel import ChannelIndex
from nixery_core.index.hydra import HydraIndex
from nixery_core.index.index_file import IndexFile
from nixery_core.index.package_index import PackageIndex
from nixery_core.layering import DominatorLayerer, PerPathLayerer, SingleLayerer, UnitsLayerer
from nixery_core.layering.layerer import Layerer, LayerPlan
from nixery_core.layering.popularity import Popularity
from nixery_core.model.closure import Closure
from nixery_core.model.digest import Digest
from nixery_core.model.image import CustomFile, ImageSpec
from nixery_core.model.names import MetaPackage
from nixery_core.model.oci import ContainerConfig, Descriptor
from nixery_core.model.platform import Platform
from nixery_core.model.storepath import StorePath
from nixery_core.nix import Nix
from nixery_core.sources import GitRepository, LocalPath, NixpkgsChannel, PackageSource, Pin
from nixery_core.storage.backend import Backend
from nixery_core.storage.plugins import open_backend
from nixery_core.stores.binary_cache import BinaryCache

__all__ = [
    "Backend",
    "BatchResult",
    "BinaryCache",
    "BinaryCacheSource",
    "BuildEvent",
    "Cancellation",
    "ChannelIndex",
    "Closure",
    "ContainerConfig",
    "CustomFile",
    "Descriptor",
    "Digest",
    "DominatorLayerer",
    "GitRepository",
    "HydraIndex",
    "Image",
    "ImageBuilder",
    "ImagePlan",
    "ImageSpec",
    "IndexFile",
    "LayerPlan",
    "Layerer",
    "LocalPath",
    "MetaPackage",
    "Nix",
    "NixeryError",
    "NixpkgsChannel",
    "PackageIndex",
    "PackageSource",
    "PerPathLayerer",
    "Pin",
    "Platform",
    "Popularity",
    "SingleLayerer",
    "StorePath",
    "UnitsLayerer",
    "open_backend",
]
