"""Reconciliation: messages of which nothing final was heard are looked up at the provider, in a worker."""
