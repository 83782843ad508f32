"""Conformance tests of the sinks in `shelf`, as in somebody else's project; test_conformance_kit.py runs them."""

import pytest
import shelf

from receiver.testing import SinkConformance, SinkTarget


class ShelfConformance(SinkConformance):
    @pytest.fixture
    def target(self) -> SinkTarget:
        shelf.shelf = current = shelf.Shelf()
        return SinkTarget(
            settings={"type": f"shelf:{type(self).__name__.removeprefix('Test')}", "timeout": "2s"},
            arrived=lambda: current.ids,
            down=current.take_down,
            up=current.put_up,
            freeze=current.answers.clear,
            thaw=current.answers.set,
            refuse=lambda publication: current.refused.add(publication.id),
        )


class TestWithoutTarget(SinkConformance):
    pass


class TestSound(ShelfConformance):
    timeout = 60.0


class TestStreaming(ShelfConformance):
    timeout = 60.0


# These fail because something does not happen, and nothing slow comes before: a short timeout is enough.
SHORT_TIMEOUT = {
    shelf.Forgets,
    shelf.IsDownForPoison,
    shelf.LeavesFiles,
    shelf.LeavesTasks,
    shelf.NeverRecovers,
    shelf.NeverStops,
    shelf.StoresEachOnce,
}

for kind in {*shelf.Sound.__subclasses__(), *shelf.Streaming.__subclasses__()} - {shelf.Streaming}:
    timeout = 1.5 if kind in SHORT_TIMEOUT else 10.0
    globals()[f"Test{kind.__name__}"] = type(f"Test{kind.__name__}", (ShelfConformance,), {"timeout": timeout})
