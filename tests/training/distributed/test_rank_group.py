"""What a worker does before it joins its group."""

import os
import re
import signal
import socket
from collections.abc import Iterator

import pytest

from paft_ray.config.errors import ConfigError
from paft_ray.training.distributed.rank_group import TerminationNotice, check_interface


@pytest.fixture
def earlier() -> Iterator[list[int]]:
    """Signals that reached the handler that was there before."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_first_sigterm_is_noted_and_the_second_ends_as_before(earlier: list[int]) -> None:
    TerminationNotice.install()
    notice = signal.getsignal(signal.SIGTERM)
    assert isinstance(notice, TerminationNotice)
    TerminationNotice.install()
    assert signal.getsignal(signal.SIGTERM) is notice
    assert not notice.received
    os.kill(os.getpid(), signal.SIGTERM)
    assert notice.received
    assert earlier == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert earlier == [signal.SIGTERM]


def test_interface_must_be_one_of_this_node() -> None:
    there = [name for _, name in socket.if_nameindex()]
    check_interface(there[0])
    with pytest.raises(ConfigError, match=rf"'none-such', only {re.escape(', '.join(there))}"):
        check_interface("none-such")
