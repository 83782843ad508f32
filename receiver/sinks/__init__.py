"""Where events go: one module per kind of sink, all behind the protocol in `base`."""
