"""Networks of the classifier."""

import pytest

from lit_adaptive.modules import Dense


def test_a_layer_without_outputs_is_rejected() -> None:
    with pytest.raises(ValueError, match="widths"):
        Dense(4, 3, hidden=[0])
