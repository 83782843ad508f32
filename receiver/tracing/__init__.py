"""Traces (extra `otel`): one for each callback, from its answer over its processing to each attempt to publish.

Nothing is stored for a trace. Its id, the id of the callback's span and that of its processing are derived from the id
of the callback, which every event names: web process, processor and dispatchers compute the same, wherever they run.
So is the decision whether it is sampled.

Without the setting nobody has a `Tracing`, and OpenTelemetry is not imported.
"""
