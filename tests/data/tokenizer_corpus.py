"""Hard text for tokenizers, and text to train small ones on; needs no package."""

import random

PIECES = [
    "Hello world", " the quick brown fox", "I'm you're we'LL THEY'VE don'T it'ſ o'clock",
    "1234567890 3.14159 ½ Ⅷ ٣٤٥ 1,000,000", "\n\n  \n\t indented\r\n\r\n   trailing   ", "    def f(x):\n\t\treturn x**2  # ok\n",
    "日本語のテキスト、中文字符。한국어 텍스트 ㅎㅏㄴ", "مرحبا بالعالم، كيف الحال؟ שלום", "Привет, мир! Ελληνικά ñandú Åström",
    "e\u0301 n\u0303 \u1e9b\u0323 \ufb01 \u212b A\u030a ㎏ ﬃ", "👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ ☃", "a\u00a0b\u2003c\u3000d\u200be\ufefff\u2028g\u0085h",
    "<|endoftext|> text <s> </s> <|im_start|>user", "{\"key\": [1, 2, null]}; if (a && b || !c) { x->y[0] += 1; }",
    "snake_case camelCase CONST_VALUE HTTPServer2XMLParser", "https://example.com/a/b?c=d&e=f#g", "नमस्ते दुनिया สวัสดีชาวโลก",
    "!!!???...---___***", "\x00\x01\x7f control", "ǅ ǈ ʰ ª º İ ı ß ẞ", "▁▁ literal ▁ marks <0x41>", "ＦＵＬＬ ｗｉｄｔｈ ｶﾞ",
    "x" * 150, " " * 40 + "y" + "\n" * 7 + "\t" * 5, "ab" * 60 + "ба" * 40, "''' '' 's' 'tis", "١٢٣ ௧௨ 四五", "\U0001f600\U00010330\U0001d54f",
    "Straße café naïve coöperate", "C:\\path\\to\\file.txt\\n", "<a href='x'>&nbsp;</a>", "\u0301 leading mark", "한글", "각",
]
BROKEN = [b"\xff\xfe plain", b"cut \xe2\x82", b"mid \xf0\x9f\x98 word", b"\xc3\x28 \xed\xa0\x80 \xc0\xaf", b"ok \x80\x80\x80 end"]


def corpus(count: int) -> list:
    rng = random.Random(7)
    cases = [piece.encode() for piece in PIECES] + BROKEN + [b"", b" ", b"\n", b"a"]
    alphabet = [c for piece in PIECES for c in piece]
    for _ in range(count):
        kind = rng.random()
        if kind < 0.5:
            text = "".join(rng.choice(PIECES[:24])[:40] + rng.choice(["", " ", "\n", "  ", "\t"]) for _ in range(3))
        elif kind < 0.9:
            text = "".join(rng.choices(alphabet, k=rng.randint(1, 60)))
        else:
            text = "".join(chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x300, 0x3000)]))
                           for _ in range(30))
        data = text.encode()
        if kind > 0.97:
            data = bytes(rng.choices(data, k=len(data)))
        cases.append(data)
    return cases


def training_text() -> list:
    rng = random.Random(3)
    words = ["the", "and", "of", "return", "def", "Hello", "world", "quick", "brown", "fox", "don't", "日本", "Привет", "text",
             "value", "int", "naïve", "100", "2024"]
    lines = [" ".join(rng.choices(words, k=12)) + rng.choice([".", "\n", "  ", " = x;\n"]) for _ in range(300)]
    return lines + PIECES[:20]
