"""Makes tests/data/tokenizer: small vocabularies and what the reference packages make of a hard corpus.

Needs tokenizers, tiktoken, sentencepiece (0.22, 0.14, 0.2 made what is committed). The vocabularies are
trained here, on text made here; they are small enough to be committed. cases.json holds "texts" (their
bytes in hexadecimal; the packages get decode(errors="replace") of them) and of each tokenizer "ids" and
"decoded", null where that is the text again.

usage: make_tokenizer_cases.py [OUT]
"""

import base64
import io
import json
import pathlib
import sys

import sentencepiece
import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import AddedToken

from tokenizer_corpus import corpus, training_text

OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "tokenizer"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]

def train_bpe(tokenizer, size=600, alphabet=None, special=()):
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet or [], special_tokens=list(special),
                                  show_progress=False)
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer


def json_tokenizers() -> dict:
    byte_alphabet = pre_tokenizers.ByteLevel.alphabet()
    out = {}

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    out["gpt2"] = train_bpe(t, alphabet=byte_alphabet, special=["<|endoftext|>"])

    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    train_bpe(t, alphabet=byte_alphabet, special=["<|endoftext|>", "<|padding|>"])
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    t.add_tokens([AddedToken("fox", single_word=True), AddedToken("[L]", lstrip=True), AddedToken("[R]", rstrip=True)])
    out["neox"] = t

    for name, pattern in [("llama3", LLAMA3), ("qwen", QWEN)]:
        t = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
        t.normalizer = normalizers.NFC() if name == "qwen" else None
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        train_bpe(t, alphabet=byte_alphabet, special=["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>"])
        if name == "llama3":
            t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])])
        out[name] = t

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in DEEPSEEK]
                                              + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    out["deepseek"] = train_bpe(t, alphabet=byte_alphabet, special=["<|begin_of_sentence|>"])

    # Characters with byte fallback: what Llama 2 and Mistral have.
    t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    train_bpe(t, special=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)])
    out["llama2"] = t

    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents(),
                                         normalizers.Strip(left=False), normalizers.Replace(Regex(r"\s+"), " ")])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"),
                                               pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.Punctuation("merged_with_previous")])
    t.decoder = decoders.Metaspace(prepend_scheme="first")
    out["mixed"] = train_bpe(t, size=300, special=["<unk>"])
    return out


def rank_file(size: int) -> dict:
    """Byte ranks and merges in the order in which a byte-level BPE learns them."""
    tokenizer = json_tokenizers()["llama3"]
    table = {}
    codes = [b for b in range(256) if 0x21 <= b <= 0x7E or b >= 0xA1 and b != 0xAD]
    characters = {chr(b): b for b in codes}
    for n, b in enumerate(b for b in range(256) if b not in codes):
        characters[chr(0x100 + n)] = b
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        data = bytes(characters[c] for c in token) if all(c in characters for c in token) else b""
        if data and not token.startswith("<|"):
            table[data] = len(table)
        if len(table) == size:
            break
    return table


def main():
    OUT.mkdir(exist_ok=True)
    data = corpus(30)
    cases = {"texts": [text.hex() for text in data], "tokenizers": {}}

    def add(name, encode, decode):
        texts = [text.decode(errors="replace") for text in data]
        ids = [encode(text) for text in texts]
        decoded = [None if decode(row) == text else decode(row) for row, text in zip(ids, texts)]
        cases["tokenizers"][name] = {"ids": ids, "decoded": decoded}

    for name, tokenizer in json_tokenizers().items():
        path = OUT / f"{name}.json"
        content = json.loads(tokenizer.to_str())
        path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
        tokenizer = Tokenizer.from_file(str(path))
        add(path.name, lambda text, t=tokenizer: t.encode(text, add_special_tokens=False).ids, tokenizer.decode)

    ranks = rank_file(500)
    from tiktoken_ext import openai_public
    import tiktoken.load
    for name in ("cl100k_base", "o200k_base", "r50k_base"):
        path = OUT / f"small.{name}.tiktoken"
        path.write_bytes(b"".join(base64.b64encode(data) + b" %d\n" % rank for data, rank in ranks.items()))
        openai_public.load_tiktoken_bpe = lambda *_, **__: dict(ranks)  # only the pattern is wanted
        pattern = getattr(openai_public, name)()["pat_str"]
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        add(path.name, encoding.encode_ordinary, encoding.decode)

    sentences = [line.replace("\n", " ") for line in training_text()]
    for name, options in [
        ("bpe", {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
                 "remove_extra_whitespaces": False, "user_defined_symbols": ["<|im_start|>", "[INST]"]}),
        ("unigram", {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity"}),
        ("unigram_unk", {"model_type": "unigram", "normalization_rule_name": "identity",
                         "user_defined_symbols": ["fox"]}),
    ]:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, vocab_size=450,
                                                 character_coverage=0.98, hard_vocab_limit=False,
                                                 minloglevel=2, **options)
        path = OUT / f"{name}.model"
        path.write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        add(path.name, processor.encode, processor.decode)

    text = json.dumps(cases, ensure_ascii=False, separators=(",", ":")).replace('],"decoded"', '],\n"decoded"')
    (OUT / "cases.json").write_text(text.replace("},", "},\n") + "\n")


if __name__ == "__main__":
    main()
