"""The README's config and commands work as printed."""

import pathlib
import re
import unittest

from command import CommandTest, text

README = pathlib.Path(__file__).parents[2] / "README.md"


class ReadmeTest(CommandTest):
    def test_config_and_commands(self):
        readme = README.read_text()
        (config,) = re.findall(r"```yaml\n(.*?)```", readme, re.S)
        commands = re.findall(r"^dropless (.*?)(?:\s{2,}#.*)?$", readme, re.M)
        self.assertGreaterEqual(len(commands), 7)
        (self.folder / "config.yaml").write_text(config)
        (self.folder / "a.txt").write_text(text(1, 20000))
        (self.folder / "b.txt").write_text(text(3, 200))
        (self.folder / "held_out.txt").write_text(text(2, 1500))
        for command in commands:
            arguments = command.replace("'def main():'", "main").split()
            if arguments[0] == "train":
                arguments += ["max_duration=2ba", "scheduler.t_warmup=1ba"]
            with self.subTest(command):
                self.check_command(*arguments)
        self.assertTrue((self.folder / "runs/a/step-2/model.safetensors").exists())


if __name__ == "__main__":
    unittest.main()
