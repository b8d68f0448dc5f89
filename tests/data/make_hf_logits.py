#!/usr/bin/env python3
"""Writes hf_logits.json: what transformers (5.17.0) computes for the models of tests/cli/hf_models.py.

usage: make_hf_logits.py        needs `pip install transformers==5.17.0` beside torch
"""

import json
import pathlib
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "cli"))
import hf_models  # noqa: E402

NEW_TOKENS = 24


def figures(folder) -> dict:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor(hf_models.PROMPTS)
    with torch.no_grad():
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        greedy = ids
        for _ in range(NEW_TOKENS):
            greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(-1)], 1)
    return {
        "logits_last": [[float(f"{x:.8g}") for x in row] for row in logits[:, -1].tolist()],
        "cross_entropy": loss.item(),
        "greedy": greedy[:, ids.shape[1] :].tolist(),
    }


def main():
    out = {}
    for name, config in hf_models.CONFIGS.items():
        with tempfile.TemporaryDirectory() as root:
            hf_models.write_folder(root + "/model", config, hf_models.weights(config))
            out[name] = figures(root + "/model")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in out.items())
    (HERE / "hf_logits.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
