"""Every overlay passes every check."""

import pytest
from checks import CHECKS
from manifests import OVERLAYS, build


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_passes(overlay: str, name: str) -> None:
    assert list(CHECKS[name](build(overlay))) == []
