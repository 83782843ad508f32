"""Places at which a test can have the process die, as if the power had gone.

`RECEIVER_TEST_FAILPOINT=written` kills it with SIGKILL the first time it gets to the place `written`, `written:3` the
third time. Without that variable a place costs a comparison.
"""

import os
import signal
from typing import Final

_VARIABLE: Final = "RECEIVER_TEST_FAILPOINT"

_name, _, _count = os.environ.get(_VARIABLE, "").partition(":")
_left = int(_count or 1)


def reach(name: str) -> None:
    """Says that the process is at a place."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
