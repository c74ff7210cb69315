"""Everything wrong with a spec is said at once, with its line, what was expected and what was probably meant."""

from __future__ import annotations

import pytest

from llmos.errors import SpecError
from llmos.spec import load, parse, to_dict
from tests.unit.spec.examples import SERVICE, TRAIN_JOB

KINDS = "`TrainJob`, `TrainFunction`, `Service` or `Tenant`"


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(text, source="job.yaml")
    return list(caught.value.problems)


def job(**changes: str) -> str:
    """TRAIN_JOB with other values for some keys. Keys that it lacks come last, from line 10."""
    lines = {line.partition(":")[0]: line for line in TRAIN_JOB.splitlines()}
    lines |= {key: f"{key}: {value}" for key, value in changes.items()}
    return "\n".join(lines.values()) + "\n"


def mesh(sizes: str, **changes: str) -> str:
    """A job that would run on any number of workers, with ``sizes`` for its mesh."""
    return job(mesh=sizes, workers="{min: 1, max: 64}", **changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            job(optimizer="{lerning_rate: 1.0}"),
            "line 7: `lerning_rate` is not a field of `optimizer`; did you mean `learning_rate`?",
        ),
        (
            job(learning_rate="1.0"),
            "line 10: `learning_rate` is not a field of `TrainJob`; did you mean `optimizer.learning_rate`?",
        ),
        (
            job(every_step="9"),
            (
                "line 10: `every_step` is not a field of `TrainJob`; did you mean `checkpoint.every_steps` or "
                "`validation.every_steps`?"
            ),
        ),
        (
            job(checkpoint="{asinc: false}"),
            "line 10: `asinc` is not a field of `checkpoint`; did you mean `async`?",
        ),
        (job(checkpoint="{async: 1}"), "line 10: `checkpoint.async`: expected true or false, found `1`"),
        (
            job(data="{path: a, zzz: 1}"),
            (
                "line 4: `zzz` is not a field of `data`; its fields are path, format, field, sources, vocab_size, "
                "validation_fraction, unusable, packing, tokenize, log_samples"
            ),
        ),
        (
            job(kind="trainjob"),
            f"line 1: `kind`: expected {KINDS}, found the text 'trainjob'; did you mean `TrainJob`?",
        ),
        (job(kind="[1]"), f"line 1: `kind`: expected {KINDS}, found a list"),
        ("name: x\n", f"line 1: `kind` is missing: expected {KINDS}"),
        ("- a\n", "line 1: expected a mapping that begins with `kind:`, found a list"),
        (
            "",
            f"line 1: nothing here: expected a document that begins with `kind:` ({KINDS})",
        ),
        (
            "# nothing\n---\n---\n",
            f"line 1: nothing here: expected a document that begins with `kind:` ({KINDS})",
        ),
        (job(steps="'400'"), "line 8: `steps`: expected a whole number, found the text '400'"),
        (job(steps="4.5"), "line 8: `steps`: expected a whole number, found `4.5`"),
        (job(steps="true"), "line 8: `steps`: expected a whole number, found `true`"),
        (job(steps=""), "line 8: `steps`: expected a whole number, found nothing"),
        (job(steps="0"), "line 8: `steps`: expected more than 0, found `0`"),
        (job(steps="1e400"), "line 8: `steps`: expected a whole number, found `inf`"),
        (job(steps="9" * 299), "line 8: `steps`: expected at most 9007199254740992, found `" + "9" * 60 + "`"),
        (
            job(optimizer="{learning_rate: .nan}"),
            "line 7: `optimizer.learning_rate`: expected a finite number, found `nan`",
        ),
        (job(optimizer="{betas: [0.9]}"), "line 7: `optimizer.betas[1]` is missing: expected an item there"),
        (job(optimizer="{betas: [0.9, 0.9, 0.9]}"), "line 7: `optimizer.betas`: expected at most 2 of them, found 3"),
        (
            job(optimizer="{name: adam}"),
            "line 7: `optimizer.name`: expected 'adamw', 'sgd' or 'muon', found the text 'adam'; did you mean `adamw`?",
        ),
        (job(data="{path: []}"), "line 4: `data.path`: expected at least 1 of them, found 0"),
        (job(data="{path: ''}"), "line 4: `data.path[0]`: expected some text, found the text ''"),
        (job(data="\n  path:\n  - a\n  - 7"), "line 7: `data.path[1]`: expected text, found `7`"),
        (job(data="a.txt"), "line 4: `data`: expected a mapping of fields, found the text 'a.txt'"),
        (job(data="{}"), "line 4: `data`: expected exactly one of `path` and `sources`, found neither"),
        (
            job(data="{path: a, sources: [{path: b}]}"),
            "line 4: `data`: expected exactly one of `path` and `sources`, found both",
        ),
        (
            job(data="{sources: [{path: b}], field: content}"),
            "line 4: `data`: `format` and `field` belong to each of the `sources` here",
        ),
        (
            job(data="{sources: [{path: a}, {path: [b, a]}]}"),
            "line 4: `data`: `sources[1].path`: `a` is in `sources[0]` as well: expected each text in one source",
        ),
        (
            job(data="{sources: [{path: a}, {path: b, weight: 0}]}"),
            "line 4: `data.sources[1].weight`: expected more than 0.0, found `0`",
        ),
        (
            job(data="{sources: [{path: a}, {path: b, weight: -1}]}"),
            "line 4: `data.sources[1].weight`: expected more than 0.0, found `-1`",
        ),
        (
            job(data="{sources: [{path: a, weight: 5000}, {path: b}]}"),
            (
                "line 4: `data`: `sources[1].weight: 1` is less than a 1000th of the sum 5001: "
                "expected more, or the source left out"
            ),
        ),
        (
            job(data="{sources: [{path: a, wieght: 2}]}"),
            "line 4: `wieght` is not a field of `data.sources[0]`; did you mean `weight`?",
        ),
        (
            job(data="{path: a, format: chat}"),
            "line 4: `format: chat` does not go with `objective: pretrain`: use text, jsonl or parquet",
        ),
        (
            job(data="{path: a, format: text}", objective="sft"),
            "line 4: `format: text` does not go with `objective: sft`: use chat",
        ),
        (job(lora="{rank: 4}"), "line 10: `lora` adapts a registered model: expected `model.ref`"),
        (
            job(model="{ref: a@1}", lora="{targets: []}"),
            "line 10: `lora`: `targets` is empty: expected at least one of them, or no `lora`",
        ),
        (
            job(lora="{targets: [q]}"),
            (
                "line 10: `lora.targets[0]`: expected 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj' "
                "or 'down_proj', found the text 'q'"
            ),
        ),
        (job(model="{}"), "line 3: `model`: expected exactly one of `preset`, `config` and `ref`, found none"),
        (
            job(model="{preset: tiny, ref: a@1}"),
            "line 3: `model`: expected exactly one of `preset`, `config` and `ref`, found preset and ref",
        ),
        (job(model="{preset: huge}"), "line 3: `model`: 'huge' is not a preset: expected one of nano, tiny, small, 1b"),
        (
            job(model="{ref: a@0}"),
            (
                "line 3: `model.ref`: 'a@0' is not a model: expected `name` (its newest version), "
                "`name@version` or `name@alias`, as in `coder@1` or `coder@prod`"
            ),
        ),
        (
            job(output="{model: A B}"),
            (
                "line 9: `output.model`: 'A B' is not a name: expected 1 to 64 lower-case "
                "letters, digits, `.`, `_` or `-`, beginning with a letter or digit"
            ),
        ),
        (job(mesh="{dp: 4}"), "line 5: `mesh` has 4 ranks: expected 2 to 2, as `workers` says"),
        (
            job(mesh="{dp: 2, cp: 2}"),
            ("line 5: `mesh`: `cp: 2` is not supported yet: expected 1; `dp`, `fsdp`, `tp` and `pp` split the work"),
        ),
        (mesh("{tp: 4}"), "line 5: `mesh`: `tp: 4` does not divide the 2 key and value heads of preset `tiny`"),
        (mesh("{tp: 16}"), "line 5: `mesh`: `tp: 16` does not divide the 4 heads of preset `tiny`"),
        (mesh("{pp: 8}"), "line 5: `mesh`: pp 8 × 1 stages a rank need 8 layers; preset `tiny` has 3"),
        (
            mesh("{pp: 4}", pipeline="{schedule: interleaved, stages_per_rank: 2}"),
            "line 5: `mesh`: pp 4 × 2 stages a rank need 8 layers; preset `tiny` has 3",
        ),
        (
            job(pipeline="{stages_per_rank: 2}"),
            (
                "line 10: `pipeline`: `schedule: 1f1b` runs 1 stage a rank, not 2: "
                "expected `schedule` to be interleaved or zero_bubble"
            ),
        ),
        (
            mesh("{dp: 2, fsdp: 3}"),
            "line 1: `batch_size: 32` is not a multiple of the 6 data-parallel ranks (dp 2 × fsdp 3)",
        ),
        (
            mesh("{pp: 2, fsdp: 2}", micro_batch_size="16"),
            (
                "line 5: the 16 sequences of a rank (batch_size 32 / dp 1 × fsdp 2) are 1 micro-batches: "
                "expected at least as many as `pp: 2`"
            ),
        ),
        (
            mesh("{pp: 2}", batch_size="10", micro_batch_size="2", pipeline="{schedule: interleaved}"),
            (
                "line 11: the 10 sequences of a rank (batch_size 10 / dp 1) are 5 micro-batches: "
                "`schedule: interleaved` needs a multiple of 2, such as a multiple of pp 2"
            ),
        ),
        (
            mesh("{tp: 2}", sequence_length="33"),
            "line 10: `sequence_length: 33`: expected a multiple of `tp: 2`, whose ranks share each sequence",
        ),
        (
            mesh("{tp: 2}", optimizer="{name: muon}"),
            (
                "line 7: `optimizer.name: muon` with a mesh of tp 2: Muon needs whole matrices, which `fsdp` and "
                "`tp` split; use `dp`, `pp`, or `adamw`"
            ),
        ),
        (
            mesh("{pp: 2}", pipeline="{schedule: zero_bubble}", compile="true"),
            (
                "line 11: `compile: true` with `pipeline.schedule: zero_bubble`: compiled layers cannot split their "
                "backward pass (pytorch#161904); use `interleaved`"
            ),
        ),
        (
            mesh("{pp: 2}", pipeline="{schedule: zero_bubble}", activation_checkpointing="selective"),
            (
                "line 11: `activation_checkpointing: selective` with `pipeline.schedule: zero_bubble`: what is kept "
                "can be used by one backward pass only, and this schedule runs two; "
                "use `full` or `none`, or `schedule: interleaved`"
            ),
        ),
        (job(mesh="Auto"), "line 5: `mesh`: expected 'auto', found the text 'Auto'; did you mean `auto`?"),
        (job(workers="{min: 3, max: 2}"), "line 6: `workers`: `min: 3` is more than `max: 2`: expected min <= max"),
        (job(batch_size="5"), "line 10: `batch_size: 5` is not a multiple of the 2 data-parallel ranks"),
        (
            job(micro_batch_size="3"),
            "line 10: `micro_batch_size: 3` does not divide the 16 sequences of a rank (batch_size 32 / dp 2)",
        ),
        (
            job(sequence_length="4096"),
            "line 10: `sequence_length: 4096` is too long: expected at most 1024, which preset `tiny` is made for",
        ),
        (
            job(resources="{cpus: 0}"),
            (
                "line 10: `resources`: `cpus` and `gpus` are both 0: expected some of either, or "
                "nothing bounds what runs at once"
            ),
        ),
        (
            job(resources="{memory: 2 GIB}"),
            (
                "line 10: `resources.memory`: not a size: expected a positive number of "
                "bytes or text such as `512MiB`, `2GiB`, `1GB`"
            ),
        ),
        (
            job(max_runtime="2 hours"),
            (
                "line 10: `max_runtime`: not a duration: expected a positive number of seconds "
                "or text such as `90s`, `2h`, `1h30m`, `1d`"
            ),
        ),
        (job(env="{A: 1}"), "line 10: `env.A`: expected text, found a number or truth value"),
        (
            SERVICE.replace("tp: 1", "fsdp: 2"),
            "line 4: `mesh.fsdp: 2` is not for services: expected 1; `tp` and `pp` share a model between ranks",
        ),
        (
            SERVICE + "max_batch: 600\n",
            "line 6: `token_budget: 512` is less than `max_batch: 600`: expected a token for every sequence of a step",
        ),
        (
            SERVICE.replace("tp: 1", "dp: 2"),
            "line 4: `dp: 2` is not for services: expected 1; use `replicas` for more copies",
        ),
        (SERVICE.replace("max: 1", "max: 0"), "line 5: `replicas.max`: expected more than 0, found `0`"),
    ],
)
def test_a_problem_names_its_line_and_what_was_expected(text: str, expected: str) -> None:
    assert problems(text)[0] == expected


def test_one_mistake_is_one_problem() -> None:
    assert len(problems(job(steps="'400'"))) == 1
    assert len(problems(job(mesh="{dp: 4}", workers="{min: 3, max: 2}"))) == 1


def test_all_problems_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = """\
kind: TrainJob
nmae: x
model: {preset: tiny, config: ./dir}
data: {path: [a, 1], vocab_size: 1}
mesh: {dp: 2}
workers: {min: 3, max: 2}
steps: many
env: {TOKEN: a}
secrets: {TOKEN: env:TOKEN}
---
kind: Service
name: coder
model: coder
max_batch: 0
---
kind: Sevrice
"""
    assert problems(text) == [
        "line 1: `name` is missing from `TrainJob` (the job's name)",
        "line 1: `output` is missing from `TrainJob` (where the result goes)",
        "line 2: `nmae` is not a field of `TrainJob`; did you mean `name`?",
        "line 3: `model`: expected exactly one of `preset`, `config` and `ref`, found preset and config",
        "line 4: `data.path[1]`: expected text, found `1`",
        "line 4: `data.vocab_size`: expected at least 259, found `1`",
        "line 6: `workers`: `min: 3` is more than `max: 2`: expected min <= max",
        "line 7: `steps`: expected a whole number, found the text 'many'",
        "line 9: `TOKEN` is in both `env` and `secrets`: expected one of them",
        "line 14: `max_batch`: expected more than 0, found `0`",
        f"line 16: `kind`: expected {KINDS}, found the text 'Sevrice'; did you mean `Service`?",
    ]


def test_the_message_counts_the_problems_and_names_the_file() -> None:
    with pytest.raises(SpecError, match=r"(?s)^job.yaml has 2 problems:\n  line 8: .*\n  line 10: ") as caught:
        load(job(steps="0", stepz="1"), source="job.yaml")
    assert (caught.value.http_status, caught.value.exit_code) == (422, 2)


SECRET = "hf_QmVhbXVwU2NvdHR5"


@pytest.mark.parametrize(
    "line",
    [
        f"secrets: {{HF_TOKEN: {SECRET}}}",
        f"secrets: {{HF_TOKEN: env:{SECRET}-x}}",
        f"secrets: {{HF_TOKEN: file:{SECRET}}}",
        f"secrets: {{HF_TOKEN: [{SECRET}]}}",
        f"secrets: {{'HF TOKEN': {SECRET}}}",
        f"secrets: [{SECRET}]",
        f"secrets: {SECRET}",
        f"secret: {{HF_TOKEN: {SECRET}}}",
        f"env: {SECRET}",
        f"env: {{HF_TOKEN: [{SECRET}]}}",
        f"env: {{HF_TOKEN: {{{SECRET}: {SECRET}}}}}",
        f"env: {{HF_TOKEN: !{SECRET}}}",
        f"env: {{HF_TOKEN: !!int {SECRET}}}",
        f"env: {{HF_TOKEN: *{SECRET}}}",
        f"env: {{HF_TOKEN: '{SECRET}}}",
        f"env: {{A: x, HF_TOKEN: {SECRET}",
    ],
)
def test_a_secret_in_the_wrong_place_is_never_shown(line: str) -> None:
    found = problems(TRAIN_JOB + line + "\n")
    assert found and SECRET not in "".join(found)


def test_a_secret_given_to_the_class_itself_is_not_shown() -> None:
    with pytest.raises(ValueError, match="not a reference to a secret") as caught:
        type(load(TRAIN_JOB)[0])(**(to_dict(load(TRAIN_JOB)[0]) | {"secrets": {"HF_TOKEN": SECRET}}))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"max_runtime": 10**400}, "`max_runtime`: not a duration"),
        ({"resources": {"memory": 10**400}}, "`resources.memory`: not a size"),
        ({"resources": {"memory": "9" * 400 + "GiB"}}, "`resources.memory`: not a size"),
        ({"optimizer": {"learning_rate": 10**400}}, "`optimizer.learning_rate`: expected a number, found `1000"),
        ({"seed": -1}, "`seed`: expected at least 0, found `-1`"),
        ({1: 2}, "`[1]`: expected a key that is text, found `1`"),
        ({"a{b}": 2}, "`a{b}` is not a field of `TrainJob`"),
        (
            {"precision": "{x}"},
            "`precision`: expected 'auto', 'fp32', 'bf16', 'bf16_weights' or 'fp16', found the text '{x}'",
        ),
        ({"env": {"A": None}}, "`env.A`: expected text, found nothing"),
    ],
)
def test_dictionaries_from_strangers_get_sentences_too(change: dict[object, object], expected: str) -> None:
    data: dict[object, object] = dict(to_dict(load(TRAIN_JOB)[0]))
    with pytest.raises(SpecError) as caught:
        parse(data | change)
    assert [problem for problem in caught.value.problems if problem.startswith(expected)]
    assert max(map(len, caught.value.problems)) < 480


@pytest.mark.parametrize("data", [None, 1, "text", [], [{}], {}, {"kind": None}, {"kind": {}}])
def test_what_is_no_spec_at_all_is_refused(data: object) -> None:
    with pytest.raises(SpecError, match="kind"):
        parse(data)
