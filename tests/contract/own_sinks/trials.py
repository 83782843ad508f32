"""The sinks of `shelf` on trial, as a stranger would do it; run by test_conformance_kit.py."""

import pytest
import shelf

from receiver.testing import Place, SinkConformance


class Trials(SinkConformance):
    @pytest.fixture
    def place(self) -> Place:
        shelf.shelf = here = shelf.Shelf()
        return Place(
            settings={"type": f"shelf:{type(self).__name__.removeprefix('Test')}", "timeout": "2s"},
            arrived=lambda: here.ids,
            down=here.take_down,
            up=here.put_up,
            freeze=here.answers.clear,
            thaw=here.answers.set,
            refuse=lambda publication: here.refused.add(publication.id),
        )


class TestHomeless(SinkConformance):
    pass


class TestSound(Trials):
    patience = 60.0


class TestStreaming(Trials):
    patience = 60.0


# found out by what does not happen, and nothing that could take long comes before
AT_ONCE = {
    shelf.Forgets,
    shelf.IsDownForPoison,
    shelf.LeavesFiles,
    shelf.LeavesTasks,
    shelf.NeverRecovers,
    shelf.NeverStops,
}

for kind in {*shelf.Sound.__subclasses__(), *shelf.Streaming.__subclasses__()} - {shelf.Streaming}:
    patience = 1.5 if kind in AT_ONCE else 10.0
    globals()[f"Test{kind.__name__}"] = type(f"Test{kind.__name__}", (Trials,), {"patience": patience})
