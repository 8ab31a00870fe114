"""Small helpers shared by everything above: attribute dictionaries, names to objects, URLs, logs, safe writes."""

from .util import EasyDict, make_cache_dir_path

__all__ = ['EasyDict', 'make_cache_dir_path']
