"""Kinds of bad input to the command line: each makes the files of one and gives the words to type.

A kind is a function of a `World` and of a word that the fuzzer draws. Adding one is adding a line or a
function under its heading.
"""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import conftest
from record_factory import run_record

ROWS = conftest.rows()
FORGET, RETAIN = ROWS[:6], ROWS[6:]


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass
class World:
    """A folder with good records beside a good model, in which one thing is about to be bad."""

    folder: Path
    model: Path

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def run(self, *words: object, **replaced: object) -> list[str]:
        """A good command, but for what is replaced (None: left out) or added."""
        good: dict[str, object] = {
            "model": self.model,
            "forget": self.folder / "forget.jsonl",
            "retain": self.folder / "retain.jsonl",
            "output": self.folder / "out",
            "template": "none",
        }
        given = [
            w for name, value in (good | replaced).items() if value is not None for w in (f"--{name}", value)
        ]
        return [str(w) for w in ("run", *given, "--set", "max_steps=1", "--set", "bf16=false", *words)]

    def copy(self) -> Path:
        return Path(shutil.copytree(self.model, self.folder / "model"))


Kind = Callable[[World, str], list[str]]


def forget(name: str, content: Callable[[str], str | bytes]) -> Kind:
    """Forget records in a file of this name."""
    return lambda world, word: world.run(forget=world.write(name, content(word)))


def setting(text: str) -> Kind:
    """`--set` with this text; WORD in it is drawn."""
    return lambda world, word: world.run("--set", text.replace("WORD", word))


def config(content: Callable[[str], str | bytes]) -> Kind:
    return lambda world, word: world.run("--config", world.write("recipe.yaml", content(word)))


def method(content: str, name: str = "mine") -> Kind:
    """A method of the user's own in a file of this content."""
    return lambda world, word: world.run("--method", f"{world.write(f'm{word}.py', content)}:{name}")


def model(spoil: Callable[[Path, str], object]) -> Kind:
    """A copy of the model with something wrong."""

    def kind(world: World, word: str) -> list[str]:
        folder = world.copy()
        spoil(folder, word)
        return world.run(model=folder)

    return kind


def row(**fields: object) -> Callable[[str], str]:
    """A file whose second row has these fields; WORD in a text is drawn."""

    def content(word: str) -> str:
        filled = {k: v.replace("WORD", word) if isinstance(v, str) else v for k, v in fields.items()}
        return lines([FORGET[0], filled])

    return content


def edit(name: str, **values: object) -> Callable[[Path, str], object]:
    def spoil(folder: Path, word: str) -> None:
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(known | values))

    return spoil


def halved(folder: Path, word: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(folder: Path, word: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({word: 1}))


def without(pattern: str) -> Callable[[Path, str], object]:
    def spoil(folder: Path, word: str) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


def adapter(folder: Path, word: str) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": word}))


def foreign(world: World, word: str) -> list[str]:
    world.write(f"out/{word}.tex", "irreplaceable")
    return world.run("--overwrite")


def inside(world: World, word: str) -> list[str]:
    world.write("out/record.json", "{}")
    return world.run("--overwrite", forget=world.write("out/forget.jsonl", lines(FORGET)))


def folder_of(*names: str) -> Kind:
    def kind(world: World, word: str) -> list[str]:
        (world.folder / word).mkdir()
        for name in names:
            world.write(f"{word}/{name}", lines(FORGET))
        return world.run(forget=world.folder / word)

    return kind


def record(content: Callable[[str], str]) -> Kind:
    def kind(world: World, word: str) -> list[str]:
        return ["report", str(world.write("old/record.json", content(word)).parent)]

    return kind


def words(*typed: str) -> Kind:
    """A whole command; {o} is the output, {f} and {r} the records, {m} the model, WORD is drawn."""

    def kind(world: World, word: str) -> list[str]:
        places = {name[0]: world.folder / f"{name}.jsonl" for name in ("forget", "retain")}
        places |= {"o": world.folder / "out", "m": world.model}
        return [w.replace("WORD", word).format(**places) for w in typed]

    return kind


def after(spoil: Callable[[dict], dict]) -> Kind:
    """An earlier run whose record is whole, but not one to continue."""

    def kind(world: World, word: str) -> list[str]:
        known = json.loads(run_record().model_dump_json())
        folder = world.write(f"{word}/record.json", json.dumps(spoil(known))).parent
        return world.run("--after", folder, model=None)

    return kind


AUDIT = ("audit", "--model", "{m}", "--forget", "{f}", "--output", "{o}", "--set", "bf16=false")
NEIGHBOURS = ("neighbours", "--forget", "{f}", "--retain", "{r}", "--output", "{o}", "--model", "{m}")
COMPARE = ("compare", "records", "--forget", "{f}", "--retain", "{r}", "--model", "{m}", "--output", "{o}")

KINDS: dict[str, Kind] = {
    # records: how a file is stored
    "records empty": forget("a.jsonl", lambda word: ""),
    "records blank": forget("a.jsonl", lambda word: "\n \n\t\n"),
    "records broken line": forget("a.jsonl", lambda word: lines(FORGET[:1]) + f'{{"prompt": "{word}"'),
    "records line is a list": forget("a.jsonl", lambda word: json.dumps([word]) + "\n"),
    "records line is a number": forget("a.jsonl", lambda word: f"{len(word)}\n"),
    "records line is a text": forget("a.jsonl", lambda word: json.dumps(word) + "\n"),
    "records nested too deep": forget("a.jsonl", lambda word: "[" * 100_000),
    "records not UTF-8": forget("a.jsonl", lambda word: lines(FORGET).encode() + b'{"prompt": "\xff"}'),
    "records UTF-16": forget("a.jsonl", lambda word: lines(FORGET).encode("utf-16")),
    "records NUL bytes": forget("a.jsonl", lambda word: b"\0" * len(word)),
    "records JSON object": forget("a.json", lambda word: json.dumps({word: FORGET})),
    "records JSON Lines called JSON": forget("a.json", lambda word: lines(FORGET)),
    "records JSON list of texts": forget("a.json", lambda word: json.dumps([word])),
    "records JSON cut short": forget("a.json", lambda word: json.dumps(FORGET)[:-7]),
    "records JSON empty list": forget("a.json", lambda word: "[]"),
    "records CSV row too long": forget("a.csv", lambda word: f"prompt,response\na,b,{word}\n"),
    "records CSV row too short": forget("a.csv", lambda word: f"prompt,response\n{word}\n"),
    "records CSV twice one name": forget("a.csv", lambda word: f"prompt,prompt\n{word},b\n"),
    "records CSV open quote": forget("a.csv", lambda word: f'prompt,response\n"{word},b\n'),
    "records CSV header only": forget("a.csv", lambda word: "prompt,response\n"),
    "records CSV other names": forget("a.csv", lambda word: f"x{word},y\na,b\n"),
    "records Parquet garbage": forget("a.parquet", lambda word: word),
    "records gzip garbage": forget("a.jsonl.gz", lambda word: word),
    "records gzip cut short": forget("a.jsonl.gz", lambda word: gzip.compress(lines(FORGET).encode())[:-9]),
    "records unknown suffix": forget("a.txt", lambda word: lines(FORGET)),
    "records no such file": lambda world, word: world.run(forget=world.folder / f"{word}.jsonl"),
    "records no such folder": lambda world, word: world.run(forget=world.folder / word / "a.jsonl"),
    "records no name": lambda world, word: world.run(forget=" "),
    "records folder empty": folder_of(),
    "records folder of several": folder_of("a.jsonl", "b.jsonl"),
    "records folder of other files": folder_of("notes.md"),
    # records: what a row holds
    "row without prompt": forget("a.jsonl", row(response="WORD")),
    "row without response": forget("a.jsonl", row(prompt="WORD")),
    "row empty": forget("a.jsonl", row()),
    "row prompt null": forget("a.jsonl", row(prompt=None, response="WORD")),
    "row response number": forget("a.jsonl", row(prompt="WORD", response=5)),
    "row response true": forget("a.jsonl", row(prompt="WORD", response=True)),
    "row response NaN": forget("a.jsonl", row(prompt="WORD", response=float("nan"))),
    "row prompt list": forget("a.jsonl", row(prompt=["WORD"], response="WORD")),
    "row prompt object": forget("a.jsonl", row(prompt={"text": "WORD"}, response="WORD")),
    "row response empty": forget("a.jsonl", row(prompt="WORD", response="")),
    "row prompt white": forget("a.jsonl", row(prompt=" \n\t", response="WORD")),
    "row lone surrogate": forget("a.jsonl", row(prompt="WORD", response="\ud800")),
    "row too long": forget("a.jsonl", row(prompt="WORD", response="WORD " * 500)),
    "row prompt too long": forget("a.jsonl", row(prompt="WORD " * 500, response="WORD")),
    "field unknown for prompts": lambda world, word: world.run("--prompt-field", f"x{word}"),
    "field unknown for responses": lambda world, word: world.run("--response-field", f"x{word}"),
    "sets equal": lambda world, word: world.run(forget=world.folder / "retain.jsonl"),
    "sets share a row but for case": lambda world, word: world.run(
        retain=world.write("a.jsonl", lines([*RETAIN, {k: v.upper() for k, v in FORGET[0].items()}]))
    ),
    "holdout shares a row": lambda world, word: world.run(holdout=world.folder / "forget.jsonl"),
    # methods
    "method unknown": lambda world, word: world.run("--method", f"x{word}"),
    "method without retain": lambda world, word: world.run(retain=None),
    "method file missing": lambda world, word: world.run("--method", f"{word}.py:mine"),
    "method module missing": lambda world, word: world.run("--method", f"no_{word}:mine"),
    "method file raises": method("raise RuntimeError('no')"),
    "method file is no Python": method("def :"),
    "method name missing": method("x = 1"),
    "method is a number": method("mine = 1"),
    "method returns a number": method("def mine(): return 1"),
    "method setting not a number": setting("tolerance=WORDx"),
    "method tolerance negative": setting("tolerance=-1"),
    "method tolerance zero": setting("tolerance=0"),
    "method rows too few": setting("rows=1"),
    "method every zero": setting("every=0"),
    "refusals missing": lambda world, word: world.run("--method", "idk-sft", "--set", f"refusals={word}.txt"),
    "refusals empty": lambda world, word: world.run(
        "--method", "idk-sft", "--set", f"refusals={world.write('r.txt', '')}"
    ),
    # settings
    "setting unknown": setting("xWORD=1"),
    "setting without value": setting("max_steps"),
    "setting without name": setting("=1"),
    "setting of a flag": setting("output=WORD"),
    "setting that lets code run": setting("trust_remote_code=true"),
    "setting that unredacts": setting("redact=false"),
    "steps none": setting("max_steps=0"),
    "steps negative": setting("max_steps=-5"),
    "steps a fraction": setting("max_steps=1.5"),
    "steps a word": setting("max_steps=WORDx"),
    "rate a word": setting("learning_rate=WORDx"),
    "rate a list": setting("learning_rate=[1e-5]"),
    "rate not a number": setting("learning_rate=.nan"),
    "rate negative": setting("learning_rate=-1e-5"),
    "rate infinite": setting("learning_rate=.inf"),
    "batch empty": setting("per_device_train_batch_size=0"),
    "batch negative": setting("per_device_train_batch_size=-1"),
    "accumulation zero": setting("gradient_accumulation_steps=0"),
    "optimizer unknown": setting("optim=xWORD"),
    "schedule unknown": setting("lr_scheduler_type=xWORD"),
    "saving unknown": setting("save_strategy=xWORD"),
    "fp16": setting("fp16=true"),
    "length too short": setting("max_length=1"),
    "looks negative": setting("check_every=-1"),
    "looks at nothing": setting("check_rows=0"),
    "rank negative": setting("lora_rank=-1"),
    "DoRA without rank": setting("lora_dora=true"),
    "4 bits merged": lambda world, word: world.run("--set", "lora_rank=2", "--set", "lora_4bit=true"),
    "adapter on nothing": lambda world, word: world.run(
        "--set", "lora_rank=2", "--set", f"lora_targets=x{word}"
    ),
    "parameters of no name": setting("train_only=xWORD"),
    "blocks beyond the model": setting("train_last=99"),
    "blocks negative": setting("train_last=-1"),
    "template unknown": lambda world, word: world.run(template=f"x{word}"),
    "seed a word": lambda world, word: world.run("--seed", f"x{word}"),
    "seed negative": lambda world, word: world.run("--seed", "-1"),
    # configuration files
    "config missing": lambda world, word: world.run("--config", f"{word}.yaml"),
    "config a folder": lambda world, word: world.run("--config", world.folder),
    "config not YAML": config(lambda word: f"{word}: ["),
    "config a list": config(lambda word: f"- {word}\n"),
    "config a text": config(lambda word: word),
    "config empty": config(lambda word: ""),
    "config binary": config(lambda word: b"\xff\xfe\0"),
    "config builds objects": config(lambda word: "a: !!python/object/apply:os.getcwd []\n"),
    "config of a flag": config(lambda word: f"forget: {word}\n"),
    "config unknown key": config(lambda word: f"x{word}: 1\n"),
    "config of several methods": config(lambda word: f"method: [{word}, npo]\n"),
    "config lets code run": config(lambda word: "trust-remote-code: true\n"),
    # models
    "model missing": lambda world, word: world.run(model=world.folder / word),
    "model without a name": lambda world, word: world.run(model=" "),
    "model a file": lambda world, word: world.run(model=world.folder / "forget.jsonl"),
    "model config broken": model(lambda folder, word: (folder / "config.json").write_text("{")),
    "model config missing": model(without("config.json")),
    "model kind unknown": model(edit("config.json", model_type="martian", architectures=["Martian"])),
    "model not causal": model(edit("config.json", model_type="bert", architectures=["BertModel"])),
    "model brings code": model(edit("config.json", model_type="own", auto_map={"AutoConfig": "code.C"})),
    "model weights missing": model(without("*.safetensors")),
    "model weights cut short": model(halved),
    "model weights pickled": model(pickled),
    "model of another size": model(edit("config.json", hidden_size=64)),
    "model tokenizer missing": model(without("tokenizer*")),
    "model tokenizer broken": model(lambda folder, word: (folder / "tokenizer.json").write_text(word)),
    "model adapter without base": model(adapter),
    "control missing": lambda world, word: world.run(control=world.folder / word),
    "model compiled": setting("torch_compile=true"),
    # outputs
    "output a file": lambda world, word: world.run(output=world.folder / "forget.jsonl"),
    "output not to be made": lambda world, word: world.run(output=f"/proc/{word}"),
    "output holds a stranger's files": foreign,
    "output holds an input": inside,
    "output not empty": lambda world, word: world.run(output=world.write("full/a", word).parent),
    "record not JSON": record(lambda word: word),
    "record of another version": record(lambda word: '{"schema_version": 99}'),
    "record without fields": record(lambda word: '{"schema_version": 1}'),
    "record a list": record(lambda word: "[]"),
    "record missing": lambda world, word: ["report", str(world.folder / word)],
    "verify nothing": lambda world, word: ["verify", str(world.folder / word)],
    "leaderboard of nothing": words("report", "WORD", "xWORD"),
    # earlier work
    "after no run": lambda world, word: world.run("--after", world.folder / word, model=None),
    "after another verb": after(lambda known: known | {"kind": "evaluate"}),
    "after a run under way": after(lambda known: known | {"stop": None}),
    "forgotten without after": lambda world, word: world.run("--forgotten", world.folder / f"{word}.jsonl"),
    "neighbours not found": lambda world, word: world.run("--neighbours", world.folder / word),
    # other verbs
    "audit of no model": words("audit", "--forget", "{f}", "--output", "{o}"),
    "audit of no records": words("audit", "--model", "{m}", "--output", "{o}"),
    "audit to nowhere": words("audit", "--model", "{m}", "--forget", "{f}"),
    "audit attack unknown": words(*AUDIT, "--attacks", "xWORD"),
    "audit attack twice": words(*AUDIT, "--attacks", "prefix,prefix"),
    "audit attack without the setting": words(*AUDIT, "--attacks", "prefix", "--set", "prefix:xWORD=1"),
    "audit setting of another attack": words(*AUDIT, "--attacks", "prefix", "--set", "relearn:steps=1"),
    "audit in no time": words(*AUDIT, "--seconds", "0"),
    "audit original missing": words(*AUDIT, "--original", "WORD"),
    "plan GPU unknown": words("plan", "--model", "{m}", "--gpu", "xWORD"),
    "plan no GPUs": words("plan", "--model", "{m}", "--gpus", "0"),
    "plan labels beyond the row": words("plan", "--model", "{m}", "--tokens", "64", "--labels", "64"),
    "plan model missing": words("plan", "--model", "WORD"),
    "plan parameters of no name": words("plan", "--model", "{m}", "--set", "train_only=xWORD"),
    "plan blocks beyond the model": words("plan", "--model", "{m}", "--set", "train_last=99"),
    "plan adapter on nothing": words(
        "plan", "--model", "{m}", "--set", "lora_rank=2", "--set", "lora_targets=xWORD"
    ),
    "plan method unknown": lambda world, word: [
        *("plan", "--model", str(world.model), "--config", str(world.write("a.yaml", f"method: x{word}\n")))
    ],
    "finetune data missing": words("finetune", "--data", "WORD.jsonl", "--model", "{m}", "--output", "{o}"),
    "finetune data not given": words("finetune", "--model", "{m}", "--output", "{o}"),
    "neighbours none": words(*NEIGHBOURS, "--k", "0"),
    "neighbours more than rows": words(*NEIGHBOURS, "--k", "999"),
    "neighbours template unknown": words(*NEIGHBOURS, "--templates", "xWORD"),
    "neighbours curriculum unknown": words(*NEIGHBOURS, "--curriculum", "xWORD"),
    "evaluate to nowhere": words("evaluate", "records", "--forget", "{f}", "--model", "{m}"),
    "evaluate original missing": words(
        "evaluate", "records", "--forget", "{f}", "--model", "{m}", "--original", "WORD", "--output", "{o}"
    ),
    "demo into a file": words("demo", "--output", "{f}", "--model", "{m}"),
    # words
    "verb unknown": words("xWORD"),
    "flag unknown": lambda world, word: world.run(f"--x{word}", "1"),
    "forget not given": lambda world, word: world.run(forget=None),
    "output not given": lambda world, word: world.run(output=None),
    "benchmark unknown": words("evaluate", "xWORD", "--output", "{o}", "--model", "{m}"),
    "benchmark without records": words("evaluate", "records", "--output", "{o}", "--model", "{m}"),
    "benchmark without files": words("evaluate", "tofu", "--output", "{o}", "--model", "{m}"),
    "benchmark files missing": words(
        "evaluate", "tofu", "--data", "WORD", "--output", "{o}", "--model", "{m}"
    ),
    "list unknown": words("list", "xWORD"),
    "compare nothing": words(*COMPARE, "--methods", ","),
    "compare twice the same": words(*COMPARE, "--methods", "ngdiff,ngdiff"),
    "compare seeds of words": words(*COMPARE, "--methods", "ngdiff", "--seeds", "xWORD"),
    "compare grid without value": words(*COMPARE, "--methods", "ngdiff", "--grid", "WORD"),
    "compare grid of another": words(*COMPARE, "--methods", "ngdiff", "--grid", "npo:beta=1"),
}
