"""The language model in plain PyTorch, written from the formulas: a loop over experts, no shared code
with dropless. It reads a dropless checkpoint and serves as the oracle for loss and gradients."""

import math

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


def frequencies(half, theta, scaling, positions):
    """Of RoPE, with the factor of cos and sin; the formulas of transformers."""
    index = torch.arange(half, dtype=torch.float64)
    kind, factor = scaling.get("type", "no_scaling"), scaling.get("factor", 1)
    if kind == "dynamic" and positions > scaling["trained"]:
        longer = factor * positions / scaling["trained"] - (factor - 1)
        theta = theta * longer ** (2 * half / (2 * half - 2))
    frequency = theta ** (-index / half)
    if kind == "linear":
        return frequency / factor, 1.0
    if kind == "llama3":
        wavelength = 2 * math.pi / frequency
        trained, low, high = scaling["trained"], scaling["low"], scaling["high"]
        smooth = (trained / wavelength - low) / (high - low)
        middle = (1 - smooth) * frequency / factor + smooth * frequency
        out = torch.where(wavelength > trained / low, frequency / factor, middle)
        return torch.where(wavelength < trained / high, frequency, out), 1.0
    if kind == "yarn":
        def where(turns):
            return half * math.log(scaling["trained"] / (turns * 2 * math.pi)) / math.log(theta)

        low, high = max(math.floor(where(32)), 0), min(math.ceil(where(1)), 2 * half - 1)
        ramp = ((index - low) / (high - low if high > low else 0.001)).clamp(0, 1)
        return frequency * (ramp / factor + 1 - ramp), 0.1 * math.log(factor) + 1
    return frequency, 1.0


def rotate(x, theta, scaling):
    """x [B, S, heads, d]."""
    half = x.shape[-1] // 2
    position = torch.arange(x.shape[1], dtype=torch.float64)
    frequency, scale = frequencies(half, theta, scaling, x.shape[1])
    angle = position[:, None] * frequency[None, :]
    cos = (angle.cos() * scale).to(x.dtype)[:, None, :]
    sin = (angle.sin() * scale).to(x.dtype)[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def linear(x, weights, name):
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def alibi(heads, bias_max):
    """The slopes: those of the next power of two, of which every second one first."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-bias_max * h / power) for h in range(1, power + 1)]
    return torch.tensor(slopes if power == heads else (slopes[1::2] + slopes[::2])[:heads], dtype=torch.float64)


def visible(tokens, model, layer):
    """[B, 1, S, S]: which keys (last dimension) a query sees."""
    i = torch.arange(tokens.shape[1])
    back = i[:, None] - i[None, :]
    seen = back >= 0
    window = model["windows"][layer] if "windows" in model else model.get("window", -1)
    if window >= 0:
        seen = seen & (back <= window)
    seen = seen.expand(len(tokens), -1, -1)
    if "eos" in model or "bos" in model:
        is_separator = tokens == model.get("eos", model.get("bos"))
        document = is_separator.cumsum(1) - (is_separator.long() if "eos" in model else 0)
        seen = seen & (document[:, :, None] == document[:, None, :])
    return seen[:, None]


def attention(x, weights, name, model, seen):
    B, S, _ = x.shape
    heads, kv = model["n_heads"], model["kv_n_heads"]
    d = model["d_model"] // heads
    if f"{name}.Wq.weight" in weights:
        q, k, v = (linear(x, weights, f"{name}.W{part}") for part in "qkv")
    else:
        q, k, v = linear(x, weights, f"{name}.Wqkv").split([heads * d, kv * d, kv * d], -1)
    whole = f"{name}.q_ln.weight" in weights and weights[f"{name}.q_ln.weight"].numel() == heads * d
    q, k, v = q.view(B, S, heads, d), k.view(B, S, kv, d), v.view(B, S, kv, d)
    if f"{name}.q_ln.weight" in weights:
        # qk_ln over all heads of a token at once, qk_gn over each.
        q, k = q.flatten(2) if whole else q, k.flatten(2) if whole else k
        q = norm(q, weights, f"{name}.q_ln", model["norm"]).view(B, S, heads, d)
        k = norm(k, weights, f"{name}.k_ln", model["norm"]).view(B, S, kv, d)
    if model["rope"]:
        scaling = model.get("scaling", {})
        q, k = rotate(q, 10000.0, scaling), rotate(k, 10000.0, scaling)
    k, v = (t.repeat_interleave(heads // kv, 2) for t in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q, k) * model.get("scale", d**-0.5)
    if "cap" in model:
        scores = model["cap"] * torch.tanh(scores / model["cap"])
    if "alibi" in model:
        i = torch.arange(S)
        bias = alibi(heads, model["alibi"])[:, None, None] * (i[None, :] - i[:, None])
        scores = scores + bias.to(scores.dtype)
    scores = scores.masked_fill(~seen, float("-inf"))
    out = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v).reshape(B, S, heads * d)
    return linear(out, weights, f"{name}.out_proj")


def moe(x, weights, name, model):
    """Returns the output and the two router losses, unweighted."""
    rows = x.reshape(-1, x.shape[-1])
    E, K, act = model["experts"], model["top_k"], ACTIVATIONS[model["act"]]
    logits = rows @ weights[f"{name}.router.layer.weight"].T
    scores = logits.sigmoid() if model.get("sigmoid") else logits.softmax(-1)
    probabilities = scores / scores.sum(-1, keepdim=True)
    if model.get("uniform"):
        chosen = (torch.arange(len(rows) * K) % E).view(-1, K)
    else:
        eligible = scores + weights.get(f"{name}.router.selection_bias", 0)
        if "groups" in model:
            # Only the best groups', by their two best experts.
            grouped = eligible.view(len(rows), model["groups"], -1)
            best = grouped.topk(2, -1).values.sum(-1).topk(model["group_top_k"], -1).indices
            mask = torch.zeros(grouped.shape[:2]).scatter(1, best, 1).bool()
            eligible = grouped.masked_fill(~mask[:, :, None], float("-inf")).flatten(1)
        chosen = eligible.topk(K, -1).indices
    if "choices" in model:
        model["choices"].append(chosen)
    top = scores.gather(1, chosen)
    if model["normalize"]:
        top = top / top.sum(-1, keepdim=True)
    top = top * model.get("route_scale", 1)
    w1, w2 = (weights[f"{name}.experts.mlp.{w}"].view(E, -1, rows.shape[1]) for w in ("w1", "w2"))
    v1 = weights.get(f"{name}.experts.mlp.v1")
    out = torch.zeros_like(rows)
    count = torch.zeros(E, dtype=rows.dtype)
    for e in range(E):
        token, slot = (chosen == e).nonzero(as_tuple=True)
        count[e] = len(token)
        if "capacity" in model:
            kept = token.argsort(stable=True)[: int(model["capacity"] * K * len(rows) / E)]
            token, slot = token[kept], slot[kept]
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
    if "transformer.wpe.weight" in weights:
        x = x + weights["transformer.wpe.weight"][: tokens.shape[1]]
    # A fraction of the gradient reaches the embeddings; their values stay.
    fraction = model.get("embedding_fraction", 1)
    x = fraction * x + (1 - fraction) * x.detach()
    balances, zs = [], []
    for i in range(model["n_layers"]):
        name = f"transformer.blocks.{i}"
        normed = norm(x, weights, f"{name}.norm_1", model["norm"])
        x = x + attention(normed, weights, f"{name}.attn", model, visible(tokens, model, i))
        normed = norm(x, weights, f"{name}.norm_2", model["norm"])
        if model["experts"] and i in model.get("moe_layers", range(model["n_layers"])):
            out, balance, z = moe(normed, weights, f"{name}.ffn", model)
            balances.append(balance)
            zs.append(z)
        else:
            out = ffn(normed, weights, f"{name}.ffn", model)
        x = x + out
    x = norm(x, weights, "transformer.norm_f", model["norm"])
    head = weights.get("lm_head.weight", weights["transformer.wte.weight"])
    logits = x @ head.T * model.get("logit_scale", 1)
    if "final_cap" in model:
        logits = model["final_cap"] * torch.tanh(logits / model["final_cap"])
    return logits, balances, zs


def logits(weights, tokens, model):
    return trunk(weights, tokens, model)[0]


def loss(weights, tokens, model):
    """tokens [B, S] -> (cross-entropy per predicted token, mean balance loss, sum of z-losses)."""
    logits, balances, zs = trunk(weights, tokens, model)
    cross_entropy = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    if not balances:
        return cross_entropy, None, None
    return cross_entropy, torch.stack(balances).mean(), torch.stack(zs).sum()
