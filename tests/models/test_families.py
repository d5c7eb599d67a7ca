"""Every causal family of the installed transformers: packed, unpacked or refused, never wrong.

Five families in the default tier, all in the slow one. Training is a few gradients without an
engine; what engines add is tested with models that every machine can train.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from families import TABLE, build_family, examine, family_names, family_tokenizer
from paft_ray.config.errors import ConfigError
from paft_ray.models.generation import generate
from paft_ray.models.load import adapter_files, add_adapter, load_adapter
from paft_ray.models.logprobs import ForwardPass, answer_logprobs, score_sequences
from paft_ray.models.meta import check_adapters
from paft_ray.models.packing import TokenSequence, build_row
from paft_ray.models.row_check import read_apart

QUICK = ("llama", "gemma3_text", "lfm2", "granitemoehybrid", "bert")
CPU = torch.device("cpu")


def sequences(common: int) -> list[TokenSequence]:
    """Contexts of several lengths with two answers each, perhaps with a common beginning."""
    generator = torch.Generator().manual_seed(common)

    def draw(count: int) -> list[int]:
        return torch.randint(12, 100, (count,), generator=generator).tolist()

    start, found = draw(common), []
    for length in (9, 26, 5, 14):
        context = start + draw(length)
        for _ in range(2):
            ids, last = context + draw(2), len(context) - 1
            places = (last, last + 1, last + 2)
            found.append(TokenSequence(tuple(ids), places, tuple(draw(3)), (0, 1, 2)))
    return found


def alone(model: PreTrainedModel, sequence: TokenSequence) -> torch.Tensor:
    """Log-probabilities by nothing but the model's own forward pass on one text."""
    logits = model(input_ids=torch.tensor([sequence.input_ids]), use_cache=False).logits[0]
    return logits.log_softmax(-1)[list(sequence.positions), list(sequence.targets)]


def check_scores(model: PreTrainedModel, reference: PreTrainedModel, packing: bool) -> None:
    for common in (0, 7):
        given = sequences(common)
        found = score_sequences(model, given, ForwardPass("float32", 400, packing))
        with torch.inference_mode():
            expected = [alone(reference, sequence).tolist() for sequence in given]
        for scores, own in zip(found, expected, strict=True):
            assert list(scores.values()) == pytest.approx(own, abs=2e-5)


def check_gradients(model: PreTrainedModel, reference: PreTrainedModel, packing: bool) -> None:
    """The gradient of rows is that of their sequences."""
    given = sequences(3)
    members = [[*range(len(given))]] if packing else [[n] for n in range(len(given))]
    for rows in members:
        (-answer_logprobs(model, build_row(given, rows), CPU).sum()).backward()
    for sequence in given:
        (-alone(reference, sequence).sum()).backward()
    named = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            expected = named[name].grad
            assert expected is not None
            size = max(float(expected.norm()), 1e-3)
            assert float((parameter.grad - expected).norm()) < 2e-3 * size, name


def check_texts(model: PreTrainedModel, together: bool) -> None:
    contexts = [sequence.input_ids for sequence in sequences(0)[::2]]
    tokenizer = family_tokenizer()
    one_by_one = [generate(model, tokenizer, [context], 4)[0] for context in contexts]
    if together:
        assert generate(model, tokenizer, contexts, 4) == one_by_one


def check_adapter(name: str, folder: Path) -> None:
    """An adapter scores the same once it was written and read again."""
    base = build_family(name)
    # peft wraps no routers, refuses the output of state-space layers and parts of fused layers, and
    # loses what lies in experts that transformers renames: a training that does is not verified
    targets = {
        path
        for path, module in base.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D", "FalconLinear")
        and not re.search(r"router|gate|expert|lm_head|out_proj|index|compress|mlp|feed", path)
    }
    modules = sorted(targets) or "all-linear"
    lora: dict[str, Any] = {"peft_type": "LORA", "r": 2, "target_modules": modules}
    model = add_adapter(base, lora, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    for file, content in adapter_files(model, trained, "base").items():
        (folder / file).write_bytes(content)
    again = load_adapter(build_family(name), str(folder), "again")
    reading = ForwardPass("float32", 400, packing=False)
    given = sequences(0)
    model.eval()
    assert score_sequences(again, given, reading) == score_sequences(model, given, reading)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in family_names()],
)
@pytest.mark.filterwarnings("ignore")
def test_family_is_right_as_the_table_says(name: str, tmp_path: Path, one_thread: None) -> None:
    family, model = examine(name)
    assert family.line() in TABLE.read_text(encoding="utf-8").splitlines(), (
        "docs/families.md is stale: run `python tests/families.py`"
    )
    if model is None:
        return
    packing = family.rows == "packed"
    reference = build_family(name)
    read_apart(reference)
    check_scores(model, reference, packing)
    check_texts(model, together=family.texts == "in batches")
    check_adapter(name, tmp_path)
    for each in (model, reference):
        each.requires_grad_(True)
    check_gradients(model, reference, packing)


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_a_family_that_is_not_causal_is_refused_before_work(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    from families import family_config

    family_config(name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"\({name}\) is (an encoder|a bidirectional)"):
        check_adapters(str(tmp_path), None, [None], 0)
