"""Names by id answer as the dictionary they were made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unvanish.torch.probe.by_id import ById

_ids = st.integers(0, 2**64 - 1)


@given(st.dictionaries(_ids, st.text(max_size=3)), st.lists(_ids))
def test_it_answers_as_the_dictionary(names: dict[int, str], others: list[int]) -> None:
    packed = ById(names)
    assert dict(packed) == names
    assert len(packed) == len(names)
    for one in [*names, *others]:
        assert packed.get(one) == names.get(one)
        assert packed.get(one, "?") == names.get(one, "?")
        assert (one in packed) == (one in names)


def test_an_empty_name_is_a_name() -> None:
    packed = ById({7: ""})
    assert packed[7] == ""
    with pytest.raises(KeyError):
        packed[8]
