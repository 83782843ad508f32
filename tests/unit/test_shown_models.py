"""What is shown of a row: made from rows by the thousand, so that each must be cheap."""

import pytest

from receiver.models.callbacks import CallbackSummaryRead
from receiver.models.columns import Read
from receiver.models.messages import MessageRead, RecipientRead
from receiver.models.sinks import DeadLetterRead
from receiver.models.statistics import StatisticRead


@pytest.mark.parametrize("model", [MessageRead, RecipientRead, CallbackSummaryRead, DeadLetterRead, StatisticRead])
def test_a_row_is_made_without_a_constructor_in_python(model: type[Read]) -> None:
    model.model_rebuild()
    assert model.__pydantic_custom_init__ is False
