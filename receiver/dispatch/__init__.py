"""Publishes the events of the log to the sinks, in a worker process."""
