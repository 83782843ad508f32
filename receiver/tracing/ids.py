"""The ids of traces and spans: derived from the id of a callback, or those of its caller (W3C Trace Context)."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_MEMBER: Final = (
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_TRACESTATE: Final = re.compile(rf"(?=.{{1,512}}$){_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER}){{0,31}}")


@dataclass(frozen=True, slots=True)
class Caller:
    """The span of whoever sent a callback, from the header `traceparent` (W3C Trace Context)."""

    trace_id: int
    span_id: int
    is_sampled: bool
    state: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Caller | None":
        """The caller that the headers of a callback name; None if they name none, or none that is valid."""
        found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        # Later versions of the header may have more fields, version 00 has not.
        if found is None or (found[1] == "00" and found[5]):
            return None
        state = headers.get("tracestate", "").strip()
        return cls(
            trace_id=int(found[2], 16),
            span_id=int(found[3], 16),
            is_sampled=bool(int(found[4], 16) & 1),
            state=state if _TRACESTATE.fullmatch(state) else None,
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace of one callback. `callback` and `processing` are the ids of its spans that other spans name."""

    id: int
    is_sampled: bool
    callback: int
    processing: int
    state: str | None = None

    def traceparent(self, span_id: int) -> str:
        """The header that names a span of this trace as the parent of what its reader does."""
        return f"00-{self.id:032x}-{span_id:016x}-{self.is_sampled:02x}"


def trace_of(callback_id: str, ratio: float, caller: Caller | None = None) -> Trace:
    """The trace of a callback: a part of the trace of `caller`, or without a caller a trace of its own."""
    digest = hashlib.sha256(callback_id.encode()).digest()
    # An id of zeros is not valid.
    callback, processing = (int.from_bytes(part) or 1 for part in (digest[16:24], digest[24:]))
    if caller is not None:
        return Trace(caller.trace_id, caller.is_sampled, callback, processing, caller.state)
    trace_id = int.from_bytes(digest[:16]) or 1
    # As the sampler TraceIdRatioBased of OpenTelemetry decides.
    is_sampled = trace_id & (2**64 - 1) < round(ratio * 2**64)
    return Trace(trace_id, is_sampled, callback, processing)
