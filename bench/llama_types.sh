#!/usr/bin/env bash
# OQ's files beside llama.cpp's types of the same model: perplexity on the same windows against bits per
# weight as stored.
#
# usage: bench/llama_types.sh LLAMA_BIN MODEL.gguf TEXT MODEL.oq... > table.md
#
# LLAMA_BIN holds llama-quantize and llama-perplexity (llama.cpp's or ik_llama.cpp's); MODEL.gguf is the model
# that they quantize, and what the .oq files should come from too. OQ_TYPES lists the types, OQ_WINDOWS says how many
# windows of 2048 tokens (40), OQ_IMATRIX names what llama-imatrix made of calibration text, which the IQ types below
# 3.5 bits want. llama-perplexity scores the second half of each window, so oq-eval does here.
# Quantized files and finished scores stay in the cache, keyed by model, text and windows.
set -euo pipefail
shopt -s inherit_errexit
. "$(dirname "$0")/../scripts/lib.sh"
[ $# -ge 3 ] || die "usage: bench/llama_types.sh LLAMA_BIN MODEL.gguf TEXT MODEL.oq..."
bin=$root/build/release/bin
llama=$1 model=$2 text=$3
shift 3
usual="F16 Q4_K_M IQ4_XS Q3_K_M IQ3_S Q2_K"
[ -z "${OQ_IMATRIX:-}" ] || usual+=" IQ3_XXS IQ2_M IQ2_XS IQ2_XXS"
read -ra types <<<"${OQ_TYPES:-$usual}"
windows=${OQ_WINDOWS:-40} window=2048 importance=()
[ -z "${OQ_IMATRIX:-}" ] || importance=(--imatrix "$OQ_IMATRIX")
for tool in "$llama/llama-quantize" "$llama/llama-perplexity" "$bin/oq-eval" "$bin/oq-info"; do
  [ -x "$tool" ] || die "$tool is not there: build it first"
done
for file in "$model" "$text" "${importance[@]:1}" "$@"; do [ -f "$file" ] || die "$file: no such file"; done
key=$(sha256sum "$model" "$text" "${importance[@]:1}" "$llama/llama-quantize" "$llama/llama-perplexity" | cut -d' ' -f1 | sha256sum | cut -c1-12)-$windows
store=$cache/llama-types/$key
mkdir -p "$store"

keep() {  # keep SCORES SOURCE: the new ones, if they are whole
  local new=$store/new.scores
  if [ -z "$(head -n 1 "$new")" ] || [ "$(wc -l <"$new")" -ne $((windows + 2)) ]; then
    die "$2: bits per weight and $windows windows were expected, see $new"
  fi
  mv "$new" "$1"
}

# Both kinds of score become a file of lines: bits per weight, tensor types, then a window's mean -log p each.
llama_scores() {  # llama_scores TYPE
  local type=$1 log=$store/$1.log
  if [ ! -f "$store/$type.scores" ]; then
    say "== $type"
    [ -f "$store/$type.gguf" ] || {
      "$llama/llama-quantize" --allow-requantize "${importance[@]}" "$model" "$store/new.gguf" "$type" >"$log" 2>&1 ||
        die "$type: llama-quantize failed, see $log"
      mv "$store/new.gguf" "$store/$type.gguf"
    }
    "$llama/llama-perplexity" -m "$store/$type.gguf" -f "$text" -c "$window" --chunks "$windows" >"$log" 2>&1 ||
      die "$type: llama-perplexity failed, see $log"
    # It prints exp of the mean over the windows so far, as [1]20.1234,[2]21.5678,...
    {
      sed -n 's/.* size .*(\([0-9.]*\) BPW).*/\1/p' "$log" | tail -n 1
      sed -n 's/.*- type *\([A-Za-z0-9_]*\): *\([0-9]*\) tensors.*/\2 \1/p' "$log" | paste -sd, | sed 's/,/, /g'
      grep -o '\[[0-9]*\][0-9.]*,' "$log" | tr -d ',' | tr '[]' '  ' |
        awk '{ sum = $1 * log($2); printf "%.6f\n", sum - before; before = sum }'
    } >"$store/new.scores"
    keep "$store/$type.scores" "$log"
  fi
  echo "$store/$type.scores"
}

oq_scores() {  # oq_scores MODEL.oq
  local file=$1 scores
  scores=$store/oq-$(sha256sum "$file" "$bin/oq-eval" | sha256sum | cut -c1-12).scores
  if [ ! -f "$scores" ]; then
    say "== $file"
    {
      # Of all tensors that hold weights, as llama.cpp counts.
      "$bin/oq-info" "$file" --json | grep -o '{"bytes":[^}]*"type":"[^"]*"}' | grep -v '"type":"bytes"' |
        tr -d '{}"' | tr ':,' '  ' | awk '
          { for (i = 1; i < NF; i++) v[$i] = $(i + 1); bytes += v["bytes"]; n += v["rows"] * v["cols"] }
          END { printf "%.2f\n", bytes * 8 / n }'
      "$bin/oq-info" "$file" --json | grep -o '"type":"[^"]*"' | grep -v '"bytes"' | cut -d'"' -f4 |
        sort | uniq -c | awk '{ $1 = $1; print }' | paste -sd, | sed 's/,/, /g'
      "$bin/oq-eval" "$file" --perplexity "$text" --window "$window" --unscored $((window / 2 + 1)) \
        --max-windows "$windows" --json | grep -o '"window_nll":\[[^]]*\]' | tr -d '"[]a-z_:' | tr ',' '\n'
    } >"$store/new.scores"
    keep "$scores" "$file"
  fi
  echo "$scores"
}

row() {  # row NAME SCORES REFERENCE
  paste <(tail -n +3 "$2") <(tail -n +3 "$3") | awk -v name="$1" -v bits="$(sed -n 1p "$2")" -v used="$(sed -n 2p "$2")" '
    NF == 2 { a += $1; b += $2; d = $1 - $2; s += d; q += d * d; n++ }
    END { if (n < 2) { print "too few windows" > "/dev/stderr"; exit 1 }
          p = exp(a / n); v = (q - s * s / n) / (n - 1)
          printf "| %s | %.2f | %.3f | %+.3f | %.3f | %s |\n", name, bits, p, p - exp(b / n), p * sqrt(v / n), used }'
}

reference=$(llama_scores "${types[0]}")
echo "Everything is quantized from $(basename "$model")${OQ_IMATRIX:+, by llama.cpp with an importance matrix}: $windows windows of $window tokens, the second"
echo "half of each scored. Where that model was dequantized itself, from 4 bits, say, types of its own kind lose less than they would."
echo
echo "| file | bits/weight, all tensors | perplexity | against ${types[0]} | +- | tensors |"
echo "|---|---|---|---|---|---|"
for type in "${types[@]}"; do
  scores=$(llama_scores "$type")
  row "llama.cpp $type" "$scores" "$reference"
done
for file in "$@"; do
  scores=$(oq_scores "$file")
  row "oq $(basename "$file" .oq)" "$scores" "$reference"
done
