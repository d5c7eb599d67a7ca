"""Who keeps which part of the state: everything once, in equal parts, the same on every rank."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft_ray.config.errors import TrainingError
from paft_ray.training.state.shards import (
    bytes_needed,
    cut_files,
    deal_owners,
    file_names,
    refuse_small_disk,
)

sizes_of_tensors = st.lists(st.integers(1, 1000), min_size=1, max_size=60).map(
    lambda sizes: {f"t{index}": size for index, size in enumerate(sizes)}
)


@given(sizes_of_tensors, st.integers(1, 9))
def test_owners_differ_by_no_more_than_one_tensor(sizes, ranks):
    owners = deal_owners(sizes, ranks, small_state=0)
    assert list(owners) == list(sizes)
    loads = [0] * ranks
    for name, rank in owners.items():
        loads[rank] += sizes[name]
    assert max(loads) - min(loads) <= max(sizes.values())


@given(sizes_of_tensors, st.integers(1, 9), st.randoms())
def test_owners_do_not_depend_on_the_order_of_names(sizes, ranks, rng):
    shuffled = list(sizes.items())
    rng.shuffle(shuffled)
    assert deal_owners(dict(shuffled), ranks, 0) == deal_owners(sizes, ranks, 0)


def test_owner_of_a_small_state_is_rank_0_alone():
    sizes = {"a": 60, "b": 40}
    assert set(deal_owners(sizes, ranks=4, small_state=101).values()) == {0}
    assert set(deal_owners(sizes, ranks=4, small_state=100).values()) == {0, 1}


@given(sizes_of_tensors, st.integers(1, 3000))
def test_files_hold_every_name_once_in_order_and_no_more_than_they_may(sizes, most):
    files = cut_files(sizes, most)
    assert [name for file in files for name in file] == list(sizes)
    assert all(len(file) == 1 or sum(sizes[name] for name in file) <= most for file in files)
    for file, after in pairwise(files):
        assert sum(sizes[name] for name in file) + sizes[after[0]] > most


def test_file_names_are_numbered_through_over_ranks():
    assert file_names("ab", [1, 2, 0], 0) == ["state-ab-00001-of-00003.safetensors"]
    assert file_names("ab", [1, 2, 0], 1) == [
        "state-ab-00002-of-00003.safetensors",
        "state-ab-00003-of-00003.safetensors",
    ]
    assert file_names("ab", [1, 2, 0], 2) == []


@pytest.mark.parametrize(("there", "needed"), [(0, 307), (1, 207), (3, 7), (9, 7)])
def test_bytes_needed_are_those_of_one_checkpoint_more_than_stay_and_the_result(there, needed):
    assert bytes_needed(state=100, result=7, keep=2, there=there) == needed


def test_disk_that_is_too_small_is_refused_with_what_is_needed_and_what_is_there():
    refuse_small_disk(needed=100, free=100, where="/data")
    with pytest.raises(TrainingError, match=r"/data has 1\.5 MB free.* need 96\.0 GB: free space"):
        refuse_small_disk(needed=96_000_000_000, free=1_500_000, where="/data")
