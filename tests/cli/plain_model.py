"""The language model in plain PyTorch, written from the formulas: a loop over experts, no shared code
with dropless. It reads a dropless checkpoint and serves as the oracle for loss and gradients."""

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}


def tensors(entries: dict) -> dict:
    """read_safetensors' entries -> name -> tensor."""
    return {
        name: torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape, data) in entries.items()
        if dtype in DTYPES
    }


def norm(x, weights, name, kind, eps=1e-5):
    weight = weights[f"{name}.weight"]
    if kind == "rmsnorm":
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
    mean = x.mean(-1, keepdim=True)
    var = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * weight + weights.get(f"{name}.bias", 0)


def rotate(x, theta):
    """x [B, S, heads, d]."""
    half = x.shape[-1] // 2
    position = torch.arange(x.shape[1], dtype=torch.float64)
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = position[:, None] * frequency[None, :]
    cos, sin = angle.cos().to(x.dtype)[:, None, :], angle.sin().to(x.dtype)[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def linear(x, weights, name):
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def attention(x, weights, name, model):
    B, S, _ = x.shape
    heads, kv = model["n_heads"], model["kv_n_heads"]
    d = model["d_model"] // heads
    q, k, v = linear(x, weights, f"{name}.Wqkv").split([heads * d, kv * d, kv * d], -1)
    whole = f"{name}.q_ln.weight" in weights and weights[f"{name}.q_ln.weight"].numel() == heads * d
    q, k, v = q.view(B, S, heads, d), k.view(B, S, kv, d), v.view(B, S, kv, d)
    if f"{name}.q_ln.weight" in weights:
        # qk_ln over all heads of a token at once, qk_gn over each.
        q, k = q.flatten(2) if whole else q, k.flatten(2) if whole else k
        q = norm(q, weights, f"{name}.q_ln", model["norm"]).view(B, S, heads, d)
        k = norm(k, weights, f"{name}.k_ln", model["norm"]).view(B, S, kv, d)
    if model["rope"]:
        q, k = rotate(q, 10000.0), rotate(k, 10000.0)
    k, v = (t.repeat_interleave(heads // kv, 2) for t in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q, k) * model.get("scale", d**-0.5)
    scores = scores.masked_fill(torch.ones(S, S).triu(1).bool(), float("-inf"))
    out = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v).reshape(B, S, heads * d)
    return linear(out, weights, f"{name}.out_proj")


def moe(x, weights, name, model):
    """Returns the output and the two router losses, unweighted."""
    rows = x.reshape(-1, x.shape[-1])
    E, K, act = model["experts"], model["top_k"], ACTIVATIONS[model["act"]]
    logits = rows @ weights[f"{name}.router.layer.weight"].T
    probabilities = logits.softmax(-1)
    top, chosen = probabilities.topk(K, -1)
    if model["normalize"]:
        top = top / top.sum(-1, keepdim=True)
    w1, w2 = (weights[f"{name}.experts.mlp.{w}"].view(E, -1, rows.shape[1]) for w in ("w1", "w2"))
    v1 = weights.get(f"{name}.experts.mlp.v1")
    out = torch.zeros_like(rows)
    count = torch.zeros(E, dtype=rows.dtype)
    for e in range(E):
        token, slot = (chosen == e).nonzero(as_tuple=True)
        count[e] = len(token)
        hidden = act(rows[token] @ w1[e].T)
        if v1 is not None:
            hidden = hidden * (rows[token] @ v1.view_as(w1)[e].T)
        out = out.index_add(0, token, top[token, slot, None] * (hidden @ w2[e]))
    balance = E / (len(rows) * K) * (count * probabilities.mean(0)).sum()
    z = logits.logsumexp(-1).pow(2).mean()
    out = out.view_as(x) + weights.get(f"{name}.experts.bias", 0)
    if f"{name}.shared_expert.up_proj.weight" in weights:
        shared = ffn(x, weights, f"{name}.shared_expert", model)
        if f"{name}.shared_expert_gate.weight" in weights:
            shared = shared * linear(x, weights, f"{name}.shared_expert_gate").sigmoid()
        weighted = model.get("shared_weighted", False)
        out = (shared + K * out) / (K + 1) if weighted else shared + out
    return out, balance, z


def ffn(x, weights, name, model):
    act = ACTIVATIONS[model["act"]]
    up = linear(x, weights, f"{name}.up_proj")
    hidden = act(linear(x, weights, f"{name}.gate_proj")) * up if model["glu"] else act(up)
    return linear(hidden, weights, f"{name}.down_proj")


def trunk(weights, tokens, model):
    """tokens [B, S] -> (logits [B, S, V], balance losses, z-losses by layer)."""
    x = weights["transformer.wte.weight"][tokens]
    if not model["rope"]:
        x = x + weights["transformer.wpe.weight"][: tokens.shape[1]]
    balances, zs = [], []
    for i in range(model["n_layers"]):
        name = f"transformer.blocks.{i}"
        normed = norm(x, weights, f"{name}.norm_1", model["norm"])
        x = x + attention(normed, weights, f"{name}.attn", model)
        normed = norm(x, weights, f"{name}.norm_2", model["norm"])
        if model["experts"]:
            out, balance, z = moe(normed, weights, f"{name}.ffn", model)
            balances.append(balance)
            zs.append(z)
        else:
            out = ffn(normed, weights, f"{name}.ffn", model)
        x = x + out
    x = norm(x, weights, "transformer.norm_f", model["norm"])
    head = weights.get("lm_head.weight", weights["transformer.wte.weight"])
    return x @ head.T, balances, zs


def logits(weights, tokens, model):
    return trunk(weights, tokens, model)[0]


def loss(weights, tokens, model):
    """tokens [B, S] -> (cross-entropy per predicted token, mean balance loss, sum of z-losses)."""
    logits, balances, zs = trunk(weights, tokens, model)
    cross_entropy = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    if not balances:
        return cross_entropy, None, None
    return cross_entropy, torch.stack(balances).mean(), torch.stack(zs).sum()
