"""Parses the callbacks of providers (bytes in, normalized events out), and holds all that is known of each provider.

`registry` lists the providers, `base` says what a provider is. `bandwidth` parses Bandwidth's callbacks, with a module
for each API version. Nothing here uses a database, the network, a clock or a log, and no callback makes a parser raise,
whatever it contains.
"""

from receiver.providers.registry import PROVIDERS, parse

__all__ = ["PROVIDERS", "parse"]
