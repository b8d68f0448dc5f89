#!/usr/bin/env python3
"""Times `dropless generate` at batch 1 in bf16 beside transformers (where it is installed) on a random model of OLMoE's
widths, in turns: milliseconds a token, the rate at which the bytes that a token needs are read over the rate of a copy
(bytes read and written), and seconds until the first token. One JSON line.

usage: bench_generate.py BINARY FOLDER [--layers 4] [--device cpu|cuda] [--rounds 5]    needs 3.8 GB below FOLDER
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import time

import torch

D, F, EXPERTS, TOP_K, HEADS, VOCABULARY = 2048, 1024, 64, 8, 16, 50304
PROMPT, TOKENS = [11, 12, 13, 14], 64


def make_model(folder: pathlib.Path, layers: int):
    """OLMoE as its first releases are stored, a matrix an expert."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = dict(
        model_type="olmoe", architectures=["OlmoeForCausalLM"], vocab_size=VOCABULARY, hidden_size=D, intermediate_size=F,
        num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=HEADS, num_experts=EXPERTS,
        num_experts_per_tok=TOP_K, norm_topk_prob=False, hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0,
        max_position_embeddings=4096, tie_word_embeddings=False, attention_bias=False, clip_qkv=None,
        torch_dtype="bfloat16", eos_token_id=None, pad_token_id=None,
    )
    shapes = {"model.embed_tokens.weight": (VOCABULARY, D), "lm_head.weight": (VOCABULARY, D), "model.norm.weight": (D,)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
            shapes[f"{at}{name}.weight"] = (D,)
        for name in "qkvo":
            shapes[f"{at}self_attn.{name}_proj.weight"] = (D, D)
        shapes[at + "mlp.gate.weight"] = (EXPERTS, D)
        for expert in range(EXPERTS):
            for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
                shapes[f"{at}mlp.experts.{expert}.{name}_proj.weight"] = shape
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1 else (torch.randn(shape) * 0.02).bfloat16()
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def bytes_of_a_token(layers: int) -> int:
    """Weights that one token needs, in bf16: attention, router, its experts, the head, one row of the embeddings."""
    return 2 * (layers * (4 * D * D + EXPERTS * D + TOP_K * 3 * D * F) + VOCABULARY * D + D)


def copy_rate(device: str) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB; the best of three."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() / min(seconds[1:])


def time_dropless(binary: str, model: pathlib.Path, device: str) -> dict:
    """A token: the median pass. What the first of them does once, on a GPU the capture of a graph, is `once`."""
    out = subprocess.run(
        [binary, "generate", model, "--device", device, "--dtype", "bf16", "--temperature", "0", "--json", "--timings",
         "--prompt-ids", json.dumps([PROMPT]), "--max-new-tokens", str(TOKENS + 1)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    answer = json.loads(out.stdout)
    seconds = answer["seconds"]
    return dict(
        token=seconds["pass"], once=seconds["passes"] - TOKENS * seconds["pass"],
        first=seconds["load"] + seconds["prompt"], ids=answer["sequences"][0],
    )  # fmt: skip


class Transformers:
    def __init__(self, model: pathlib.Path, device: str):
        import transformers

        self.version = transformers.__version__
        start = time.perf_counter()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device)
        self.first = time.perf_counter() - start + self.time(1)[0]

    def time(self, tokens: int):
        ids = torch.tensor([PROMPT], device=self.model.device)
        start = time.perf_counter()
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
        )
        return time.perf_counter() - start, out[0, len(PROMPT) :].tolist()

    def time_token(self) -> dict:
        few, _ = self.time(1)
        many, ids = self.time(TOKENS + 1)
        return dict(token=(many - few) / TOKENS, first=self.first, ids=ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = args.folder / f"olmoe-{args.layers}"
    if not model.exists():
        make_model(model, args.layers)
    peer = Transformers(model, args.device) if importlib.util.find_spec("transformers") else None
    ours, theirs, copies = [], [], []
    for _ in range(args.rounds):
        copies.append(copy_rate(args.device))
        ours.append(time_dropless(args.binary, model, args.device))
        if peer:
            theirs.append(peer.time_token())
    copy, size = statistics.median(copies), bytes_of_a_token(args.layers)
    token = statistics.median(run["token"] for run in ours)
    report = dict(
        device=args.device, threads=torch.get_num_threads(), megabytes_a_token=round(size / 1e6),
        copy_gb_per_s=round(copy / 1e9, 1), ms_a_token=round(1e3 * token, 2), of_copy=round(size / token / copy, 2),
        first_token_s=round(statistics.median(run["first"] for run in ours), 2),
        ms_once=round(1e3 * statistics.median(run["once"] for run in ours), 1),
    )
    if peer:
        other = statistics.median(run["token"] for run in theirs)
        report |= dict(
            transformers=peer.version, transformers_ms_a_token=round(1e3 * other, 2), ratio=round(other / token, 2),
            transformers_first_token_s=round(peer.first, 2), same_tokens=ours[0]["ids"] == theirs[0]["ids"],
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
