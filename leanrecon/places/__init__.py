"""Where files lie: the one protocol under stores, images and records, and its implementation on local disks."""

from leanrecon.places.location import Location, LocationLike, as_location, elsewhere
from leanrecon.places.place import Place

__all__ = ["Location", "LocationLike", "Place", "as_location", "elsewhere"]
