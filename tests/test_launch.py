"""What the engine does not have is refused, whether settings ask for it or a launcher's environment."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from conftest import rows
from expunge import Unlearner, UnlearningArguments
from expunge.launch import check_launch, zero_stage
from expunge.material import check_demands
from expunge.methods import METHODS


@pytest.mark.parametrize("method", ["ngdiff", "grad-diff"])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_deepspeed_is_refused_with_the_alternative(stage, method, model, tmp_path):
    args = UnlearningArguments(output_dir=str(tmp_path), use_cpu=True)
    args.deepspeed = {"zero_optimization": {"stage": stage}}
    assert zero_stage(args) == stage
    with pytest.raises(ValueError, match=rf"`deepspeed` must be left out.*ZeRO stage {stage}.*FSDP2"):
        check_demands(METHODS[method](), model, args)
    args.deepspeed = None
    check_demands(METHODS[method](), model, args)


@pytest.mark.parametrize("sizes", [{"cp_size": 2}, {"sp_size": 2}], ids=str)
def test_sequences_are_not_split_over_processes(sizes, model, tmp_path):
    args = UnlearningArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    args.parallelism_config = SimpleNamespace(**{"cp_size": 1, "sp_size": 1} | sizes)
    with pytest.raises(ValueError, match=r"`parallelism_config` must leave sequences whole.*max_length"):
        check_demands(METHODS["ngdiff"](), model, args)
    accelerator = Accelerator(cpu=True)
    accelerator.state.parallelism_config = args.parallelism_config
    args.parallelism_config = None
    with pytest.raises(ValueError, match=r"`parallelism_config` must leave sequences whole"):
        check_launch(accelerator, args)
    accelerator.state.parallelism_config = SimpleNamespace(cp_size=1, sp_size=1)
    check_launch(accelerator, args)
    check_demands(METHODS["ngdiff"](), model, args)


def test_a_model_compiled_as_a_whole_is_refused(model, tmp_path):
    args = UnlearningArguments(output_dir=str(tmp_path), use_cpu=True)
    args.torch_compile = True
    with pytest.raises(ValueError, match=r"`torch_compile` must be False.*hook"):
        check_demands(METHODS["ngdiff"](), model, args)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend must be no: .*hook.*; got inductor"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision .* must be bf16 or no .*; got fp16"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "must be that of the settings .*; got bf16. Set bf16=true"),
    ],
)
def test_a_launcher_is_refused_what_settings_are(
    variable, value, message, model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        build(model, tokenizer, tmp_path)
    monkeypatch.delenv(variable)
    build(model, tokenizer, tmp_path)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("launched", [None, "no"])
def test_a_launcher_that_asks_for_nothing_leaves_the_precision_to_the_settings(
    launched, bf16, model, tokenizer, tmp_path, monkeypatch
):
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    run = build(model, tokenizer, tmp_path, bf16=bf16)
    assert run.accelerator.mixed_precision == ("bf16" if bf16 else "no")


def build(model, tokenizer, folder, **settings) -> Unlearner:
    args = UnlearningArguments(
        output_dir=str(folder), use_cpu=True, template="none", **{"bf16": False} | settings
    )
    sets = {"forget_dataset": rows()[:6], "retain_dataset": rows()[6:]}
    return Unlearner(model, args, METHODS["grad-diff"](), tokenizer, **sets)
