"""Small models that know something, and what the passes must agree with: loops over one token at a time."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import build_model, rows
from expunge.collate import Encoded, encode
from expunge.records import read_records

EOS = 1


def sharpen(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Random weights large enough that predictions differ from row to row and from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def varied_rows(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Sixteen rows of different lengths, one of them with the pad token inside prompt and response."""
    records = [
        {**row, "response": ", ".join([row["response"]] * (1 + i % 4))} for i, row in enumerate(rows())
    ]
    out = encode(read_records(records, name="forget"), tokenizer)
    first = out[0]
    out[0] = Encoded((5, EOS, *first.input_ids[:-3], EOS, 7, EOS), first.prompt_length + 2)
    assert len({len(row.input_ids) for row in out}) >= 4
    return out


def taught(rows: list[Encoded]) -> LlamaForCausalLM:
    """A model that gives some of the responses, or their beginnings."""
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(45):
        loss = sum(
            model(
                input_ids=torch.tensor([row.input_ids]),
                labels=torch.tensor([(-100,) * row.prompt_length + row.labels]),
            ).loss
            for row in rows
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def naive_scores(model: nn.Module, row: Encoded) -> tuple[list[float], list[bool]]:
    """Token by token, each from its own forward pass over what comes before it, in float64."""
    double = copy.deepcopy(model).double().eval()
    log_probs, matches = [], []
    for position in range(row.prompt_length, len(row.input_ids)):
        with torch.no_grad():
            logits = double(input_ids=torch.tensor([row.input_ids[:position]])).logits[0, -1]
        target = row.input_ids[position]
        log_probs.append(float(logits[target] - logits.logsumexp(0)))
        matches.append(int(logits.argmax()) == target)
    return log_probs, matches


def naive_generation(model: nn.Module, row: Encoded, limit: int) -> list[int]:
    ids = list(row.input_ids[: row.prompt_length])
    model.eval()
    for _ in range(limit):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[row.prompt_length :]


def response_length(row: Encoded) -> int:
    return len(row.input_ids) - row.prompt_length
