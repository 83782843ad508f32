"""receiver: stores Bandwidth's message callbacks, and knows the status of every message."""
