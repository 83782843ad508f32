"""A Bandwidth stand-in for development and tests: both generations of its messages API, and its callbacks."""
