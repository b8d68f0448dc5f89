"""Loss and gradients equal those of a plain PyTorch model that reads our checkpoint, to 1e-5 in fp32 and 1e-12 in fp64.

One step with beta1 = beta2 = 0 leaves the gradients themselves in the saved first moments, and a
learning rate of 1e-30 leaves the weights as they were."""

import unittest

import torch
from command import CONFIG, CommandTest, read_safetensors, text

import plain_model

BASE = {
    "n_layers": 2, "d_model": 32, "n_heads": 4, "kv_n_heads": 4, "rope": True, "norm": "rmsnorm",
    "experts": 4, "top_k": 2, "normalize": True, "act": "silu", "glu": True,
}  # fmt: skip
ONE_STEP = [
    "max_duration=1ba", "optimizer.betas=[0,0]", "optimizer.lr=1e-30", "optimizer.weight_decay=0",
    "scheduler.name=constant_with_warmup", "scheduler.t_warmup=0ba", "algorithms=null",
    "train_loader.dataset.shuffle=false", "eval_loader=null",
]  # fmt: skip

CASES = {
    "glu": ([], {}),
    "reference": (["model.ffn_config.backend=reference"], {}),
    "torch": (["model.ffn_config.backend=torch"], {}),
    "mlp": (
        ["model.ffn_config.mlp_type=mlp", "model.ffn_config.ffn_act_fn={name: gelu}", "model.no_bias=false",
         "model.norm_type=layernorm", "model.attn_config={rope: false}", "model.tie_word_embeddings=false",
         "model.ffn_config.moe_normalize_expert_weights=null", "model.ffn_config.moe_zloss_weight=0.01",
         "device_train_microbatch_size=8"],
        {"act": "gelu", "glu": False, "norm": "layernorm", "rope": False, "normalize": False},
    ),
    "shared": (["model.ffn_config.shared_expert=true"], {}),
    "shared_weighted": (
        ["model.ffn_config={shared_expert: true, shared_expert_hidden_size: 20, shared_expert_weighted_sum: true}",
         "model.ffn_config.mlp_type=mlp", "model.no_bias=false"],
        {"shared_weighted": True, "glu": False},
    ),
    "shared_gate": (
        ["model.ffn_config={shared_expert: true, shared_expert_gate: true, backend: torch}"],
        {},
    ),
    "sigmoid_groups": (
        ["model.ffn_config={moe_num_experts: 6, moe_router_score: sigmoid, moe_num_groups: 3, moe_group_top_k: 2, moe_routed_scaling_factor: 2.5}"],
        {"experts": 6, "sigmoid": True, "groups": 3, "group_top_k": 2, "route_scale": 2.5},
    ),
    "sigmoid_torch": (
        ["model.ffn_config={moe_num_experts: 6, moe_router_score: sigmoid, moe_num_groups: 3, moe_group_top_k: 2, backend: torch, "
         "moe_zloss_weight: 0.01}", "device_train_microbatch_size=8"],
        {"experts": 6, "sigmoid": True, "groups": 3, "group_top_k": 2},
    ),
    "uniform": (["model.ffn_config.uniform_expert_assignment=true"], {"uniform": True}),
    # The bias moves after the step: by next to nothing here, so that the oracle reads what the step had.
    "selection_bias": (
        ["model.ffn_config={moe_selection_bias: true, moe_selection_bias_update_rate: 1.0e-30}"],
        {},
    ),
    "capacity": (
        ["model.ffn_config={ffn_type: mb_moe, moe_capacity_factor: 0.75}", "device_train_microbatch_size=8",
         "model.ffn_config.moe_zloss_weight=0.01"],
        {"capacity": 0.75},
    ),
    "one_mixture": (
        ["model.ffn_config={moe_layers: [1], dense_ffn_hidden_size: 40, moe_zloss_weight: 0.01}", "device_train_microbatch_size=8"],
        {"moe_layers": [1]},
    ),
    "grouped_query": (
        ["model.attn_config={attn_type: grouped_query_attention, kv_n_heads: 2}",
         "model.ffn_config.ffn_act_fn=null"],
        {"kv_n_heads": 2, "act": "gelu_tanh"},
    ),
    "qk_ln": (
        ["model.attn_config={rope: true, qk_ln: true, softmax_scale: 0.3, attn_type: grouped_query_attention, kv_n_heads: 2}"],
        {"kv_n_heads": 2, "scale": 0.3},
    ),
    "qk_gn": (
        ["model.attn_config={rope: true, qk_gn: true}", "model.norm_type=layernorm"],
        {"norm": "layernorm"},
    ),
    "window": (["model.attn_config={rope: true, sliding_window_size: 5}"], {"window": 5}),
    "window_by_layer": (
        ["model.block_overrides={order: [{name: near}, {name: default}], overrides: {near: {attn_config: {sliding_window_size: 3}}}}"],
        {"windows": [3, -1]},
    ),
    "alibi": (
        ["model.attn_config={rope: false, alibi: true, alibi_bias_max: 4, sliding_window_size: 9}", "model.n_heads=4"],
        {"rope": False, "alibi": 4, "window": 9},
    ),
    # Six heads: no power of two.
    "alibi_six_heads": (
        ["model.attn_config={rope: false, alibi: true, attn_type: multiquery_attention}", "model.d_model=48", "model.n_heads=6"],
        {"rope": False, "alibi": 8, "d_model": 48, "n_heads": 6, "kv_n_heads": 1},
    ),
    "eos": (
        ["model.attn_config.attn_uses_sequence_id=true", "train_loader.dataset.eos_token_id=32"],
        {"eos": 32},
    ),
    "bos": (
        ["model.attn_config={attn_uses_sequence_id: true, attn_logit_softcapping: 0.7}", "train_loader.dataset.bos_token_id=32"],
        {"bos": 32, "cap": 0.7},
    ),
    "linear": (
        ["model.attn_config={rope_impl: hf, rope_hf_config: {type: linear, factor: 3}}"],
        {"scaling": {"type": "linear", "factor": 3}},
    ),
    "dynamic": (
        ["model.attn_config={rope_impl: hf, rope_hf_config: {type: dynamic, factor: 3}}", "model.max_seq_len=20"],
        {"scaling": {"type": "dynamic", "factor": 3, "trained": 20}},
    ),
    "llama3": (
        ["model.attn_config={rope_impl: hf, rope_hf_config: {type: llama3, factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 16}}"],
        {"scaling": {"type": "llama3", "factor": 8, "low": 1, "high": 4, "trained": 16}},
    ),
    "yarn": (
        ["model.attn_config={rope_impl: hf, rope_hf_config: {type: yarn, factor: 4, original_max_position_embeddings: 16}}"],
        {"scaling": {"type": "yarn", "factor": 4, "trained": 16}},
    ),
    "caps": (
        ["model.attn_config={attn_logit_softcapping: 0.5, attn_type: grouped_query_attention, kv_n_heads: 2}",
         "model.final_logit_softcapping=0.8", "model.logit_scale=inv_sqrt_d_model", "model.embedding_fraction=0.3"],
        {"cap": 0.5, "kv_n_heads": 2, "final_cap": 0.8, "logit_scale": 32**-0.5, "embedding_fraction": 0.3},
    ),
    "separate_qkv": (
        ["model.attn_config={fused_qkv: false, clip_qkv: 50, out_proj_bias: false}", "model.attention_bias=true",
         "model.init_config={name: xavier_uniform_}"],
        {},
    ),
    "dense": (
        ["model.ffn_config=null", "model.ffn_config={ffn_type: mptglu, ffn_hidden_size: 64, ffn_act_fn: {name: relu}}",
         "model.attn_config={attn_type: multiquery_attention}"],
        {"kv_n_heads": 1, "experts": 0, "act": "relu"},
    ),
}  # fmt: skip


class PlainModelTest(CommandTest):
    def setUp(self):
        super().setUp()
        self.write_data()
        self.write_config()
        data = text(1, 20000).encode()
        self.tokens = torch.tensor([list(data[32 * i : 32 * (i + 1)]) for i in range(8)])

    def relative(self, ours, theirs) -> float:
        return ((ours - theirs).norm() / theirs.norm()).item()

    def check(self, name: str, overrides: list, changes: dict, precision: str, bound: float):
        # Unless a case says otherwise, uneven microbatches: 3 + 3 + 2 samples. Only the load-balancing
        # loss depends on the cut, so it is off there.
        whole = any("microbatch" in o for o in overrides)
        if not whole and changes.get("experts") != 0:
            overrides = overrides + ["model.ffn_config.moe_loss_weight=0"]
        self.check_command("train", "config.yaml", f"save_folder={name}", f"precision={precision}", *ONE_STEP, *overrides)
        model = BASE | changes
        folder = self.folder / name / "latest"
        weights = plain_model.tensors(read_safetensors(folder / "model.safetensors"))
        for weight in weights.values():
            weight.requires_grad_(True)
        cross_entropy, balance, z = plain_model.loss(weights, self.tokens, model)
        total = cross_entropy
        if model["experts"] and whole:
            total = total + 0.02 * balance + 0.01 * z
        total.backward()

        (line,) = self.metrics(name)
        self.assertLess(abs(line["loss/train/loss"] / cross_entropy.item() - 1), bound)
        self.assertLess(abs(line["loss/train/total"] / total.item() - 1), bound)
        moments = plain_model.tensors(read_safetensors(folder / "optimizer.safetensors"))
        ours, theirs = [], []
        for parameter, weight in weights.items():
            gradient = moments[f"exp_avg/{parameter}"]
            if weight.grad is None:  # of the selection bias, which only chooses
                self.assertEqual(gradient.abs().max().item(), 0, parameter)
                continue
            # Per tensor a looser bound: some of these gradients are small sums of large terms.
            self.assertLess(self.relative(gradient, weight.grad), 10 * bound, parameter)
            ours.append(gradient.flatten())
            theirs.append(weight.grad.flatten())
        self.assertLess(self.relative(torch.cat(ours), torch.cat(theirs)), bound)

    def test_cases(self):
        for name, (overrides, changes) in CASES.items():
            for precision, bound in [("fp32", 1e-5), ("fp64", 1e-12)]:
                with self.subTest(name, precision=precision):
                    self.check(f"{name}-{precision}", overrides, changes, precision, bound)


if __name__ == "__main__":
    unittest.main()
