"""The whole way in: the endpoint, the journal behind it, and the processor that reads the journal."""
