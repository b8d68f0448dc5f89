"""LLM Foundry's and Mistral's own layouts: read directly, converted both ways."""

import importlib.util
import json
import unittest

import hf_models
import torch
from command import CommandTest
from test_convert import EXPECTED, ConvertTest as Convert

# DBRX, in LLM Foundry's words.
FOUNDRY = dict(
    architectures=["MPTForCausalLM"], model_type="mpt", torch_dtype="float32", transformers_version="4.40.0",
    d_model=48, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=96, no_bias=True, norm_type="low_precision_layernorm",
    tie_word_embeddings=False, fuse_norm_attn_norm=True, learned_pos_emb=True, resid_pdrop=0.0, emb_pdrop=0.0, expansion_ratio=4,
    init_config=dict(name="kaiming_normal_", init_gain=0.0, verbose=0), init_device="cpu", logit_scale=None, use_cache=False,
    embedding_fraction=1.0, tokenizer_name="x", eos_token_id=None, final_logit_softcapping=None, use_pad_tok_in_ffn=True,
    attn_config=dict(
        attn_type="grouped_query_attention", kv_n_heads=2, attn_impl="flash", attn_pdrop=0.0, clip_qkv=0.8, qk_ln=False, qk_gn=False,
        softmax_scale=None, prefix_lm=False, alibi=False, alibi_bias_max=8, rope=True, rope_theta=500000, rope_impl="dail",
        rope_dail_config=dict(type="original", pos_idx_in_fp32=True, xpos_scale_base=512), sliding_window_size=-1, kv_dim=None,
    ),
    ffn_config=dict(
        ffn_type="mb_dmoe", mlp_type="glu", mlp_impl="grouped", ffn_act_fn=dict(name="silu"), ffn_hidden_size=40, moe_num_experts=4,
        moe_top_k=2, moe_world_size=1, moe_loss_weight=0.05, moe_normalize_expert_weights=1,
    ),
)  # fmt: skip


def unturned(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of rotated halves, as everybody has them, as Mistral's neighbouring pairs."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def mistral_tensors(config: dict, tensors: dict, stacked: bool = False) -> dict:
    out, experts = {}, config.get("num_local_experts", 0)
    top = {"model.embed_tokens.weight": "tok_embeddings.weight", "model.norm.weight": "norm.weight", "lm_head.weight": "output.weight"}
    out |= {new: tensors[old] for old, new in top.items()}
    for i in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{i}.", f"layers.{i}."
        for a, b in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            out[new + f"attention.w{a}.weight"] = unturned(tensors[old + f"self_attn.{a}_proj.weight"], config[b])
        for a in "vo":
            out[new + f"attention.w{a}.weight"] = tensors[old + f"self_attn.{a}_proj.weight"]
        out[new + "attention_norm.weight"] = tensors[old + "input_layernorm.weight"]
        out[new + "ffn_norm.weight"] = tensors[old + "post_attention_layernorm.weight"]
        if not experts:
            for a, b in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
                out[new + f"feed_forward.{b}.weight"] = tensors[old + f"mlp.{a}_proj.weight"]
            continue
        moe = "block_sparse_moe." if stacked else "feed_forward."
        out[new + moe + "gate.weight"] = tensors[old + "block_sparse_moe.gate.weight"]
        for w in ("w1", "w2", "w3"):
            each = [tensors[old + f"block_sparse_moe.experts.{e}.{w}.weight"] for e in range(experts)]
            if stacked:
                out[new + moe + w] = torch.cat([matrix.t() if w == "w2" else matrix for matrix in each])
            else:
                out |= {new + moe + f"experts.{e}.{w}.weight": matrix for e, matrix in enumerate(each)}
    return out


def mistral_params(config: dict) -> dict:
    heads = config["num_attention_heads"]
    params = dict(
        dim=config["hidden_size"], n_layers=config["num_hidden_layers"], hidden_dim=config["intermediate_size"], n_heads=heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads, n_kv_heads=config["num_key_value_heads"],
        norm_eps=config["rms_norm_eps"], vocab_size=config["vocab_size"], rope_theta=config["rope_theta"],
    )  # fmt: skip
    if config.get("sliding_window"):
        params["sliding_window"] = config["sliding_window"]
    if "num_local_experts" in config:
        params["moe"] = dict(num_experts=config["num_local_experts"], num_experts_per_tok=config["num_experts_per_tok"])
    return params


class LayoutTest(CommandTest):
    figures, check_figures, check_refused = Convert.figures, Convert.check_figures, Convert.check_refused
    run_hint = Convert.run_hint

    def tensors_of(self, folder: str, stem: str = "model") -> dict:
        from command import read_safetensors

        out = {}
        for file in sorted((self.folder / folder).glob(stem + "*.safetensors")):
            out |= read_safetensors(file)
        return out

    def write_mistral(self, folder: str, name: str, stacked: bool = False, files: int = 1, **keys):
        config = hf_models.CONFIGS[name]
        tensors = mistral_tensors(config, hf_models.weights(config), stacked)
        path = self.folder / folder
        path.mkdir()
        (path / "params.json").write_text(json.dumps(dict(mistral_params(config), **keys)))
        names = list(tensors)
        for i in range(files):
            file = "consolidated.safetensors" if files == 1 else f"consolidated.{i:02}.safetensors"
            hf_models.write_safetensors(path / file, {name: tensors[name] for name in names[i::files]})

    def test_mistrals_layout_is_the_same_model(self):
        self.write_mistral("moe", "mixtral")
        self.write_mistral("stacked", "mixtral", stacked=True, files=3)
        self.write_mistral("dense", "mistral")
        self.write_mistral("windows", "windows")
        for folder, name in (("moe", "mixtral"), ("stacked", "mixtral"), ("dense", "mistral"), ("windows", "windows")):
            with self.subTest(folder):
                self.check_figures(name, folder)
                self.check_command("convert", folder, f"{folder}-ours", "--to", "dropless")
                self.check_figures(name, f"{folder}-ours")
                self.check_command("convert", f"{folder}-ours", f"{folder}-back", "--to", "mistral")
                self.check_figures(name, f"{folder}-back")
                # Whatever the stacking was: today's, of the same bits.
                source = "moe" if folder == "stacked" else folder
                self.assertEqual(self.tensors_of(source, "consolidated"), self.tensors_of(f"{folder}-back", "consolidated"))
                back = json.loads((self.folder / f"{folder}-back/params.json").read_text())
                expected = mistral_params(hf_models.CONFIGS[name])
                self.assertEqual({key: back[key] for key in expected}, expected)
                # And on to Hugging Face's.
                self.check_command("convert", f"{folder}-ours", f"{folder}-hf", "--to", "hf")
                self.assertEqual(self.tensors_of(f"{folder}-hf"), self.written(name))
        info = json.loads(self.check_command("info", "stacked", "--json"))
        self.assertEqual(info["parameters"], json.loads(self.check_command("info", "moe-hf", "--json"))["parameters"])
        self.check_command("convert", "moe-ours", "shards", "--to", "mistral", "--shard-bytes", 30000)
        self.assertTrue((self.folder / "shards/consolidated.safetensors.index.json").exists())
        self.check_figures("mixtral", "shards")

    def test_mistrals_pickles_are_refused_with_a_line_for_its_layout(self):
        self.write_mistral("moe", "mixtral")
        tensors = mistral_tensors(hf_models.CONFIGS["mixtral"], hf_models.weights(hf_models.CONFIGS["mixtral"]))
        (self.folder / "moe/consolidated.safetensors").unlink()
        names = list(tensors)
        for i in range(2):
            torch.save({name: tensors[name] for name in names[i::2]}, self.folder / f"moe/consolidated.{i:02}.pth")
        self.check_refused(["consolidated.00.pth is a pickle", "save_file"], "generate", "moe", "--prompt-ids", "[[1]]")
        if importlib.util.find_spec("safetensors"):
            self.run_hint("moe")
            self.check_figures("mixtral", "moe")
            self.assertTrue((self.folder / "moe/consolidated.01.safetensors").exists())

    def written(self, name: str) -> dict:
        from command import read_safetensors

        config = hf_models.CONFIGS[name]
        hf_models.write_safetensors(self.folder / "expected.safetensors", hf_models.weights(config))
        return read_safetensors(self.folder / "expected.safetensors")

    def test_llm_foundrys_layout_is_the_same_model(self):
        config = hf_models.CONFIGS["dbrx"]
        tensors = hf_models.weights(config)
        hf_models.write_folder(self.folder / "fused", FOUNDRY, tensors)
        plain = {name.replace("norm_attn_norm.", ""): tensor for name, tensor in tensors.items()}
        hf_models.write_folder(self.folder / "plain", FOUNDRY, plain)
        for folder in ("fused", "plain"):
            with self.subTest(folder):
                self.check_figures("dbrx", folder)
                self.check_command("convert", folder, "ours", "--to", "dropless", "--overwrite")
                self.check_figures("dbrx", "ours")
                self.check_command("convert", "ours", "back", "--to", "llm-foundry", "--overwrite")
                self.check_figures("dbrx", "back")
                self.assertEqual(self.tensors_of("plain"), self.tensors_of("back"))
                self.check_command("convert", "ours", "hf", "--to", "hf", "--overwrite")
                self.assertEqual(self.tensors_of("fused"), self.tensors_of("hf"))
        back = json.loads((self.folder / "back/config.json").read_text())
        self.assertEqual((back["model_type"], back["ffn_config"]["moe_world_size"]), ("mpt", 1))
        for name in ("mpt", "windows", "llama3"):
            with self.subTest(name):
                config = hf_models.CONFIGS[name]
                hf_models.write_folder(self.folder / name, config, hf_models.weights(config))
                self.check_figures(name, name)
                self.check_command("convert", name, f"{name}-ours", "--to", "dropless")
                self.check_command("convert", f"{name}-ours", f"{name}-foundry", "--to", "llm-foundry")
                self.check_figures(name, f"{name}-foundry")
                if name == "mpt":
                    self.assertEqual(self.tensors_of(name), self.tensors_of(f"{name}-foundry"))

    def test_what_a_layout_cannot_say_is_refused_by_name(self):
        for name in ("olmoe", "qwen2_moe", "yarn"):
            config = hf_models.CONFIGS[name]
            hf_models.write_folder(self.folder / name, config, hf_models.weights(config))
            self.check_command("convert", name, f"{name}-ours", "--to", "dropless")
        self.check_refused(["qk_ln", "Mistral's layout"], "convert", "olmoe-ours", "x", "--to", "mistral")
        self.check_refused(["out_proj_bias", "LLM Foundry"], "convert", "qwen2_moe-ours", "x", "--to", "llm-foundry")
        self.check_refused(["yarn", "LLM Foundry"], "convert", "yarn-ours", "x", "--to", "llm-foundry")
        self.check_refused(["no adapters"], "convert", "yarn-ours", "x", "--to", "peft")
        self.check_refused(["--to dropless"], "convert", "olmoe", "x", "--to", "mistral")
        self.assertFalse((self.folder / "x").exists())

    def test_bad_folders(self):
        self.write_mistral("unknown", "mixtral", quantization={"qformat_weight": "fp8"})
        self.check_refused(["quantization", "params.json"], "generate", "unknown", "--prompt-ids", "[[1]]")
        self.write_mistral("missing", "mistral", n_layers=3)
        self.check_refused(["layers.2.attention.wq.weight"], "generate", "missing", "--prompt-ids", "[[1]]")
        self.write_mistral("twice", "mistral", files=2)
        (self.folder / "twice/consolidated.02.safetensors").write_bytes(
            (self.folder / "twice/consolidated.00.safetensors").read_bytes()
        )
        self.check_refused(["and so does another file"], "generate", "twice", "--prompt-ids", "[[1]]", code=1)
        hf_models.write_folder(self.folder / "key", dict(FOUNDRY, moe_magic=1), {"a": torch.zeros(1)})
        self.check_refused(["moe_magic"], "info", "key")
        odd = dict(hf_models.CONFIGS["mpt"], attn_config=dict(alibi=False))
        hf_models.write_folder(self.folder / "odd", odd, hf_models.weights(hf_models.CONFIGS["mpt"]))
        self.check_refused(["always has ALiBi"], "info", "odd")


del Convert

if __name__ == "__main__":
    unittest.main()
