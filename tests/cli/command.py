"""Runs the `dropless` command for the tests, in a scratch folder with a small data set."""

import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BINARY = pathlib.Path(sys.argv.pop(1)).resolve() if len(sys.argv) > 1 else None

CONFIG = """
max_seq_len: 32
seed: 5
model:
  name: mpt_causal_lm
  d_model: 32
  n_heads: 4
  n_layers: 2
  max_seq_len: ${max_seq_len}
  vocab_size: 257
  no_bias: true
  norm_type: rmsnorm
  attn_config: {rope: true}
  ffn_config:
    ffn_type: mb_dmoe
    mlp_type: glu
    ffn_act_fn: {name: silu}
    ffn_hidden_size: 48
    moe_num_experts: 4
    moe_top_k: 2
    moe_world_size: 1
    moe_loss_weight: 0.02
    moe_normalize_expert_weights: 1
tokenizer: {name: bytes}
train_loader:
  name: text
  dataset: {local: data, split: train, shuffle: true, max_seq_len: 32}
  drop_last: true
eval_loader:
  name: text
  dataset: {local: data, split: val, shuffle: false, max_seq_len: 32}
  drop_last: false
optimizer: {name: decoupled_adamw, lr: 3.0e-3, betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 1.0e-5}
scheduler: {name: cosine_with_warmup, t_warmup: 4ba, alpha_f: 0.1}
algorithms:
  gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}
max_duration: 40ba
global_train_batch_size: 8
device_train_microbatch_size: 3
precision: fp32
device: cpu
eval_interval: 20ba
save_interval: 7ba
save_folder: run
"""


def text(seed: int, size: int) -> str:
    """Text with some structure: words drawn from a small vocabulary."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 8))) for _ in range(60)]
    out = []
    length = 0
    while length < size:
        word = rng.choice(words) + rng.choice([" ", " ", " ", "\n", ", "])
        out.append(word)
        length += len(word)
    return "".join(out)[:size]


def read_safetensors(path) -> dict:
    """name -> (dtype, shape, bytes)."""
    raw = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    body = raw[8 + size :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


class CommandTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_command(self, *arguments, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [BINARY, *map(str, arguments)],
            **dict(cwd=self.folder, capture_output=True, text=True, timeout=300) | options,
        )

    def check_command(self, *arguments, **options) -> str:
        """Runs it, expects exit code 0 and returns its standard output."""
        result = self.run_command(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def wait_for(self, condition):
        deadline = time.monotonic() + 120
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def write_data(self, train_bytes: int = 20000, val_bytes: int = 2000):
        for split, seed, size in [("train", 1, train_bytes), ("val", 2, val_bytes)]:
            source = self.folder / f"{split}.txt"
            source.write_text(text(seed, size))
            self.check_command(
                "data", "text", source, "--out", f"data/{split}", "--tokenizer", "bytes",
                "--concat-tokens", 32,
            )

    def write_config(self, name: str = "config.yaml", content: str = CONFIG) -> str:
        (self.folder / name).write_text(content)
        return name

    def step_of(self, run: str) -> int:
        """The last step that a run has told of, also one that is under way or was killed."""
        path = self.folder / run / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        for line in reversed(lines):  # the last may be torn
            try:
                return json.loads(line)["step"]
            except ValueError:
                continue
        return 0

    def metrics(self, run: str = "run") -> list:
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
