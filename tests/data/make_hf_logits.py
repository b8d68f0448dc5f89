#!/usr/bin/env python3
"""Writes hf_logits.json and hf_gradients.json: what transformers (5.17.0) computes for the models of
tests/cli/hf_models.py.

usage: make_hf_logits.py [NAME...]        all models, or these anew; needs `pip install transformers==5.17.0` beside torch
"""

import json
import pathlib
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "cli"))
import fingerprint  # noqa: E402
import hf_models  # noqa: E402

NEW_TOKENS = 64


def split_experts(config: dict, name: str, tensor: torch.Tensor) -> dict:
    """A tensor of transformers 5, which stacks experts, under the names of the folder."""
    old = "block_sparse_moe" if config["model_type"] == "mixtral" else "mlp"
    gate, up, down = ("w1", "w3", "w2") if config["model_type"] == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    if name.endswith("mlp.gate.weight"):
        return {name.replace("mlp", old): tensor}
    if "mlp.experts." not in name or config["model_type"] == "dbrx":
        return {name: tensor}
    prefix = name[: name.rindex(".") + 1].replace("mlp", old)
    out = {}
    for e, matrix in enumerate(tensor):
        parts = {down: matrix} if name.endswith("down_proj") else dict(zip((gate, up), matrix.chunk(2)))
        out |= {f"{prefix}{e}.{part}.weight": value for part, value in parts.items()}
    return out


def gradients(model, config: dict) -> dict:
    """Fingerprints of every parameter's gradient of the mean loss over both prompts."""
    ids = torch.tensor(hf_models.PROMPTS)
    logits = model(ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    out = {}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for key, part in split_experts(config, name, gradient).items():
            out[key] = fingerprint.of(key, part)
    return out


def figures(model) -> dict:
    ids = torch.tensor(hf_models.PROMPTS)
    with torch.no_grad():
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        greedy = ids
        for _ in range(NEW_TOKENS):
            greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(-1)], 1)
    prefixes = torch.cat([logits[0], logits[1]])
    return {
        "logits_all": fingerprint.of("logits", prefixes),
        "logits_last": [[float(f"{x:.8g}") for x in row] for row in logits[:, -1].tolist()],
        "cross_entropy": loss.item(),
        "greedy": greedy[:, ids.shape[1] :].tolist(),
    }


def main():
    files = ("hf_logits.json", "hf_gradients.json")
    out, slopes = (json.loads((HERE / path).read_text()) if sys.argv[1:] else {} for path in files)
    for name in sys.argv[1:] or hf_models.CONFIGS:
        config = hf_models.CONFIGS[name]
        with tempfile.TemporaryDirectory() as root:
            hf_models.write_folder(root + "/model", config, hf_models.weights(config))
            model = AutoModelForCausalLM.from_pretrained(root + "/model", dtype=torch.float32, attn_implementation="eager")
            out[name] = figures(model.eval())
            slopes[name] = gradients(model, config)
            assert set(slopes[name]) == set(hf_models.shapes(config)), name
    for path, content in zip(files, (out, slopes)):
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
        (HERE / path).write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
