"""Every public distribution and transform keeps the contract of the library."""

import pytest
from fixtures import FIXTURES


@pytest.mark.parametrize("name", FIXTURES)
def test_contract(name):
    fixture = FIXTURES[name]
    fixture.check(fixture.constructor, fixture.params, values=fixture.values, skip=fixture.skip)
