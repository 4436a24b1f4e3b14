#!/usr/bin/env python3
"""Makes golden/tokenizer/: strings, and their ids from the libraries that the models came with.

    make_tokenizer.py --smollm2 SmolLM2.gguf --gpt2 ggml-vocab-gpt-2.gguf
                      --falcon ggml-vocab-falcon.gguf --llama2 tokenizer.model OUT

Needs tokenizers, transformers, gguf and sentencepiece from PyPI. Each ids_*.json holds, string by string,
  ids    special tokens in the text are recognised
  plain  they are text (left out where it is the same)
sentencepiece itself never recognises them: ids_llama2.json has "plain" only, under "ids".

The vocabularies of some models are not at hand. Their rules, as published in their tokenizer.json, run here over
vocabularies that are; tests/tokenizer/real_vocabularies.h makes the same files for OQ:
  opt      GPT-2's tokens and merges with OPT's special tokens, in another order (GPT2Tokenizer of transformers)
  bloom    BLOOM's pre-tokenizer over GPT-2's
  qwen2    Qwen2's normalizer and pre-tokenizer over GPT-2's
  llama3   LLaMA-3's pre-tokenizer and ignore_merges over Falcon's, without most of its merges
  mixtral  LLaMA-2's model as tokenizer.json has it: BPE with byte_fallback (transformers' own list of merges)
  mistral  the same with Metaspace, as Mistral v0.3 has it
  metaspace  the same, split into words, every part with a space before it
"""

import argparse
import json
import pathlib
import random

import gguf
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import GPT2Tokenizer
from transformers.convert_slow_tokenizer import generate_merges

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

# What the first set lacks: marks that compose, move or must stay apart, jamo, joined emoji, separators of all kinds,
# control characters, special tokens that almost are.
NASTY = [
    "cafe\u0301 au lait", "e\u0323\u0301 \u1eb9\u0301 e\u0301\u0323", "\u212bngstr\u00f6m \u2126 \u212a", "\u1100\u1161\u11a8\uac00\u11a8",
    "\u0958\u0928\u093c", "a\u0315\u0300\u05ae\u0300b", "\u0344 \u0387 \u037e", "\ufa0e\uf900\ufa10", "<s\u0338>", "</s>\u0301x", "\u0301</s>",
    "n\u0303o\u0303", "\u00a8\u0301 \u1fee", "\u30ab\u3099 \u30d1", "A\u030a\u0301 \u01fa", "\u09c7\u09be \u0bc6\u0bd7", "q\u0307\u0323", "\u1e9b\u0323",
    "\U0001f468\U0001f3fd\u200d\U0001f4bb\ufe0f!", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "1\ufe0f\u20e3 #\ufe0f\u20e3",
    "\t\t  \t\n\t x", "a \t b\u00a0\u00a0c\u3000\u3000d", "\n \n\n \r\n\r x", "line\rcarriage\r\rreturns", "a\u0085b\u2028\u2028c",
    "trailing   \n", "   leading", "x" + " " * 17 + "y" + "\t" * 9 + "z", " \u2581 \u2581\u2581x", "\u2581\u2581", "a\u2581 \u2581b",
    "\u0000\u0001\ufffe", "\u001f\u001e\u001d\u001c", "\u0080\u009f", "\ud7ff\ue000\uffff\U00010000",
    "</s", "<//s>", "< s>", "<pad>", "<s></s><pad>", "a</s> b <s>c", "</s></s>", " </s> ", "<0x0A><0xE6>", "<unk>\u0000<unk>", "<mask>",
    "\u4e2d\u6587\uff0c\u6807\u70b9\u3002\u201c\u5f15\u53f7\u201d\u2026\u2026", "\u0939\u0948\u0964 \u06cc\u06c1\u06d4 \u060c", "(a|b,c.d)", "\u2026and\u2026so\u2026on",
    "It'S 12345678 o'CLOCK'll", "I\u2019LL \u00e9'll'RE", "x\u02bcs 3\u00b2\u00b3\u2460 \u06f1\u06f2\u06f3\u06f4", "\U0001d7ce\U0001d7cf\U0001d7d0\U0001d7d1", "====" * 9 + "---",
]

ATOMS = [
    "the", "Word", "UPPER", "isn't", "WE'LL", "'s", "’s", "x1", "42", "1999", "3.5", "٣", "½", "é", "e\u0301", "ß", "日本",
    "语言", "かな", "한글", "слово", "λόγος", "كلمة", "שלום", "शब्द", "คำ", "😀", "👩‍💻", "🇯🇵", "✓", ".", ",", "!?", "...", "--", "—",
    "(", ")", "[x]", "{}", "<b>", "&&", "==", "#", "@user", "$", "%", "\"", "'", "`", "~", "^", "\\", "/", "_", "http://a.b",
    "f(x)", "::", "\u00a0", "\u3000", "\u2009", "\u200b", "\u200d", "\ufeff", "\u0301", "\ufffd", "𝒳", "𠜎",
]
GAPS = ["", "", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n", "\n  "]


def strings(count):
    out = list(dict.fromkeys(HAND + NASTY))
    rng = random.Random(20240501)
    while len(out) < count:
        s = rng.choice(GAPS)
        for _ in range(rng.randint(2, 9)):
            s += rng.choice(ATOMS) + rng.choice(GAPS)
        if s not in out:
            out.append(s)
    return out


def vocabulary(path):
    """Tokens, kinds and merges of a GGUF."""
    fields = gguf.GGUFReader(path).fields
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"].contents()]
    return fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents(), merges


def bpe(path, pre_tokenizer, normalizer=None, merges_kept=None, **options):
    """The `tokenizers` library's BPE from a GGUF's vocabulary and merges."""
    tokens, kinds, merges = vocabulary(path)
    t = tokenizers.Tokenizer(models.BPE({s: i for i, s in enumerate(tokens)}, merges[:merges_kept], **options))
    t.pre_tokenizer = pre_tokenizer
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False)
                          for s, k in zip(tokens, kinds) if k == 3])
    return t


def split(regex):
    """A pattern of the checkpoint's own in front of ByteLevel, as BLOOM, Qwen2 and LLaMA-3 have it."""
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
QWEN2 = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
         "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
LLAMA3 = QWEN2.replace("|\\p{N}| ?", "|\\p{N}{1,3}| ?")


def opt(path):
    """OPT's special tokens before GPT-2's others in an order of their own, and fillers behind them."""
    tokens, _, merges = vocabulary(path)
    words = [t for t in tokens if t != "<|endoftext|>"]
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for i, word in enumerate(words):
        vocab[word] = 4 + i * 7919 % len(words)
    for i in range(5):
        vocab[f"madeupword{i:04}"] = 4 + len(words) + i
    assert len(vocab) == 50265 and len(set(vocab.values())) == 50265
    t = GPT2Tokenizer(vocab=vocab, merges=merges, bos_token="</s>", eos_token="</s>", unk_token="</s>",
                      pad_token="<pad>", add_bos_token=True)
    assert t("a").input_ids[0] == 2
    return t._tokenizer


def byte_fallback(path, normalizer, pre_tokenizer):
    """A sentencepiece model as transformers writes it into tokenizer.json."""
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.vocab_size())]
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = generate_merges(vocab, dict(pieces), skip_tokens=["<unk>", "<s>", "</s>"])
    t = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        t.normalizer = normalizer
    if pre_tokenizer:
        t.pre_tokenizer = pre_tokenizer
    t.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in ("<unk>", "<s>", "</s>")])
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
    texts = strings(560)
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
    write(args.out / "ids_opt.json", bpe_rows(opt(args.gpt2), texts))
    write(args.out / "ids_bloom.json", bpe_rows(bpe(args.gpt2, split(BLOOM)), texts))
    write(args.out / "ids_qwen2.json", bpe_rows(bpe(args.gpt2, split(QWEN2), normalizers.NFC()), texts))
    # With few merges left, most words that are tokens are reached by ignore_merges alone.
    llama3 = bpe(args.falcon, split(LLAMA3), merges_kept=2000, ignore_merges=True)
    write(args.out / "ids_llama3.json", bpe_rows(llama3, texts))
    mark = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    write(args.out / "ids_mixtral.json", bpe_rows(byte_fallback(args.llama2, mark, None), texts))
    for name, scheme, cut in (("mistral", "first", False), ("metaspace", "always", True)):
        spaces = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=cut)
        write(args.out / f"ids_{name}.json", bpe_rows(byte_fallback(args.llama2, None, spaces), texts))


if __name__ == "__main__":
    main()
