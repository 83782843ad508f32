"""Reconciliation: messages of which nothing final was heard are asked for at the provider, in a worker."""
