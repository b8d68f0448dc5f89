#!/usr/bin/env python3
"""Writes lm_eval.json: the log-likelihoods that lm-eval gives the questions of tests/cli/lm_eval_cases.py.

usage: make_lm_eval.py        needs `pip install lm_eval transformers==5.17.0` beside torch (0.4.13 made what is committed)
"""

import json
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "cli"))
import lm_eval_cases  # noqa: E402

answers = {}
for name in lm_eval_cases.NAMES:
    with tempfile.TemporaryDirectory() as folder:
        lm_eval_cases.write(pathlib.Path(folder), name)
        answers[name] = lm_eval_cases.lm_eval_answers(pathlib.Path(folder))
lines = ",\n".join(f'"{name}": {json.dumps(answer)}' for name, answer in answers.items())
(HERE / "lm_eval.json").write_text("{\n" + lines + "\n}\n")
