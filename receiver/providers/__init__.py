"""What Bandwidth's callbacks mean: bytes in, normalized events out, and the catalogue of its codes.

`read` takes a callback apart; one module per generation of the API knows the shapes, tables hold the words. Nothing
here touches a database, the network, a clock or a log, and nothing a callback contains makes it raise.
"""

from receiver.providers.bandwidth_codes import CodeEntry, Reason, catalogue, entry, reason
from receiver.providers.parser import read

__all__ = ["CodeEntry", "Reason", "catalogue", "entry", "read", "reason"]
