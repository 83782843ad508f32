"""The destinations of events: one module per type of sink, all with the interface in `base`."""
