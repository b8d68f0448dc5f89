#!/usr/bin/env python3
"""Mixture-of-experts layers of Python packages, for `dropless bench moe --rivals "python3 benchmarks/moe_rivals.py"`.

hugging_face: OlmoeSparseMoeBlock of transformers, its experts by `grouped_mm`; hf_compiled: the same under
torch.compile. sonic: sonic-moe's layer (QuACK kernels, bf16, a Hopper GPU). Whichever imports.

A line of JSON on standard input asks for something, a line of JSON on standard output answers:

    {"prepare": {"T", "d", "f", "E", "k", "dtype": "bf16", "routing": "router", "loads": [], "device": "cuda:0"}}
        -> {"rivals": {NAME: what it is}, "absent": {NAME: why}}
    {"time": NAME, "backward": false, "calls": 1}
        -> {"ms": milliseconds of a run, the mean of so many queued at once, or null where it failed, as for want of memory}

All are SwiGLU layers with random weights of [E, 2 f, d] and [E, d, f]. `router` routes by a random router, the others
by logits that stand in the tokens' first E columns, as in apps/bench_case.h. Before its first run each is
compared with a loop over the experts in fp32 on a small problem; a difference of over 2 % is an error.
"""

import contextlib
import json
import sys
import time

import torch
from torch.nn import functional

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Problem:
    """A layer's tensors: x [T, d], router [E, d], up [E, 2 f, d] (gate first), down [E, d, f], d_out [T, d]."""

    def __init__(self, shape, seed=0):
        self.k, tokens, d, f, experts = (shape[name] for name in ("k", "T", "d", "f", "E"))
        self.device = torch.device(shape["device"])
        options = dict(dtype=DTYPES[shape["dtype"]], device=self.device)
        torch.manual_seed(seed)
        self.x = torch.randn(tokens, d, **options)
        self.router = torch.randn(experts, d, **options) / d**0.5
        if shape["routing"] != "router":
            self.x[:, :experts] = choice_logits(shape, tokens, experts, self.device)
            self.router.zero_()[:, :experts].fill_diagonal_(1)
        self.up = torch.randn(experts, 2 * f, d, **options) / d**0.5
        self.down = torch.randn(experts, d, f, **options) / f**0.5
        self.d_out = torch.randn(tokens, d, **options)
        for tensor in self.inputs():
            tensor.requires_grad_()

    def inputs(self):
        return [self.x, self.router, self.up, self.down]


def choice_logits(shape, tokens, experts, device):
    """Logits [T, E] that send every expert as many tokens, or expert e some by weight 1 / (e + 1) or loads[e]."""
    k = shape["k"]
    if shape["routing"] == "uniform":
        first = (torch.arange(tokens, device=device) * k % experts).unsqueeze(1)
        chosen = (torch.arange(experts, device=device) - first) % experts < k
        return chosen * 4 + 0.1 * torch.randn(tokens, experts, device=device)
    gumbel = -torch.rand(tokens, experts, device=device).clamp(1e-7, 1 - 1e-7).log().neg().log()
    if shape["routing"] == "zipf":
        return gumbel - torch.arange(experts, device=device).log1p()
    return gumbel + torch.tensor(shape["loads"], device=device).log()


class HuggingFace:
    """transformers' block. Scores are softmax over all experts, not normalised again, as ours are in `bench moe`."""

    def __init__(self, problem, compiled=False):
        import transformers
        from transformers.models.olmoe.modeling_olmoe import OlmoeConfig, OlmoeSparseMoeBlock

        experts, twice_f, d = problem.up.shape
        config = OlmoeConfig(hidden_size=d, intermediate_size=twice_f // 2, num_experts=experts,
                             num_experts_per_tok=problem.k, norm_topk_prob=False)
        config._experts_implementation = "grouped_mm"
        with torch.device("meta"):
            block = OlmoeSparseMoeBlock(config)
        block.gate.weight = torch.nn.Parameter(problem.router)
        block.experts.gate_up_proj = torch.nn.Parameter(problem.up)
        block.experts.down_proj = torch.nn.Parameter(problem.down)
        self.weights = [block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj]
        self.block = torch.compile(block) if compiled else block
        self.problem = problem
        self.about = f"transformers {transformers.__version__}, grouped_mm" + (", torch.compile" if compiled else "")

    def forward(self):
        return self.block(self.problem.x.unsqueeze(0)).squeeze(0)

    def backward(self, out):
        torch.autograd.grad(out, [self.problem.x, *self.weights], self.problem.d_out)

    scores = staticmethod(lambda logits, k: logits.softmax(-1).topk(k))


class Sonic:
    """sonic-moe. Scores are softmax over the chosen experts' logits; gate and up lie row by row beside each other."""

    def __init__(self, problem):
        import importlib.metadata

        from sonicmoe.enums import ActivationType
        from sonicmoe.functional import moe_TC_softmax_topk_layer

        if problem.up.dtype != torch.bfloat16:
            raise ValueError("takes bf16 alone")
        gate, up = problem.up.detach().chunk(2, dim=1)
        self.up = torch.stack([gate, up], dim=2).flatten(1, 2).requires_grad_()
        self.problem, self.layer, self.activation = problem, moe_TC_softmax_topk_layer, ActivationType.SWIGLU
        self.about = (f"sonic-moe {importlib.metadata.version('sonic-moe')}, "
                      f"quack-kernels {importlib.metadata.version('quack-kernels')}")

    def forward(self):
        p = self.problem
        stream = torch.cuda.current_stream().cuda_stream
        inference = not torch.is_grad_enabled()
        return self.layer(p.x, p.router, self.up.permute(1, 2, 0), None, p.down.permute(1, 2, 0), None, p.k, stream,
                          self.activation, inference)[0]

    def backward(self, out):
        p = self.problem
        torch.autograd.grad(out, [p.x, p.router, self.up, p.down], p.d_out)

    @staticmethod
    def scores(logits, k):
        chosen = logits.topk(k)
        return chosen.values.softmax(-1), chosen.indices


RIVALS = {
    "hugging_face": HuggingFace,
    "hf_compiled": lambda problem: HuggingFace(problem, compiled=True),
    "sonic": Sonic,
}


def plain_layer(problem, scores):
    """The layer as a loop over the experts in fp32."""
    x, router, up, down = (tensor.detach().float() for tensor in problem.inputs())
    weights, indices = scores(x @ router.T, problem.k)
    out = torch.zeros_like(x)
    for expert in range(up.shape[0]):
        token, place = (indices == expert).nonzero(as_tuple=True)
        gate, value = (x[token] @ up[expert].T).chunk(2, dim=-1)
        y = (functional.silu(gate) * value) @ down[expert].T
        out.index_add_(0, token, y * weights[token, place].unsqueeze(1))
    return out


def check(make, shape):
    small = Problem({**shape, "T": 512, "d": 256, "f": 256, "E": 8, "k": min(shape["k"], 4), "routing": "router"})
    rival = make(small)
    with torch.no_grad():
        out, plain = rival.forward().float(), plain_layer(small, rival.scores)
    # A token whose last two choices round to the same logit may go elsewhere: the median token, not all of them.
    difference = ((out - plain).norm(dim=1) / plain.norm(dim=1)).median().item()
    if not difference < 0.02:
        raise ValueError(f"differs from a loop over the experts by {difference:.1%}")


def run(rival, backward):
    if backward:
        rival.backward(rival.forward())
    else:
        with torch.no_grad():
            rival.forward()


def time_ms(device, work):
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Server:
    def __init__(self, names):
        self.names, self.rivals, self.checked = names, {}, set()

    def prepare(self, shape):
        self.rivals = {}
        torch._dynamo.reset()  # or what it compiled for other shapes makes it generalise, and at last give up
        if shape["device"].startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.set_device(shape["device"])
        try:
            problem, absent = Problem(shape), {}
        except torch.OutOfMemoryError as error:
            return {"rivals": {}, "absent": {name: first_line(error) for name in self.names}}
        for name in self.names:
            try:
                if name not in self.checked:
                    check(RIVALS[name], shape)
                    self.checked.add(name)
                self.rivals[name] = RIVALS[name](problem)
            except Exception as error:
                absent[name] = first_line(error)
        return {"rivals": {name: rival.about for name, rival in self.rivals.items()}, "absent": absent}

    def time(self, name, backward, calls):
        rival = self.rivals[name]

        def work():
            for _ in range(calls):
                run(rival, backward)

        try:
            return {"ms": time_ms(rival.problem.device, work) / calls}
        except Exception as error:  # it may fail in its compiler or a kernel; the others go on
            if rival.problem.device.type == "cuda":
                torch.cuda.empty_cache()
            print(f"{name}: {first_line(error)}", file=sys.stderr)
            return {"ms": None}


def main():
    names = sys.argv[1:] or list(RIVALS)
    unknown = [name for name in names if name not in RIVALS]
    if unknown:
        sys.exit(f"no rival {unknown[0]}; one of: {', '.join(RIVALS)}")
    server = Server(names)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what packages print is no answer
        for line in sys.stdin:
            request = json.loads(line)
            if "prepare" in request:
                answer = server.prepare(request["prepare"])
            else:
                answer = server.time(request["time"], request["backward"], request["calls"])
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
