"""Networks of the classifier."""

import pytest

from lit_adaptive.modules import Dense


def test_a_layer_without_outputs_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"hidden\[0\] is 0"):
        Dense(4, 3, hidden=[0])
