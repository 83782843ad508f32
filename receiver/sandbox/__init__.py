"""A Bandwidth stand-in for development and tests: v1 and v2 of its messages API, and its callbacks."""
