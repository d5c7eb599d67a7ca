"""What an extracted order is worth: the share of its fields that are right."""

import json
from collections.abc import Mapping


def score(fields: Mapping[str, str], answer: str, text: str) -> float:
    """Compare the JSON that the model wrote with the right one.

    Args:
        fields: The example's fields by slot, here `message`.
        answer: The right JSON.
        text: What the model wrote.
    """
    expected = json.loads(answer)
    try:
        found = json.loads(text)
    except ValueError:
        return 0.0
    if not isinstance(found, dict) or found.keys() - expected.keys():
        return 0.0
    return sum(found.get(name) == value for name, value in expected.items()) / len(expected)
