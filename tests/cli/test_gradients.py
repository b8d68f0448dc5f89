"""Every parameter's gradient, of one batch, against transformers' (tests/data/hf_gradients.json, made by
make_hf_logits.py).

One step of plain SGD at a large rate lr moves a weight w to w - lr g, so that (w - w') / lr is the gradient to about
the precision of fp32, whatever the size of w."""

import json
import pathlib
import unittest

import fingerprint
import hf_models
import torch
from command import CommandTest, read_safetensors

EXPECTED = json.loads((pathlib.Path(__file__).parents[1] / "data/hf_gradients.json").read_text())
LR = 4096.0

TRAINING = """
max_seq_len: 12
tokenizer: {name: none}
train_loader: {name: text, dataset: {local: data, split: train}, drop_last: true}
optimizer: {name: sgd, lr: 4096.0, momentum: 0.0, weight_decay: 0.0}
scheduler: {name: constant_with_warmup, t_warmup: 0ba}
max_duration: 1ba
global_train_batch_size: 2
device_train_microbatch_size: 2
precision: fp32
device: cpu
save_folder: run
"""


def tensors(path) -> dict:
    return {
        name: torch.frombuffer(bytearray(data), dtype=torch.float32).view(shape)
        for name, (_, shape, data) in read_safetensors(path).items()
    }


class GradientsTest(CommandTest):
    def write_prompts(self):
        lines = [
            json.dumps({"tokens": {"t": "ndarray", "dtype": "int32", "shape": [len(ids)], "hex": torch.tensor(ids, dtype=torch.int32).numpy().tobytes().hex()}})
            for ids in hf_models.PROMPTS
        ]  # fmt: skip
        self.check_command("data", "write", "data/train", "--columns", '{"tokens": "ndarray:int32"}', input="\n".join(lines) + "\n")

    def gradients(self, name: str, *overrides) -> dict:
        """Under transformers' names before 5: one tensor for each projection of each expert."""
        config = hf_models.CONFIGS[name]
        hf_models.write_folder(self.folder / name, config, hf_models.weights(config))
        self.check_command("convert", name, "ours", "--to", "dropless", "--overwrite")
        model = (self.folder / "ours/config.yaml").read_text()
        keep = model[model.index("model:") :]
        (self.folder / "train.yaml").write_text(TRAINING.replace("tokenizer: {name: none}\n", "") + keep)
        balance = ["model.ffn_config.moe_loss_weight=0"] if "moe_loss_weight" in keep else []
        self.check_command("train", "train.yaml", "load_path=ours", "save_overwrite=true", *balance, *overrides)
        self.check_command("convert", "run", "stepped", "--to", "hf", "--overwrite")
        before = tensors(self.folder / name / "model.safetensors")
        after = tensors(self.folder / "stepped/model.safetensors")
        self.assertEqual(set(before), set(after))
        return {key: (before[key].double() - after[key].double()) / LR for key in before}

    def check_gradients(self, name: str, gradients: dict):
        expected = EXPECTED[name]
        self.assertEqual(set(gradients), set(expected))
        whole = sum(stored[0] ** 2 for stored in expected.values()) ** 0.5
        for key, gradient in gradients.items():
            error = fingerprint.distance(key, gradient, expected[key])
            # Of a gradient that cancels to nothing, the last bits of what cancelled are left.
            self.assertLess(error, 1e-4 * expected[key][0] + 1e-8 * whole, f"{name}: {key}")

    def test_every_family(self):
        self.write_prompts()
        for name in hf_models.CONFIGS:
            with self.subTest(name):
                gradients = self.gradients(name)
                self.check_gradients(name, gradients)
        # And the check can fail: a part of a gradient that is two thousandths off.
        key = max(gradients, key=lambda key: gradients[key].norm())
        gradients[key] *= 1.002
        with self.assertRaises(AssertionError):
            self.check_gradients(name, gradients)


if __name__ == "__main__":
    unittest.main()
