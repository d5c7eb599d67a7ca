"""Several prompts for one answer: an ensemble, and the prompt under which a model is surest."""

import numpy as np
import pyarrow as pa
import pytest

from paft_ray.config import EnsembleSubject, InferencePromptSubject
from paft_ray.evaluation.answers import read_answers, require_paired
from paft_ray.evaluation.comparators import _answered
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.prompts.pool import Origin, Prompt
from paft_ray.tasks.example import Example, Task

EXAMPLES = [Example("e0", {}, "yes"), Example("e1", {}, "no")]
TASK = Task("t", "Say.", ("x",), {}, ("yes", "no"), (), (), ())
LOGPROBS = {  # by prompt and example
    ("p0", "e0"): (0.9, 0.1), ("p1", "e0"): (0.2, 0.8), ("p2", "e0"): (0.3, 0.7),
    ("p0", "e1"): (0.4, 0.6), ("p1", "e1"): (0.45, 0.55), ("p2", "e1"): (0.97, 0.03),
}  # fmt: skip


def scored(seed: int) -> list[dict]:
    return [
        {"seed": seed, "prompt_id": p, "example_id": e, "choice_logprobs": np.log(v).tolist()}
        for (p, e), v in LOGPROBS.items()
    ]


@pytest.mark.parametrize(
    ("comparator", "said"),
    [
        (EnsembleSubject(type="ensemble", of="base", prompts=3), ["no", "yes"]),
        (InferencePromptSubject(type="inference_prompt", of="base", prompts=3), ["yes", "yes"]),
    ],
)
def test_answers_are_made_of_those_under_all_prompts_and_stand_under_each_held_out_one(
    comparator, said
):
    prompts = [Prompt(id, id, id, "", "test", "", Origin(file="f")) for id in ("t0", "t1")]
    grid = Grid([Subject("base", 0, ""), Subject("base", 1, "")], prompts, EXAMPLES)
    table = pa.Table.from_pylist([*scored(0), *scored(1)])
    own = pa.concat_tables([_answered(TASK, comparator, seed, table, grid) for seed in (0, 1)])
    own = own.append_column("split", pa.array(["test"] * own.num_rows))
    label = comparator.label
    answers = read_answers(own, [label])
    require_paired(answers, [label])
    assert answers.grades(label).shape == (2, 2, 2)  # seeds, held-out prompts, examples
    right = [word == example.answer for word, example in zip(said, EXAMPLES, strict=True)]
    assert (answers.grades(label) == right).all()
    assert [answers.predictions[n] for n in answers.prediction_MPE[0, 0]] == said
    if isinstance(comparator, EnsembleSubject):
        mean = np.mean([LOGPROBS[p, "e0"] for p in ("p0", "p1", "p2")], axis=0)
        assert answers.confidence_MPE is not None
        assert answers.confidence_MPE[0, 0, 0] == pytest.approx(mean.max())
