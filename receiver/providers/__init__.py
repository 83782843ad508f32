"""Parses Bandwidth's callbacks (bytes in, normalized events out), and holds the catalogue of its codes.

`parse` returns the elements of a callback. One module per API version knows its shapes. Nothing here uses a database,
the network, a clock or a log, and no callback makes it raise, whatever it contains.
"""

from receiver.providers.bandwidth_codes import CodeEntry, Reason, catalogue, entry, reason
from receiver.providers.parser import parse

__all__ = ["CodeEntry", "Reason", "catalogue", "entry", "parse", "reason"]
