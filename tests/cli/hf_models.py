"""Small random models in Hugging Face's layout, one of each family that `dropless` reads: the same bytes
for the test here and for transformers, whose figures make_hf_logits.py stores."""

import json
import pathlib
import struct
import zlib

import torch

# A padding token, OLMoE's default, has no gradient in transformers' table: null keeps it out.
LLAMA = dict(
    vocab_size=96, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, hidden_act="silu", tie_word_embeddings=False, eos_token_id=None,
)
EXPERTS = dict(intermediate_size=40, num_experts_per_tok=2)
CONFIGS = {
    # As their first releases spell it ...
    "mixtral": dict(
        LLAMA, **EXPERTS, model_type="mixtral", num_local_experts=4, rope_theta=1e6, rms_norm_eps=1e-5,
        sliding_window=None, torch_dtype="float32", router_aux_loss_coef=0.02,
    ),
    "olmoe": dict(
        LLAMA, **EXPERTS, model_type="olmoe", num_experts=4, rope_theta=10000.0, rms_norm_eps=1e-3,
        norm_topk_prob=False, clip_qkv=None, pad_token_id=None, rope_scaling=None, attention_bias=False,
    ),
    # ... and as transformers 5 does.
    "olmoe_normalized": dict(
        LLAMA, **EXPERTS, model_type="olmoe", num_experts=4, norm_topk_prob=True, rms_norm_eps=1e-5, pad_token_id=None, clip_qkv=0.9,
        rope_parameters=dict(rope_theta=500.0, rope_type="default"), dtype="float32",
    ),
    "qwen3_moe": dict(
        LLAMA, model_type="qwen3_moe", head_dim=16, intermediate_size=64, moe_intermediate_size=40,
        num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[], rms_norm_eps=1e-6, rope_theta=1e6, use_sliding_window=False,
        sliding_window=None, max_window_layers=2,
    ),
    "qwen2_moe": dict(
        LLAMA, model_type="qwen2_moe", intermediate_size=64, moe_intermediate_size=40, num_experts=4,
        num_experts_per_tok=2, norm_topk_prob=False, shared_expert_intermediate_size=56, decoder_sparse_step=1,
        mlp_only_layers=[0], num_hidden_layers=3, rms_norm_eps=1e-6, rope_theta=1e6, use_sliding_window=False,
    ),
    "qwen2": dict(LLAMA, model_type="qwen2", intermediate_size=40, rms_norm_eps=1e-6, rope_theta=1e4),
    "windows": dict(
        LLAMA, model_type="mistral", intermediate_size=40, rms_norm_eps=1e-5, rope_theta=1e4, sliding_window=5,
    ),
    "llama3": dict(
        LLAMA, model_type="llama", intermediate_size=40, rms_norm_eps=1e-5, attention_bias=True,
        rope_parameters=dict(
            rope_theta=100.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "yarn": dict(
        LLAMA, model_type="llama", intermediate_size=40, rms_norm_eps=1e-5,
        rope_parameters=dict(
            rope_theta=100.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=16,
        ),
    ),
    "linear": dict(
        LLAMA, model_type="llama", intermediate_size=40, rms_norm_eps=1e-5, rope_theta=100.0,
        rope_scaling=dict(rope_type="linear", factor=3.0),
    ),
    "dynamic": dict(
        dict(LLAMA, max_position_embeddings=16), model_type="llama", intermediate_size=40, rms_norm_eps=1e-5,
        rope_theta=100.0, rope_scaling=dict(rope_type="dynamic", factor=2.0),
    ),
    "llama_bias": dict(
        LLAMA, model_type="llama", intermediate_size=40, rms_norm_eps=1e-5, rope_theta=1e4, mlp_bias=True, attention_bias=False,
    ),
    "llama": dict(LLAMA, model_type="llama", intermediate_size=40, rms_norm_eps=1e-5, rope_theta=5e5),
    "mistral": dict(
        LLAMA, model_type="mistral", intermediate_size=40, rms_norm_eps=1e-5, rope_theta=1e4,
        sliding_window=None, head_dim=16,
    ),
    "qwen3": dict(
        dict(LLAMA, tie_word_embeddings=True), model_type="qwen3", head_dim=16, intermediate_size=40,
        rms_norm_eps=1e-6, rope_theta=1e6, use_sliding_window=False,
        layer_types=["full_attention"] * 2,
    ),
    "dbrx": dict(
        model_type="dbrx", d_model=48, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=96,
        tie_word_embeddings=False, eos_token_id=None, rope_parameters=dict(rope_theta=5e5, rope_type="default"),
        attn_config=dict(kv_n_heads=2, clip_qkv=0.8, rope_theta=5e5),
        ffn_config=dict(
            ffn_act_fn=dict(name="silu"), ffn_hidden_size=40, moe_num_experts=4, moe_top_k=2,
            moe_loss_weight=0.05, moe_normalize_expert_weights=1.0, hidden_size=48,
        ),
    ),
    # LLM Foundry's dense model, as transformers' own class has it.
    "mpt": dict(
        model_type="mpt", architectures=["MptForCausalLM"], d_model=48, n_heads=4, n_layers=2, max_seq_len=128,
        vocab_size=96, expansion_ratio=4, layer_norm_epsilon=1e-5, no_bias=True, eos_token_id=None,
        attn_config=dict(alibi=True, alibi_bias_max=8, clip_qkv=2.5),
    ),
}
PROMPTS = [[5, 17, 80, 3, 44, 91, 2, 60, 33, 8, 71, 12], [90, 1, 1, 25, 63, 14, 38, 77, 50, 9, 4, 29]]
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def shapes(config: dict, stacked: bool = False) -> dict:
    """name -> shape, from the papers' layouts and not from dropless."""
    if config["model_type"] == "dbrx":
        d, v = config["d_model"], config["vocab_size"]
        kv = config["attn_config"]["kv_n_heads"] * d // config["n_heads"]
        ffn = config["ffn_config"]
        e, f = ffn["moe_num_experts"], ffn["ffn_hidden_size"]
        out = {"transformer.wte.weight": (v, d), "lm_head.weight": (v, d), "transformer.norm_f.weight": (d,)}
        for i in range(config["n_layers"]):
            block = f"transformer.blocks.{i}."
            out |= {
                block + "norm_attn_norm.norm_1.weight": (d,),
                block + "norm_attn_norm.norm_2.weight": (d,),
                block + "norm_attn_norm.attn.Wqkv.weight": (d + 2 * kv, d),
                block + "norm_attn_norm.attn.out_proj.weight": (d, d),
                block + "ffn.router.layer.weight": (e, d),
            }
            out |= {block + f"ffn.experts.mlp.{w}": (e * f, d) for w in ("w1", "v1", "w2")}
        return out
    if config["model_type"] == "mpt":
        d, f = config["d_model"], config["d_model"] * config["expansion_ratio"]
        out = {"transformer.wte.weight": (config["vocab_size"], d), "transformer.norm_f.weight": (d,)}
        for i in range(config["n_layers"]):
            block = f"transformer.blocks.{i}."
            out |= {block + f"norm_{j}.weight": (d,) for j in (1, 2)}
            out |= {block + "attn.Wqkv.weight": (3 * d, d), block + "attn.out_proj.weight": (d, d)}
            out |= {block + "ffn.up_proj.weight": (f, d), block + "ffn.down_proj.weight": (d, f)}
        return out
    d, v, heads = config["hidden_size"], config["vocab_size"], config["num_attention_heads"]
    head = config.get("head_dim") or d // heads
    q, kv = heads * head, config["num_key_value_heads"] * head
    kind = config["model_type"]
    out = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = (v, d)
    experts = config.get("num_experts") or config.get("num_local_experts")
    f = config.get("moe_intermediate_size") or config["intermediate_size"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        out |= {
            layer + "input_layernorm.weight": (d,),
            layer + "post_attention_layernorm.weight": (d,),
            layer + "self_attn.q_proj.weight": (q, d),
            layer + "self_attn.k_proj.weight": (kv, d),
            layer + "self_attn.v_proj.weight": (kv, d),
            layer + "self_attn.o_proj.weight": (d, q),
        }
        if kind in ("qwen2", "qwen2_moe") or config.get("attention_bias"):
            out |= {layer + f"self_attn.{name}_proj.bias": (n,) for name, n in (("q", q), ("k", kv), ("v", kv))}
        if config.get("attention_bias"):
            out[layer + "self_attn.o_proj.bias"] = (d,)
        if kind in ("olmoe", "qwen3", "qwen3_moe"):
            out[layer + "self_attn.q_norm.weight"] = (q if kind == "olmoe" else head,)
            out[layer + "self_attn.k_norm.weight"] = (kv if kind == "olmoe" else head,)
        names = ("gate_proj", "up_proj", "down_proj")
        mlp = layer + "mlp."
        if kind == "mixtral" and not stacked:
            names, mlp = ("w1", "w3", "w2"), layer + "block_sparse_moe."
        dense = not experts or i in config.get("mlp_only_layers", [])
        widths = [(mlp, config["intermediate_size"])] if dense else []
        if not dense and kind == "qwen2_moe":
            widths = [(mlp + "shared_expert.", config["shared_expert_intermediate_size"])]
            out[mlp + "shared_expert_gate.weight"] = (1, d)
        for prefix, n in widths:
            out |= {prefix + f"{name}.weight": shape for name, shape in zip(names, ((n, d), (n, d), (d, n)))}
            if config.get("mlp_bias"):
                out |= {prefix + f"{name}.bias": (size,) for name, size in zip(names, (n, n, d))}
        if dense:
            continue
        out[mlp + "gate.weight"] = (experts, d)
        if stacked:
            out[mlp + "experts.gate_up_proj"] = (experts, 2 * f, d)
            out[mlp + "experts.down_proj"] = (experts, d, f)
            continue
        for e in range(experts):
            out |= {
                f"{mlp}experts.{e}.{name}.weight": shape
                for name, shape in zip(names, ((f, d), (f, d), (d, f)))
            }
    return out


def weights(config: dict, dtype=torch.float32) -> dict:
    """Spread so that every part matters: sharp scores, uneven routing, norms away from 1."""
    out = {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        out[name] = (1 + 0.3 * noise if len(shape) == 1 else noise * 1.5 / shape[-1] ** 0.5).to(dtype)
    return out


def stack_experts(config: dict, tensors: dict) -> dict:
    """Per-expert names -> the stacked ones of transformers 5."""
    names = ("gate_proj", "up_proj", "down_proj")
    prefix = "mlp."
    if config["model_type"] == "mixtral":
        names, prefix = ("w1", "w3", "w2"), "block_sparse_moe."
    out = {}
    for name, shape in shapes(config, stacked=True).items():
        if name in tensors:
            out[name] = tensors[name]
            continue
        layer = name[: name.index("mlp.")]
        if name.endswith("mlp.gate.weight"):
            out[name] = tensors[layer + prefix + "gate.weight"]
            continue
        each = [
            [tensors[f"{layer}{prefix}experts.{e}.{part}.weight"] for part in names] for e in range(shape[0])
        ]
        up = name.endswith("gate_up_proj")
        out[name] = torch.stack([torch.cat([gate, v]) if up else down for gate, v, down in each])
    return out


def write_safetensors(path, tensors: dict):
    header, body, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + len(data)],
        }
        body.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(body))


def write_folder(folder, config: dict, tensors: dict):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_safetensors(folder / "model.safetensors", tensors)
