"""Fifty steps of `dropless train` equal those of a trainer in plain PyTorch that is written from the
formulas and starts from the same weights on the same rows: losses, gradient norms, rates and the final
weights, to 1e-9 in fp64 and 1e-4 in fp32.

In fp32 rounding may send a token to another expert than in the other program, and everything after it
differs by more than rounding: such choices are counted."""

import math
import unittest

import torch
from command import CONFIG, CommandTest, read_safetensors, text

import plain_model

STEPS, BATCH, LENGTH, WARMUP = 50, 8, 32, 4
LR, BETAS, EPS, DECAY, ALPHA_F, CLIP = 3e-3, (0.9, 0.95), 1e-8, 1e-2, 0.1, 0.5
MODEL = {
    "n_layers": 2, "d_model": 64, "n_heads": 4, "kv_n_heads": 4, "rope": True, "norm": "rmsnorm",
    "experts": 8, "top_k": 2, "normalize": True, "act": "silu", "glu": True,
}  # fmt: skip
OVERRIDES = [
    f"model.d_model={MODEL['d_model']}", f"model.ffn_config.moe_num_experts={MODEL['experts']}",
    f"optimizer.weight_decay={DECAY}", f"algorithms.gradient_clipping.clipping_threshold={CLIP}",
    f"max_duration={STEPS}ba", "train_loader.dataset.shuffle=false", "eval_loader=null",
]  # fmt: skip
# Of losses, their parts and gradient norms; of the weights, relative to each tensor's norm.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4}


def multiplier(step: int) -> float:
    """Of the learning rate after `step` steps: a linear warm-up, then a cosine to ALPHA_F."""
    if step < WARMUP:
        return step / WARMUP
    tau = (step - WARMUP) / (STEPS - WARMUP)
    return ALPHA_F + (1 - ALPHA_F) * (1 + math.cos(math.pi * tau)) / 2


class DecoupledAdamW:
    """Loshchilov and Hutter (arXiv:1711.05101): decay by wd lr / lr_0, not by wd lr."""

    def __init__(self, weights):
        self.weights = weights
        self.m = [torch.zeros_like(w) for w in weights]
        self.v = [torch.zeros_like(w) for w in weights]
        self.steps = 0

    @torch.no_grad()
    def step(self, rate):
        self.steps += 1
        unbias = [1 - beta**self.steps for beta in BETAS]
        for w, m, v in zip(self.weights, self.m, self.v):
            w *= 1 - DECAY * rate / LR
            m += (1 - BETAS[0]) * (w.grad - m)
            v += (1 - BETAS[1]) * (w.grad**2 - v)
            w -= rate * (m / unbias[0]) / ((v / unbias[1]).sqrt() + EPS)


def train(weights: dict, rows, microbatch: int, balance_weight: float):
    """Yields each step's figures, and the weights before it."""
    for w in weights.values():
        w.requires_grad_(True)
    optimizer = DecoupledAdamW(list(weights.values()))
    for step in range(STEPS):
        before = {name: w.detach().clone() for name, w in weights.items()}
        batch = rows[step * BATCH : (step + 1) * BATCH]
        cross_entropy = balance = 0.0
        for part in batch.split(microbatch):
            share = len(part) / BATCH  # of the tokens: all rows are full
            ce, lbl, _ = plain_model.loss(weights, part, MODEL)
            (share * (ce + balance_weight * lbl)).backward()
            cross_entropy += share * ce.item()
            balance += share * balance_weight * lbl.item()
        norm = torch.cat([w.grad.flatten() for w in weights.values()]).norm()
        for w in weights.values():
            w.grad *= min(1, CLIP / (norm.item() + 1e-6))
        rate = LR * multiplier(step)
        optimizer.step(rate)
        for w in weights.values():
            w.grad = None
        figures = {
            "loss/train/loss": cross_entropy, "loss/train/lbl": balance, "loss/train/total": cross_entropy + balance,
            "l2_norm/grad/global": norm.item(), "lr-DecoupledAdamW/group0": rate,
        }  # fmt: skip
        yield figures, before


@torch.no_grad()
def choices(weights: dict, batch) -> list:
    """Each layer's experts of each token, as sets."""
    model = MODEL | {"choices": []}
    plain_model.logits(weights, batch, model)
    return [chosen.sort(-1).values for chosen in model["choices"]]


class PlainTrainerTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        self.write_config()
        data = text(1, 20000).encode()
        self.rows = torch.tensor([list(data[LENGTH * i : LENGTH * (i + 1)]) for i in range(STEPS * BATCH)])

    def weights(self, checkpoint) -> dict:
        return plain_model.tensors(read_safetensors(self.folder / checkpoint / "model.safetensors"))

    def compare(self, name: str, precision: str, microbatch: int, balance_weight: float, *more):
        options = [*OVERRIDES, f"precision={precision}", f"device_train_microbatch_size={microbatch}",
                   f"model.ffn_config.moe_loss_weight={balance_weight}", *more]  # fmt: skip
        self.check_command(
            "train", "config.yaml", f"save_folder={name}", "save_interval=1ba", "save_weights_only=true", *options
        )
        self.check_command("train", "config.yaml", "save_folder=start", "save_overwrite=true", *options,
                           "max_duration=1ba", "scheduler.t_warmup=0ba", "optimizer=null", "optimizer={name: no_op}")  # fmt: skip
        weights = self.weights("start/latest")
        self.assertEqual({w.dtype for w in weights.values()}, {plain_model.DTYPES["F64" if precision == "fp64" else "F32"]})

        largest, flips, chosen = {}, 0, 0
        lines = self.metrics(name)
        self.assertEqual(len(lines), STEPS)
        for step, (figures, before) in enumerate(train(weights, self.rows, microbatch, balance_weight)):
            for key, value in figures.items():
                difference = abs(lines[step][key] - value)
                largest[key] = max(largest.get(key, 0), difference)
            if step == 0:
                continue
            batch = self.rows[step * BATCH : (step + 1) * BATCH]
            for ours, theirs in zip(choices(self.weights(f"{name}/step-{step}"), batch), choices(before, batch)):
                flips += (ours != theirs).any(-1).sum().item()
                chosen += len(ours)
        final = self.weights(f"{name}/step-{STEPS}")
        largest["weights, relative"] = max(((final[n] - w).norm() / w.norm()).item() for n, w in weights.items())
        print(f"{name}: {flips} of {chosen} choices of experts differ; largest differences: "
              + ", ".join(f"{key} {value:.1e}" for key, value in largest.items()))  # fmt: skip
        # The comparison is of a run that learns, and that clips.
        self.assertLess(lines[-1]["loss/train/loss"], lines[0]["loss/train/loss"] - 1)
        self.assertTrue(any(line["l2_norm/grad/global"] > CLIP for line in lines))
        for key, value in largest.items():
            loose = 100 if key == "weights, relative" else 1
            self.assertLess(value, loose * TOLERANCE[precision], key)
        if precision == "fp64":
            self.assertEqual(flips, 0)

    def test_fp64_without_balance_in_uneven_microbatches(self):
        self.compare("fp64", "fp64", 3, 0)

    def test_fp64_with_balance_in_equal_microbatches(self):
        self.compare("fp64-lbl", "fp64", 4, 0.02)

    def test_fp64_of_the_other_backends(self):
        for backend in ["reference", "torch"]:
            with self.subTest(backend):
                self.compare(f"fp64-{backend}", "fp64", 4, 0.02, f"model.ffn_config.backend={backend}")

    def test_fp32_without_balance_in_uneven_microbatches(self):
        self.compare("fp32", "fp32", 3, 0)

    def test_fp32_with_balance_in_equal_microbatches(self):
        self.compare("fp32-lbl", "fp32", 4, 0.02)


if __name__ == "__main__":
    unittest.main()
