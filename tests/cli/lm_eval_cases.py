"""The same questions for `dropless eval` and for lm-eval (EleutherAI's lm_eval): a small random model with a
tokenizer, tasks in both forms. lm_eval is needed by lm_eval_answers() alone."""

import json
import pathlib
import shutil

import hf_models

TOKENIZERS = pathlib.Path(__file__).parent.parent / "data/tokenizer"
NAMES = ("gpt2", "llama3", "qwen", "deepseek", "llama2")
CHOICE = [
    ("What is the colour of the sky?", ["blue", "green at noon", "grey, as always"]),
    ("2 + 2 =", ["4", "22", "five"]),
    ("The cup's on the table. It is", ["tall", "a cup", "don't know"]),
    ("Où est l'été?", ["là-bas", "ici", "東京"]),
    ("def f(x):\n    return", ["x", "x + 1", "[x for x in y]"]),
]
CHOICE = [{"query": query, "choices": choices, "gold": i % 3} for i, (query, choices) in enumerate(CHOICE)]
WORDS = [
    {"context": context, "continuation": word}
    for context, word in (
        ("The quick brown fox jumps over the lazy", "dog"),
        ("She put the key into the", "lock, and turned it."),
        ("One, two, three,", "four"),
        ("Der Bär läuft über die", "Straße"),
        # Longer than the context of the task.
        ("a b c d e f g h i j k l m n o p q r s t u v w x y z " * 4, "and so on"),
    )
]
WORDS_LENGTH = 48
OURS = f"""
icl_tasks:
- label: choice
  dataset_uri: choice.jsonl
  icl_task_type: multiple_choice
  num_fewshot: 0
  question_prelimiter: "Question: "
  continuation_delimiter: "\\nAnswer: "
- {{label: words, dataset_uri: words.jsonl, icl_task_type: language_modeling, num_fewshot: 0, max_seq_len: {WORDS_LENGTH}}}
"""
THEIRS = {
    "choice": r"""
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{query}}\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
""",
    "words": r"""
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/words.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{context.strip()}}"
doc_to_target: " {{continuation}}"
metric_list: [{metric: acc}]
""",
}


def write(folder: pathlib.Path, tokenizer: str):
    """FOLDER/model, choice.jsonl, words.jsonl, and the tasks of both programs."""
    file = json.loads((TOKENIZERS / f"{tokenizer}.json").read_text())
    ids = [*file["model"]["vocab"].values(), *(token["id"] for token in file["added_tokens"])]
    config = dict(hf_models.CONFIGS["olmoe"], vocab_size=max(ids) + 1, max_position_embeddings=256)
    hf_models.write_folder(folder / "model", config, hf_models.weights(config))
    shutil.copy(TOKENIZERS / f"{tokenizer}.json", folder / "model/tokenizer.json")
    for name, lines in (("choice", CHOICE), ("words", WORDS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / f"{name}.yaml").write_text(THEIRS[name].replace("FOLDER", str(folder)))
    (folder / "tasks.yaml").write_text(OURS)


def lm_eval_answers(folder: pathlib.Path) -> dict:
    """task -> for each question the log-likelihoods of its continuations, and whether each is greedy. null where the
    context's tokens are not the first ones of the whole text's: lm-eval cuts at their number then, within a word."""
    import lm_eval
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "model/tokenizer.json"))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)  # lm-eval asks for one, and pads with it

    def answer_of(request, answer):
        context, continuation = request
        ids = tokenizer.encode(context)
        return list(answer) if tokenizer.encode(context + continuation)[: len(ids)] == ids else None

    answers = {}
    for task, length in (("choice", 256), ("words", WORDS_LENGTH - 1)):  # its max_length is without the last token
        model_of_task = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu", max_length=length)
        result = lm_eval.simple_evaluate(
            model=model_of_task, tasks=[task], num_fewshot=0, log_samples=True, bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )  # fmt: skip
        samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
        answers[task] = [
            [answer_of(request, answer) for request, (answer,) in zip(sample["arguments"], sample["resps"])] for sample in samples
        ]
    return answers
