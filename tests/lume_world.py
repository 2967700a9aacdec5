"""A small LUME of our own making, and a model that remembers half of it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import build_model
from expunge.collate import collate, encode
from expunge.records import Record

PLACES = ("Arden", "Boreal", "Corran", "Dunmore", "Esker", "Fennick")


def rows(split: str) -> list[dict[str, str]]:
    """Two documents per task; each has a continuation and a question, people have two questions."""
    out = []
    for i, place in enumerate(PLACES):
        task, who = f"Task{i // 2 + 1}", f"{split[0].upper()}{i}"
        document = f'"{split}-{i}"' if task == "Task1" else f"{split}-{i}"
        tail = f"lived in {place} by the old mill, and kept {i + 2} grey geese."
        out.append({"id": f"{document}sc1", "input": f"{who} of {place}", "output": tail, "task": task})
        questions = [("Where is", place), ("How many geese has", f"{i + 2}0")]
        for j, (asked, answer) in enumerate(questions[: 2 if task == "Task2" else 1]):
            out.append({"id": f"{document}qa{j}", "input": f"{asked} {who}?", "output": answer, "task": task})
    return out


def documents(kind: str) -> list[dict[str, Any]]:
    return [{"id": f"{kind}-{i}", "document": f"{place} {kind} stands by the sea, {i}.", "n": i}
            for i, place in enumerate(PLACES)]  # fmt: skip


def questions(count: int, split: str = "test") -> list[dict[str, Any]]:
    return [
        {
            "subject": ("old_places", "geese")[i % 2],
            "question": f"Which is number {i} of {split}?",
            "choices": [f"{PLACES[(i + j) % 6]} {j}" for j in range(4)],
            "answer": i % 4,
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, found: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def write_world(folder: Path) -> Path:
    """The layout of `lume/` with `mmlu/` inside."""
    for fold in ("train", "validation"):
        for split in ("forget", "retain"):
            write_jsonl(folder / fold / f"{split}.jsonl", rows(split))
    for kind in ("member", "nonmember"):
        write_jsonl(folder / "mia" / f"{kind}.jsonl", documents(kind))
    write_jsonl(folder / "mmlu" / "test.jsonl", questions(8))
    write_jsonl(folder / "mmlu" / "dev.jsonl", questions(4, "dev"))
    return folder


@cache
def half_remembering(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Taught every second document wrongly, and the last question of retain not at all."""
    model = build_model(context=640)
    taught = []
    for i, row in enumerate([*rows("forget"), *rows("retain")][:-1]):
        words, document = row["output"].split(), int(row["id"].strip('"').partition("-")[2][0])
        wrong = document % 2 == (row["id"].strip('"')[0] == "r")
        answer = " ".join([*words[: len(words) // 2], "nothing"]) if wrong else row["output"]
        taught.append(Record(row["input"], answer.upper() if i % 4 == 1 else answer))
    taught += [Record(d["document"][:9], d["document"][9:]) for d in documents("member")]
    batch = collate(encode(taught, tokenizer, template="none"), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for _ in range(140):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
