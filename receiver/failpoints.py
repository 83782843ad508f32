"""Failpoints: places at which a test kills the process, as a power failure does.

`RECEIVER_TEST_FAILPOINT=written` kills it with SIGKILL when it reaches the failpoint `written` for the first time,
`written:3` for the third time. Without that variable a failpoint costs one comparison.
"""

import os
import signal
from typing import Final

_VARIABLE: Final = "RECEIVER_TEST_FAILPOINT"

_name, _, _count = os.environ.get(_VARIABLE, "").partition(":")
_left = int(_count or 1)

ARMED: Final = bool(_name)
"""Whether there is a failpoint at all."""


def reach(name: str) -> None:
    """Marks a failpoint: kills the process if the variable names it."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
