"""Sets the clock of receiver ahead in every process that has this folder on its PYTHONPATH.

The file that `TEST_CLOCK_AHEAD` names has the number of seconds. Only `receiver.clock` is changed: leases, timeouts and
the clock of the database are as on any machine.
"""

import os
from datetime import datetime, timedelta
from pathlib import Path

from receiver import clock

_AHEAD = Path(os.environ["TEST_CLOCK_AHEAD"])
_now = clock.now


def _shifted() -> datetime:
    return _now() + timedelta(seconds=int(_AHEAD.read_text()))


clock.now = _shifted
