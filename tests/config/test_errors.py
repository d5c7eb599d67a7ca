"""Errors on their way between processes."""

import pickle

import pytest

from paft_ray.config import errors
from paft_ray.config.errors import PaftError

ALL = [each for each in vars(errors).values() if isinstance(each, type)]


@pytest.mark.parametrize("kind", ALL)
def test_an_error_says_what_it_said_whatever_is_appended_to_it_on_the_way(kind: type[PaftError]):
    error = kind("value, rule, remedy")
    error.args = (f"{error.args[0]}\nTo change retry attempts ...",)  # as Ray Data does
    assert str(pickle.loads(pickle.dumps(error))) == "value, rule, remedy"
