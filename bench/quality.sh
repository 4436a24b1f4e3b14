#!/usr/bin/env bash
# The quality table of the calibrators: perplexity of SmolLM2-135M on WikiText-2 test for every method
# and scheme, each beside full precision and rounding to nearest, with paired standard errors.
#
# usage: bench/quality.sh MODEL.gguf TEXT_FOLDER [ROW...] > bench/results/quality.md
#
# TEXT_FOLDER holds wikitext2-raw.valid.txt (calibration: 64 windows of 1024) and wikitext2-raw.test.txt
# (evaluation: the first 40 windows of 2048). A row is "METHOD SCHEME [FLAG...]"; without any, all of the
# table. After --all-windows the whole text is evaluated. Finished rows are kept in the cache with their
# models, keyed by model, texts, tools and options, so the table may be made in several goes; rows that are
# not finished yet are left out of it, and OQ_QUALITY=print only prints what there is.
set -euo pipefail
. "$(dirname "$0")/../scripts/lib.sh"
bin=$root/build/release/bin
model=$1 texts=$2
shift 2
rows=("$@")
[ ${#rows[@]} -gt 0 ] || rows=(
  "full f16"
  "rtn w4a16g64" "gptq w4a16g64"
  "rtn w3a16" "gptq w3a16" "owq w3a16 --target-bits 3.01" "owq w3a16 --target-bits 3.1" "rtn w4a16"
  "rtn w3a16g64" "gptq w3a16g64" "owq w3a16g64 --target-bits 3.01"
  "rtn w4a8" "smoothquant w4a8" "gptq w4a8" "awrq w4a8"
  "rtn w4a8t" "smoothquant w4a8t" "gptq w4a8t" "awrq w4a8t"
  "gptq w4a16g64 --no-act-order --tuning minmax" "gptq w4a16g64 --text self"
  "full f16 --all-windows" "gptq w4a16g64 --all-windows"
)
calibration=$texts/wikitext2-raw.valid.txt evaluation=$texts/wikitext2-raw.test.txt
store=$cache/quality
mkdir -p "$store"
inputs=$(sha256sum "$model" "$calibration" "$evaluation" "$bin/oq-calibrate" "$bin/oq-eval" |
  cut -d' ' -f1 | sha256sum | cut -c1-12)
row_file() { echo "$store/$inputs-$(tr -c 'a-zA-Z0-9.\n' '_' <<<"$1").json"; }

f16() {  # the model that everything starts from, once
  [ -f "$store/$inputs.oq" ] || "$bin/oq-convert" "$model" -o "$store/$inputs.oq" --quiet
  echo "$store/$inputs.oq"
}

make_row() {  # make_row "METHOD SCHEME FLAG...": perplexity and what the calibrator says, as JSON
  local row=$1 file made method scheme flags text=(--text "$calibration") windows=40
  file=$(row_file "$row")
  [ -f "$file" ] && return
  say "== $row"
  if [[ $row = *" --all-windows" ]]; then
    row=${row% --all-windows}
    windows=0
  fi
  read -r method scheme flags <<<"$row"
  if [[ $flags = *--text* ]]; then text=(); fi
  made=$(row_file "$row")
  made=${made%.json}.oq
  if [ "$method" = full ]; then
    made=$(f16)
  elif [ ! -f "$made" ]; then
    # shellcheck disable=SC2086  # flags are words
    "$bin/oq-calibrate" "$(f16)" -o "$made" --method "$method" --scheme "$scheme" --head-bits 16 $flags \
      "${text[@]}" --windows 64 --window 1024 --json >"${made%.oq}.made"
  fi
  "$bin/oq-eval" "$made" --perplexity "$evaluation" --max-windows "$windows" --json >"$file.new"
  [ "$method" = full ] || cat "${made%.oq}.made" >>"$file.new"
  mv "$file.new" "$file"
}

# numbers FILE KEY: the values of a key, one per line
numbers() { tr ',' '\n' <"$1" | tr -d '[]{}"' | awk -v key="$2" '
  { n = split($0, part, ":"); if (n > 1) { on = part[n - 1] ~ "(^| )" key "$"; v = part[n] } else v = $0
    if (on && v != "") print v + 0 }'; }

# difference A B: perplexity of B minus that of A and its paired standard error, from their windows
difference() {
  [ -f "$1" ] && [ -f "$2" ] || { echo "| |"; return; }
  paste <(numbers "$1" window_nll) <(numbers "$2" window_nll) | awk '
    { a += $1; b += $2; d = $2 - $1; s += d; q += d * d; n++ }
    END { if (n < 2) { print "| |"; exit }
          ma = a / n; mb = b / n; v = (q - s * s / n) / (n - 1)
          printf "%+.2f | %.2f |", exp(mb) - exp(ma), exp(mb) * sqrt(v / n) }'
}

print_table() {
  echo "# Quality of the calibrators, $(basename "$model" .gguf)"
  echo
  echo "\`bench/quality.sh\`: 64 windows of 1024 tokens of WikiText-2 valid, seed 0; perplexity of the first 40"
  echo "windows of 2048 of WikiText-2 test; embedding and head in f16. Differences are in perplexity, +- their"
  echo "paired standard error over the windows. The full-precision model is itself dequantized from Q4_1."
  echo
  echo "| method | scheme | bits/weight | perplexity | against full precision | +- | against rtn | +- | calibrated in s | with MB |"
  echo "|---|---|---|---|---|---|---|---|---|---|"
  local row file method scheme flags full
  for row in "${rows[@]}"; do
    file=$(row_file "$row")
    [ -f "$file" ] || continue
    read -r method scheme flags <<<"$row"
    full="full f16"
    if [[ $flags = *--all-windows ]]; then full+=" --all-windows"; fi
    printf '| %s | %s | %.2f | %.2f | %s %s %s | %s |\n' "$method${flags:+ $flags}" "$scheme" \
      "$(numbers "$file" bits_per_weight | head -n 1)" "$(numbers "$file" perplexity | head -n 1)" \
      "$(difference "$(row_file "$full")" "$file")" \
      "$(difference "$(row_file "rtn $scheme")" "$file")" \
      "$(numbers "$file" seconds | awk '{ printf "%.0f", $1 }')" \
      "$(numbers "$file" peak_memory | awk '{ printf "%.0f", $1 / 1e6 }')"
  done
}

if [ "${OQ_QUALITY:-}" != print ]; then
  for row in "${rows[@]}"; do make_row "$row"; done
fi
print_table
