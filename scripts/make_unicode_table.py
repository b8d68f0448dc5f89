#!/usr/bin/env python3
"""Makes train/tokenizer/unicode_since_15.h: where the general categories that tiktoken's patterns know differ from
those of utf8proc's Unicode 15.0.

Each category is asked of tiktoken itself, over all code points, and of tokenizers, which must say the same (0.14.0
and 0.22.2 made what is committed: Unicode 16.0). Needs both packages, and libutf8proc 2.8.0 (Debian 12's).

usage: make_unicode_table.py [OUT]
"""

import ctypes
import pathlib
import sys

import tiktoken
import tokenizers
from tokenizers import Regex, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "train/tokenizer/unicode_since_15.h"
CATEGORIES = "Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co".split()
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(map(chr, CODE_POINTS))


def tiktoken_finds(pattern: str) -> set:
    # encode_ordinary() drops the text between matches: of single bytes, the ids are the matches.
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, special_tokens={},
                                 mergeable_ranks={bytes([i]): i for i in range(256)})
    return set(bytes(encoding.encode_ordinary(TEXT)).decode())


def tokenizers_finds(pattern: str) -> set:
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {c for i in range(0, len(TEXT), 4096) for part, _ in split.pre_tokenize_str(TEXT[i : i + 4096]) for c in part}


def main() -> None:
    utf8proc = ctypes.CDLL("libutf8proc.so.2")
    utf8proc.utf8proc_unicode_version.restype = ctypes.c_char_p
    utf8proc.utf8proc_category_string.restype = ctypes.c_char_p
    if utf8proc.utf8proc_unicode_version() != b"15.0.0":
        sys.exit("the table adds to Unicode 15.0: libutf8proc 2.8.0 is needed")
    known = {}
    for name in CATEGORIES:
        found = tiktoken_finds(rf"\p{{{name}}}")
        if found != tokenizers_finds(rf"\p{{{name}}}"):
            sys.exit(f"tiktoken and tokenizers differ on {name}")
        known.update((ord(c), name) for c in found)
    ranges = []
    for c in CODE_POINTS:
        if utf8proc.utf8proc_category_string(c).decode() == known[c]:
            continue
        if ranges and ranges[-1][1:] == [c - 1, known[c]]:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, known[c]])
    entries = [f"{{0x{first:x}, 0x{last:x}, k{name}}}," for first, last, name in ranges]
    rows = [" ".join(entries[i : i + 3]) for i in range(0, len(entries), 3)]
    OUT.write_text(f"""\
// Made by scripts/make_unicode_table.py with tiktoken {tiktoken.__version__} and tokenizers {tokenizers.__version__}:
// the code points whose category in Unicode 16.0 is not that of 15.0.
#pragma once

#include "train/tokenizer/unicode.h"

namespace dropless::train {{

struct CategoryRange {{
  char32_t first, last;
  Categories category;
}};
// clang-format off
inline constexpr CategoryRange kSince15[] = {{
""" + "".join(f"  {row}\n" for row in rows) + """\
};
// clang-format on

}  // namespace dropless::train
""")


if __name__ == "__main__":
    main()
