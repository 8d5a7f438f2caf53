"""Where files are: one protocol for stores, images and records, on local disks and in buckets."""

from leanrecon.places.location import Location, LocationLike, as_location, elsewhere
from leanrecon.places.place import Place

__all__ = ["Location", "LocationLike", "Place", "as_location", "elsewhere"]
