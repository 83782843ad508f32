"""HTTP Basic authentication, RFC 7617."""

import base64
import binascii


def basic_pair(authorization: bytes) -> bytes | None:
    """The `user:password` in `Authorization: Basic …`; None for anything else."""
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        return None
