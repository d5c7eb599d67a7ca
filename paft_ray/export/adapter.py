"""Exports an adapter, a merged model, or an MLflow pyfunc, as an artifact in a folder of its own.

`plan_export` refuses what cannot be exported before `export` writes anything. No Ray.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_ray.config import Training
from paft_ray.config.errors import ArtifactError, ConfigError, one_line
from paft_ray.models.base_model import prepare_base
from paft_ray.models.full import SHARD
from paft_ray.models.load import ADAPTER_FOLDER, MODEL_FOLDER, load_tokenizer
from paft_ray.models.peft_check import puts_tokens_before
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.report import card_figures
from paft_ray.runs.context import RunContext
from paft_ray.runs.opening import older_rules_of
from paft_ray.serving.card import CARD, Form, render_card
from paft_ray.serving.folder import model_config, pyfunc_files
from paft_ray.serving.record import TrainedAdapter
from paft_ray.storage.artifacts import ArtifactWriter, load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage, require_writable
from paft_ray.training.identity import find_trained

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from paft_ray.models.packing import TokenSequence

_PROBES = 4
MERGE_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference in mean answer loss between base and adapter in fp32 and the merged model, by
the type of its weights, as a share of the loss or, below 1, in nats."""


@dataclass(frozen=True)
class ExportPlan:
    """A checked export: its content and its folder."""

    context: RunContext
    trained: TrainedAdapter
    kind: Form
    out: Storage
    identity: str
    reused: bool
    """Whether the folder holds it complete."""
    default: bool
    """Whether the folder is the run's own, which holds nothing else."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An export on storage."""

    variant: str
    seed: int
    kind: Form
    folder: str
    fingerprint: str
    files: tuple[str, ...]
    reused: bool
    verified: dict[str, float] | None
    """Mean answer losses of `base and adapter` and of the `merged` model, for a merged model."""


def plan_export(
    context: RunContext,
    variant: str | None = None,
    seed: int | None = None,
    kind: Form | None = None,
    out: str | None = None,
) -> ExportPlan:
    """Decide what is exported and where; refuse what cannot be exported.

    Args:
        context: The run.
        variant: Label of a variant; by default `paft`, or the only one.
        seed: Seed of the training; by default the first one of the configuration.
        kind: `merged` for a whole model with the adapter merged into its weights, or `pyfunc` for
            an MLflow pyfunc; by default the adapter or model that was trained.
        out: Folder or URI; by default `runs/<name>/export/<training>/<kind>/`.

    Raises:
        ConfigError: The variant is not trained, cannot be merged, or `out` holds something else.
        ArtifactError: The training's files are damaged.
    """
    trained = _find(context, variant, seed)
    if kind is None:
        kind = "model" if context.config.model.peft is None else "adapter"
    elif context.config.model.peft is None:
        use, option = ("merge", "merge") if kind == "merged" else ("serve beside a base", "pyfunc")
        raise ConfigError(
            f"model.peft: null trained all weights, so there is no adapter to {use}: export "
            f"without --{option}"
        )
    if kind == "merged":
        _refuse_what_cannot_merge(str((context.config.model.peft or {})["peft_type"]))
    default = context.run_folder.child("export", context.config.called(trained.training), kind)
    identity = fingerprint("export", kind, trained.fingerprint)
    folder, reused = choose_folder(default, out, identity)
    return ExportPlan(context, trained, kind, folder, identity, reused, out is None)


def choose_folder(default: Storage, out: str | None, identity: str) -> tuple[Storage, bool]:
    """Return the folder of an export, `out` or the default, and whether it holds it complete.

    Raises:
        ConfigError: `out` holds something else.
    """
    folder = default if out is None else Storage.open(out, "--out")
    if folder.is_local:
        require_writable(Path(folder.root), "--out")
    manifest = load_manifest(folder, check=True)
    reused = manifest is not None and manifest.fingerprint == identity
    if not reused and out is not None and folder.exists() and folder.names():
        holds = "another export" if manifest is not None else "files that are no complete export"
        raise ConfigError(
            f"--out: {folder.path()} holds {holds} ({', '.join(folder.names()[:3])}, ...): name "
            "an empty or a new folder"
        )
    return folder, reused


def export(plan: ExportPlan) -> Exported:
    """Write a planned export; the card is always written, also where the rest is complete.

    Raises:
        ArtifactError: The merged model does not have the loss of base and adapter.
    """
    verified = None
    writer = ArtifactWriter(plan.out)
    with plan.context.screen.stage(
        f"export {plan.context.config.called(plan.trained.training)}"
    ) as stage:
        if not plan.reused:
            if plan.default:
                plan.out.delete()  # an unfinished export
            if plan.kind == "merged":
                verified = _write_merged(plan, writer)
            else:
                _write_files(plan, writer)
            writer.commit(plan.identity, {"verified": verified} if verified else {})
        manifest = load_manifest(plan.out)
        if manifest is None:
            raise ArtifactError(f"{plan.out.path()}: is not complete; run the same command again")
        plan.out.write_bytes(CARD, _card(plan).encode())
        size = sum(int(entry["size"]) for entry in manifest.files.values())
        found = ", found complete" if plan.reused else ""
        stage.finish(f"{plan.kind}, {len(manifest.files)} files, {size / 1e6:,.1f} MB{found}")
    return Exported(
        plan.trained.training.label,
        plan.trained.training.seed,
        plan.kind,
        plan.out.path(),
        plan.identity,
        (*manifest.files, CARD),
        plan.reused,
        verified or manifest.about.get("verified"),
    )


def _find(context: RunContext, variant: str | None, seed: int | None) -> TrainedAdapter:
    config = context.config
    if not config.variants:
        raise ConfigError(
            "variants: [] trains nothing, so that there is nothing to export: name a variant, or "
            "export the tasks for lm-evaluation-harness by --lm-eval"
        )
    labels = [v.label for v in config.variants]
    label = variant or ("paft" if "paft" in labels else labels[0])
    if label not in labels:
        raise ConfigError(f"--variant: {label!r} is none of this run's: {', '.join(labels)}")
    seeds = config.training_seeds
    if seed is not None and seed not in seeds:
        raise ConfigError(f"--seed: {seed} is none of this run's: {', '.join(map(str, seeds))}")
    chosen = Training(config.variants[labels.index(label)], seeds[0] if seed is None else seed)
    trained = find_trained(context.run_folder, chosen)
    if trained is None:
        raise ConfigError(
            f"--variant: {config.called(chosen)} of run {config.name!r} is not trained in "
            f"{context.storage.path()}: run `paft train` with this configuration first"
        )
    if load_manifest(trained.folder, check=True) is None:
        raise ArtifactError(
            f"{trained.folder.path()}: its files are not those that were trained (a checksum "
            "differs): restore them, or train again under another name"
        )
    made_from = trained.record.made_from
    now = {"task": context.task_identity, "model": context.model_identity}
    if "examples" in older_rules_of(context.run_folder):
        del now["task"]  # which is another by today's rule of splitting, whatever the data
    if changed := [part for part in now if getattr(made_from, part) != now[part]]:
        raise ConfigError(
            f"{trained.folder.path()} was trained on another {' and another '.join(changed)} than "
            "the configuration names now: files behind the same path differ"
        )
    if trained.record.prompt is None:
        raise ConfigError(
            f"{trained.folder.path()} was written by an older paft_ray, which kept too little for "
            "an export: train again under another name"
        )
    return trained


def _refuse_what_cannot_merge(method: str) -> None:
    """Refuse methods with virtual tokens; peft refuses others when it merges."""
    if puts_tokens_before(method):
        raise ConfigError(
            f"--merge: {method} puts virtual tokens before the text and changes no weight of the "
            "model: export the adapter, without --merge"
        )


def _write_files(plan: ExportPlan, writer: ArtifactWriter) -> None:
    """Add the training's own files, or those of the pyfunc around them."""
    folder = plan.trained.folder
    prefix = f"{MODEL_FOLDER if plan.kind == 'model' else ADAPTER_FOLDER}/"
    manifest = load_manifest(folder)
    assert manifest is not None  # by _find
    names = [name for name in manifest.files if name.startswith(prefix)]
    if plan.kind != "pyfunc":
        for name in names:
            writer.add(name.removeprefix(prefix), folder.read_bytes(name))
        return
    record = plan.trained.record
    assert record.prompt is not None  # by _find
    settings = model_config(plan.context.config, plan.context.task, record.prompt.text)
    adapter = {name.removeprefix(prefix): folder.read_bytes(name) for name in names}
    for name, data in pyfunc_files(settings, adapter, record.versions).items():
        writer.add(name, data)


def _write_merged(plan: ExportPlan, writer: ArtifactWriter) -> dict[str, float]:
    """Merge in fp32, store in the base's type, load again, compare losses, add the files."""
    import torch

    from paft_ray.models.pretrained import read_config

    config = plan.context.config
    base = prepare_base(config.model.path, config.model.revision, plan.context.storage)
    source = (base, config.model.revision, config.model.trust_remote_code)
    stored = getattr(read_config(*source), "dtype", None)
    dtype = stored if isinstance(stored, torch.dtype) else torch.float32
    sequences = _probe(plan, base)
    with tempfile.TemporaryDirectory(prefix="paft-export-") as temporary:
        losses = {"base and adapter": _merge_into(Path(temporary), plan, base, dtype, sequences)}
        load_tokenizer(*source).save_pretrained(temporary)
        merged = _load(temporary, None, config.model.trust_remote_code)
        losses["merged"] = _mean_loss(merged, sequences)
        before, after = losses.values()
        name = str(dtype).removeprefix("torch.")
        allowed = MERGE_TOLERANCE.get(name, max(MERGE_TOLERANCE.values())) * max(1.0, before)
        if not abs(after - before) <= allowed:
            raise ArtifactError(
                f"--merge: the merged model has a loss of {after:.6f}, base and adapter "
                f"{before:.6f}, further apart than {allowed:.1e} in {name}: nothing was written; "
                "export the adapter instead"
            )
        writer.add_folder(Path(temporary))
    return losses


def _merge_into(
    folder: Path,
    plan: ExportPlan,
    base: str,
    dtype: "torch.dtype",
    sequences: "list[TokenSequence]",
) -> float:
    """Save the merged model, and return the loss of base and adapter."""
    from peft import PeftModel

    config = plan.context.config
    with plan.trained.folder.child(ADAPTER_FOLDER).local() as adapter:
        fresh = _load(base, config.model.revision, config.model.trust_remote_code)
        model = PeftModel.from_pretrained(fresh, adapter).eval()
    loss = _mean_loss(model, sequences)
    try:
        merged: Any = model.merge_and_unload()  # pyright: ignore[reportCallIssue]
    except (NotImplementedError, AttributeError, ValueError, TypeError, RuntimeError) as error:
        method = (config.model.peft or {})["peft_type"]
        raise ConfigError(
            f"--merge: peft cannot merge {method}: {one_line(error)}; export the adapter instead"
        ) from error
    merged.to(dtype).save_pretrained(folder, max_shard_size=SHARD)
    return loss


def _load(location: str, revision: str | None, trust: bool) -> "PreTrainedModel":
    """Load a model in fp32 as its users do, with its own output head and generation settings."""
    import torch

    from paft_ray.models.pretrained import read_model

    model = read_model(location, revision, trust, dtype=torch.float32)
    return model.requires_grad_(False).eval()


def _probe(plan: ExportPlan, base: str) -> "list[TokenSequence]":
    """Encode training examples under the first prompt of the training."""
    config, task = plan.context.config, plan.context.task
    assert plan.trained.record.prompt is not None  # by _find
    template = parse(plan.trained.record.prompt.text, task.slots)
    tokenizer = load_tokenizer(base, config.model.revision, config.model.trust_remote_code)
    encoder = TextEncoder.from_config(tokenizer, config)
    return [
        encoder.encode(template.render, e.fields, [e.some_answer])[0].sequence()
        for e in (*task.train[:_PROBES], *task.unlabelled)[:_PROBES]
    ]


def _mean_loss(model: "PreTrainedModel | PeftModel", sequences: "list[TokenSequence]") -> float:
    from paft_ray.models.logprobs import ForwardPass, score_sequences

    longest = max(len(sequence.input_ids) for sequence in sequences)
    scores = score_sequences(model, sequences, ForwardPass("float32", longest, packing=False))
    return -sum(s[0] for s in scores) / sum(len(sequence.targets) for sequence in sequences)


def _card(plan: ExportPlan) -> str:
    context, trained = plan.context, plan.trained
    evaluation = None
    if context.run_folder.exists("summary.json"):
        summary = context.run_folder.read_json("summary.json")
        evaluation = card_figures(summary) if trained.training.label in summary["models"] else None
    return render_card(
        context.config, context.task, trained.fingerprint, trained.record, evaluation, plan.kind
    )
