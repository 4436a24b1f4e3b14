#!/usr/bin/env python3
"""Makes golden/tokenizer/: strings, and their ids from the libraries that the models came with.

    make_tokenizer.py --smollm2 SmolLM2.gguf --gpt2 ggml-vocab-gpt-2.gguf
                      --falcon ggml-vocab-falcon.gguf --llama2 tokenizer.model OUT

Needs tokenizers, gguf and sentencepiece from PyPI. Each ids_*.json holds, string by string,
  ids    special tokens in the text are recognised
  plain  they are text (left out where it is the same)
sentencepiece itself never recognises them: ids_llama2.json has "plain" only, under "ids".
"""

import argparse
import json
import pathlib
import random

import gguf
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

HAND = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", "\r\n\r\n", " \n", "\n ",
    " \n \n ", "a", " a", "a ", " a ", "  a  b  ", "Hello", "Hello world", "Hello, world!",
    " Hello world", "Hello  world", "Hello   world   ", "hello\nworld", "hello\n\nworld\n",
    "hello\r\nworld\r\n", "hello\tworld", "\thello", "hello \n world", "x\n  y\n    z",
    "The quick brown fox jumps over the lazy dog.", "I'm you're he's she'd we'll they've isn't",
    "I'M YOU'RE HE'S SHE'D WE'LL THEY'VE ISN'T", "I’m you’re isn’t", "'s 't 're 've 'm 'll 'd",
    "'S'T'RE'VE'M'LL'D", "''s '' 's's", "rock'n'roll o'clock 'tis", "can't", "CAN'T",
    "don'ts", "'\u017f", "0", "7", "42", "123", "1234", "12345", "123456789",
    "3.14159", "1,000,000", "-17", "+1", "1e-5", "0x7fff", "2024-01-31", "12:34:56", "50%", "$9.99",
    "v1.2.3", "a1b2c3", "1st 2nd 3rd", " 1 22 333 4444 55555", "½ ¼ ² ³ ¹", "Ⅷ ⅷ", "٠١٢٣٤",
    "१२३", "一二三", "①②③", "😀", "😀😀", " 😀 ", "👍🏽", "👨‍👩‍👧‍👦", "👩🏿‍🚀 in space", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "☺", "text 🚀 more",
    "日本語", "こんにちは世界", "カタカナ", "漢字かな交じり文。", "中文分词测试", "你好，世界！", "繁體中文",
    "한국어", "안녕하세요 세계", "中 文 mixed 英文 text", "𠮷野家", "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "שלום עולם",
    "हिन्दी भाषा", "नमस्ते दुनिया", "ภาษาไทย", "สวัสดีชาวโลก", "বাংলা", "தமிழ்", "ქართული", "Ελληνικά", "Привет, мир!",
    "Žluťoučký kůň", "Größe Straße ẞ", "naïve café résumé", "nai\u0308ve cafe\u0301", "e\u0301\u0302\u0303",
    "a\u0300b\u0301c\u0302", "Z\u0351\u036b\u0343alg\u0352o", "İstanbul ıI", "ﬁ ﬂ ﬀ", "ǅ ǈ", "\u00a0", "a\u00a0b",
    "a\u2003b\u2009c", "\u3000全角\u3000", "a\u200bb", "\ufeffBOM", "a\u2028b\u2029c", "\u0085", "a\u180eb",
    "\u1680x", "\u202f5", "soft\u00adhyphen", "\u200e\u200f", "\u2581", "a\u2581b", "\u0000", "a\u0000b",
    "\u0001\u0002\u0003", "\u001b[31mred\u001b[0m", "\u007f", "\u000b\u000c", "\ufffd", "\ue000", "\U0010ffff", "\U000f0000",
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) { a[i] = b[i]; }",
    "if x == 1:\n\tprint('y')\n\telse:\n\t\tpass", "#include <vector>\n\nint main() { return 0; }",
    "SELECT * FROM t WHERE a >= 10;", "<div class=\"x\">&nbsp;</div>", "{\"key\": [1, 2.5, null]}",
    "a->b::c<d>&&e||f", "!@#$%^&*()_+-=[]{}|;':\",./<>?`~", "... --- ___ ===", "snake_case camelCase PascalCase",
    "https://example.org/a/b?c=d&e=f#g", "user.name+tag@example.com", "C:\\Windows\\System32", "/usr/local/bin",
    "\\n is not a newline", "e.g., i.e. etc.", "\"quoted\" ‘quoted’ «quoted» „quoted“", "— – - ‐", "…", "a/b c|d e\\f",
    "((()))[[[]]]{{{}}}", "?!?!?!", "= Title =\n", " = = Section = = \n", "@-@ @,@ @.@", "<unk>", "<s>", "</s>",
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\nHi<|im_end|>\n", "a<|endoftext|>b",
    "a <|endoftext|> b", "<|endoftext|><|endoftext|>", "<|im_end|", "<|im_<|im_end|>end|>", "<repo_name>x<file_sep>",
    ">>TITLE<<", "x>>ANSWER<<y", "<|IM_END|>", "<0x0A>", "[INST] Hi [/INST]", "A" * 100, "ab" * 64, " " * 40, "\n" * 20,
    "=" * 77, "0" * 30, "あ" * 25, "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "antidisestablishmentarianism" * 4, "x" * 513, "The" + " the" * 60, "a b c d e f g h i j k l m n o p",
]

ATOMS = [
    "the", "Word", "UPPER", "isn't", "WE'LL", "'s", "’s", "x1", "42", "1999", "3.5", "٣", "½", "é", "e\u0301", "ß", "日本",
    "语言", "かな", "한글", "слово", "λόγος", "كلمة", "שלום", "शब्द", "คำ", "😀", "👩‍💻", "🇯🇵", "✓", ".", ",", "!?", "...", "--", "—",
    "(", ")", "[x]", "{}", "<b>", "&&", "==", "#", "@user", "$", "%", "\"", "'", "`", "~", "^", "\\", "/", "_", "http://a.b",
    "f(x)", "::", "\u00a0", "\u3000", "\u2009", "\u200b", "\u200d", "\ufeff", "\u0301", "\ufffd", "𝒳", "𠜎",
]
GAPS = ["", "", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n", "\n  "]


def strings(count):
    out = list(dict.fromkeys(HAND))
    rng = random.Random(20240501)
    while len(out) < count:
        s = rng.choice(GAPS)
        for _ in range(rng.randint(2, 9)):
            s += rng.choice(ATOMS) + rng.choice(GAPS)
        if s not in out:
            out.append(s)
    return out


def bpe(path, pre_tokenizer):
    """The `tokenizers` library's BPE from a GGUF's vocabulary and merges."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"].contents()]
    t = tokenizers.Tokenizer(models.BPE({s: i for i, s in enumerate(tokens)}, merges))
    t.pre_tokenizer = pre_tokenizer
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False)
                          for s, k in zip(tokens, kinds) if k == 3])
    return t


def bpe_rows(t, texts):
    rows = []
    for s in texts:
        t.encode_special_tokens = False
        row = {"ids": t.encode(s, add_special_tokens=False).ids}
        t.encode_special_tokens = True
        plain = t.encode(s, add_special_tokens=False).ids
        if plain != row["ids"]:
            row["plain"] = plain
        rows.append(row)
    return rows


def write(path, value):
    rows = ",\n".join(json.dumps(v, separators=(",", ":")) for v in value)
    path.write_text("[\n" + rows + "\n]\n", encoding="ascii")


def main():
    args = argparse.ArgumentParser()
    for name in ("smollm2", "gpt2", "falcon", "llama2"):
        args.add_argument("--" + name, required=True)
    args.add_argument("out", type=pathlib.Path)
    args = args.parse_args()
    texts = strings(500)
    write(args.out / "strings.json", texts)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    write(args.out / "ids_gpt2.json", bpe_rows(bpe(args.gpt2, byte_level), texts))
    smollm2 = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    write(args.out / "ids_smollm2.json", bpe_rows(bpe(args.smollm2, smollm2), texts))
    falcon = pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation(behavior="contiguous"), byte_level,
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(tokenizers.Regex("[0-9][0-9][0-9]"), behavior="isolated")])
    write(args.out / "ids_falcon.json", bpe_rows(bpe(args.falcon, falcon), texts))
    llama2 = sentencepiece.SentencePieceProcessor(model_file=args.llama2)
    write(args.out / "ids_llama2.json", [{"ids": llama2.encode(s)} for s in texts])


if __name__ == "__main__":
    main()
