"""Prints docs/yaml.md: what becomes of every key of a training config, and of LLM Foundry's 26 files.

usage: yaml_page.py BINARY > docs/yaml.md         BINARY: the built `dropless`; config_keys stands beside it

Nothing in the tables is written by hand: the keys come from config_keys, which parses configs with a
recorder behind them, and the files' fates from running `dropless train` on each.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import hf_models
import torch

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
PAGE = FIXTURES.parents[2] / "docs" / "yaml.md"

SHAPE = ["model.d_model=32", "model.n_heads=4", "model.n_layers=2"]
# What makes a model of any size train two steps here.
TINY = [
    *SHAPE, "variables.max_seq_len=32", "variables.data_local=data", "global_train_batch_size=4", "device_train_microbatch_size=2",
    "device_eval_batch_size=4", "eval_subset_num_batches=1", "eval_interval=2ba", "max_duration=2ba",
    "device=cpu", "save_folder=run",
]  # fmt: skip

# What trains a file that names a model of the hub on a small folder of a released family's kind instead.
FOLDER = [
    "tokenizer={name: bytes}", "variables.max_seq_len=32", "global_train_batch_size=4", "device_train_microbatch_size=2",
    "device_eval_batch_size=4", "eval_subset_num_batches=1", "eval_interval=2ba", "max_duration=2ba",
    "device=cpu", "save_folder=run",
]  # fmt: skip
TEXT, ANSWERS = "variables.data_local=data", "train_loader.dataset.hf_name=answers"
EVAL_ANSWERS = "eval_loader.dataset.hf_name=answers"
NO_TASKS = ["icl_tasks=null"]  # whose files are not there
# Of answers in local files, with no Python to shape them; the set has two splits.
LOCAL_SFT = [
    ANSWERS, "train_loader.dataset.hf_kwargs=null", "train_loader.dataset.preprocessing_fn=null",
    EVAL_ANSWERS, "eval_loader.dataset.hf_kwargs=null", "eval_loader.dataset.preprocessing_fn=null", "eval_loader.dataset.split=test",
    "dataset=null",  # which holds an anchor, and is stale upstream too
]  # fmt: skip
NO_OVERRIDES = "model.config_overrides=null"  # those there are keys of another architecture's config.json
# The folder's model_type (none: the file's own MPT, made tiny), and what else the file needs.
FOLDERS = {
    "finetune/1b_local_data_sft.yaml": (None, [*LOCAL_SFT, "load_path=start", "max_duration=3ba"]),  # goes on at step 1
    "finetune/7b_dolly_sft.yaml": (None, [ANSWERS, "load_path=start"]),
    "finetune/dbrx-full-ft.yaml": ("dbrx", [ANSWERS, EVAL_ANSWERS, "run_name=tuned"]),
    "finetune/dbrx-lora-ft.yaml": ("dbrx", [ANSWERS, EVAL_ANSWERS, "run_name=tuned"]),
    "finetune/gpt2-arc-easy-cpu-streaming-dataset.yaml": ("llama", ["variables.data_local=answers"]),
    "finetune/llama-3-8b_domain_adapt.yaml": ("llama", [TEXT, NO_OVERRIDES]),
    "finetune/mpt-30b-instruct.yaml": ("mpt", [ANSWERS, EVAL_ANSWERS, *NO_TASKS, "icl_max_seq_len=null"]),
    "finetune/mpt-7b_dolly_sft.yaml": ("mpt", [ANSWERS, EVAL_ANSWERS]),
    "pretrain/gpt-neo-125m.yaml": ("llama", [TEXT]),
    "pretrain/gpt-neo-125m_eval.yaml": ("llama", [TEXT, *NO_TASKS, "eval_gauntlet=null"]),
    "pretrain/gpt2-small.yaml": ("llama", [TEXT, NO_OVERRIDES]),
    "pretrain/hf-llama-3.1-8B.yaml": ("llama", [TEXT]),
    "pretrain/opt-3b.yaml": ("llama", [TEXT]),
}
MODELS = sorted({model for model, _ in FOLDERS.values() if model})

INTRODUCTION = """\
# Every key of a training config

LLM Foundry's YAML is read as it is: its keys, its defaults. This page is written by the program itself and checked by a test,
so it lists what this version reads and nothing else; after a change of a key it is renewed by

```
python tests/cli/yaml_page.py build/cpu/bin/dropless > docs/yaml.md
```

Of each key there is one of three things to say. *Implemented*: it does what it does in LLM Foundry. *No effect*: it may stand
there, changes nothing here, and a warning says why. **Refused**: what it asks for cannot be done; an error names the key and
its place. A key that is in no table is an error too, with the nearest known one. What the keys mean is told in
[training.md](training.md) and [data.md](data.md). A default that follows from other keys is that of a model with `d_model` 16.

How values are written:

- *time*: a number and `ba` (batches), `ep` (epochs), `sp` (samples), `tok` (tokens), `iter` (batches), `dur` (a fraction of
  `max_duration`) or `sec`, in capitals or not: `100ba`, `3e4tok`, `0.02dur`; or `1h30m10s`. A number alone counts epochs.
  Only `dur` and `sec` take fractions. LLM Foundry wants `t_warmup` and `t_max` in one unit; here all but seconds are turned into batches.
- *integer*: `5`, `5.0`, `3e4`, `1_000`. *number*: 0, or of a size that fp32 has. *true or false*: not `yes`, `no`, `on`, `off`.
  A value in quotes is a string.
- `${variables.x}` takes the value of any other key by its full path; `\\${` stays as it is.
- An override, `key.path=value`, replaces; a mapping in it is merged into the one there.
- A file has at most 1 MiB, 100,000 values after aliases and `${}`, and 100 levels.

The same file trains the same on any number of devices: `global_train_batch_size` is a step's samples,
`device_train_microbatch_size` only cuts it (a larger one is lowered to it with a warning), `device_eval_batch_size` is the microbatch where it is
absent, and 1 with `auto`. Each microbatch's loss is weighed by its share of the scored tokens.
"""


def make_data(binary: pathlib.Path, folder: pathlib.Path) -> None:
    """Small sets of token ids and of answers under the names of splits that the files use, small models, and a checkpoint `start`."""
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"{i} and 1: ", "response": str(i + 1)}) + "\n" for i in range(40)))
    verb = [binary, "data"]
    for split in ["train", "val", "train_small", "val_small"]:
        out = ["--out", folder / "data" / split, "--tokenizer", "bytes", "--concat-tokens", "32"]
        subprocess.run([*verb, "text", text, *out], check=True, capture_output=True)
    for split in ["train", "test"]:
        subprocess.run([*verb, "json", pairs, "--out", folder / "answers" / split], check=True, capture_output=True)
    for name in MODELS:
        config = dict(hf_models.CONFIGS[name], vocab_size=257)
        hf_models.write_folder(folder / name, config, hf_models.weights(config, torch.float32))
    start = [*SHAPE, *FOLDER, *LOCAL_SFT, "load_path=null", "max_duration=1ba", "save_folder=start"]
    fixture = FIXTURES / "finetune" / "1b_local_data_sft.yaml"
    subprocess.run([binary, "train", fixture, *start], cwd=folder, check=True, capture_output=True)


# `local`: of a file that names something on the hub, the fate with folders in its place.
Fate = collections.namedtuple("Fate", "name runs code error hint idle folder local", defaults=[None])


def run(binary: pathlib.Path, fixture: pathlib.Path, folder: pathlib.Path, where: pathlib.Path, overrides: list) -> Fate:
    where.mkdir()
    for name in ["data", "answers", "start", *MODELS]:
        (where / name).symlink_to(folder / name)
    (where / fixture.name).write_bytes(fixture.read_bytes())
    result = subprocess.run(
        [binary, "train", fixture.name, *overrides], cwd=where, capture_output=True, text=True, timeout=300
    )
    error = re.search(r"^error: (.*)", result.stderr, re.M)
    hint = re.search(r"^hint: (.*)", result.stderr, re.M)
    idle = re.findall(r": (\S+) has no effect", result.stderr)
    name = fixture.relative_to(FIXTURES).as_posix()
    return Fate(name, result.returncode == 0, result.returncode, error and error[1], hint and hint[1], idle, where)


def fate_of(binary: pathlib.Path, fixture: pathlib.Path, folder: pathlib.Path) -> Fate:
    """Runs the file: those of an MPT made tiny, the others as they stand, and with folders for what is on the hub."""
    tiny = re.search(r"^  name: mpt_causal_lm$", fixture.read_text(), re.M) is not None
    where = folder / fixture.relative_to(FIXTURES).as_posix().replace("/", "-").removesuffix(".yaml")
    fate = run(binary, fixture, folder, where, TINY if tiny else [])
    if fate.name not in FOLDERS:
        return fate
    model, more = FOLDERS[fate.name]
    overrides = [*([f"model.pretrained_model_name_or_path={model}"] if model else SHAPE), *FOLDER, *more]
    return fate._replace(local=run(binary, fixture, folder, where.with_name(where.name + "-local"), overrides))


def fates(binary: pathlib.Path, folder: pathlib.Path) -> list:
    make_data(binary, folder)
    return [fate_of(binary, fixture, folder) for fixture in sorted(FIXTURES.glob("*/*.yaml"))]


def reason(fate: Fate) -> str:
    text = re.sub(r"^(\S+:\d+:\d+|override \".*?\"): ", "", fate.error) + (f" ({fate.hint})" if fate.hint else "")
    return text.replace("|", chr(92) + "|")


def files_section(all_fates: list) -> str:
    running = [fate for fate in all_fates if fate.runs]
    common = [key for key in running[0].idle if all(key in fate.idle for fate in running)]
    listed = ", ".join(f"`{key}`" for key in common)
    of_folders = sum(fate.local is not None and fate.local.runs for fate in all_fates)
    lines = [
        "\n## LLM Foundry's training files\n",
        f"The {len(all_fates)} files under `scripts/train/yamls`, written anew in `tests/cli/fixtures`. {len(running)} run (with the model made",
        f"small and a local data set, two steps, in a test), and {of_folders} of those that name models or data sets of the hub run with folders in their",
        f"place; the others are refused before anything starts. Of those that run as they are, all have these keys without effect: {listed}.\n",
        "With folders: `model.pretrained_model_name_or_path` names a Hugging Face folder of a family that is read here ([models.md](models.md)),",
        "`hf_name` the folder of a set that `data json` wrote, `load_path` a checkpoint of this program; `icl_tasks` that name no file here and stale keys are taken out. GPT-2, GPT-Neo",
        "and OPT are no such family: for these files the folder is a small Llama's, and overrides of keys that only the other's `config.json` has are taken out.\n",
        "| file | here | with folders | why |",
        "|---|---|---|---|",
    ]
    for fate in all_fates:
        why, local = [], ""
        if fate.runs:
            more = [f"`{key}`" for key in fate.idle if key not in common]
            why = ["no effect too: " + ", ".join(more)] if more else []
        else:
            why = [reason(fate)]
        if fate.local:
            local = "runs" if fate.local.runs else "refused"
            why += [] if fate.local.runs else ["with folders: " + reason(fate.local)]
        lines.append(f"| `{fate.name}` | {'runs' if fate.runs else 'refused'} | {local} | {'; '.join(why)} |")
    return "\n".join(lines) + "\n"


def page(binary: pathlib.Path, all_fates: list) -> str:
    keys = subprocess.run([binary.parent / "config_keys"], check=True, capture_output=True, text=True).stdout
    return INTRODUCTION + files_section(all_fates) + "\n## Keys\n\n" + keys


def main() -> None:
    binary = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        print(page(binary, fates(binary, pathlib.Path(folder))), end="")


if __name__ == "__main__":
    main()
