"""Every check refuses what it is there for: a check that passes everything is none."""

import pytest
from checks import CHECKS
from manifests import build
from mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.label)
def test_changed_manifest_is_refused(mutation: Mutation) -> None:
    documents = build(mutation.overlay)
    mutation.apply(documents)
    said = list(CHECKS[mutation.check](documents))
    assert any(mutation.complaint in line for line in said), said


def test_every_check_has_a_mutation() -> None:
    assert {mutation.check for mutation in MUTATIONS} == set(CHECKS)
