#!/usr/bin/env bash
# The quality tables of the calibrators: perplexity of SmolLM2-135M on WikiText-2 test for every method
# and scheme, each beside full precision and other methods, with paired standard errors.
#
# usage: bench/quality.sh [--learned] [--setting WINDOWSxTOKENS] MODEL.gguf TEXT_FOLDER [ROW...] > bench/results/quality.md
#
# TEXT_FOLDER holds wikitext2-raw.valid.txt (calibration: 64 windows of 1024; with --learned, the table of the
# methods that learn, 16 of 512) and wikitext2-raw.test.txt (evaluation: the first 40 windows of 2048). A row is
# "METHOD SCHEME [FLAG...]"; without any, all of the table. After --all-windows the whole text is evaluated. "best"
# among the columns is the single method, not auto, of least perplexity among the scheme's rows that are finished.
# Finished rows are kept in the cache with their models, keyed by model, texts, tools and options, so the table
# may be made in several goes, and a row that was stopped goes on after its last finished block; rows that are
# not finished yet are left out of it, and OQ_QUALITY=print only prints what there is.
set -euo pipefail
. "$(dirname "$0")/../scripts/lib.sh"
bin=$root/build/release/bin
windows=64 window=1024 against=(rtn) title="the calibrators"
table=(
  "full f16"
  "rtn w4a16g64" "gptq w4a16g64"
  "rtn w3a16" "gptq w3a16" "owq w3a16 --target-bits 3.01" "owq w3a16 --target-bits 3.1" "rtn w4a16"
  "rtn w3a16g64" "gptq w3a16g64" "owq w3a16g64 --target-bits 3.01"
  "rtn w4a8" "smoothquant w4a8" "gptq w4a8" "awrq w4a8"
  "rtn w4a8t" "smoothquant w4a8t" "gptq w4a8t" "awrq w4a8t"
  "gptq w4a16g64 --no-act-order --tuning minmax" "gptq w4a16g64 --text self"
  "full f16 --all-windows" "gptq w4a16g64 --all-windows"
)
if [ "${1:-}" = --learned ]; then
  shift
  windows=16 window=512 against=(gptq omniquant best) title="the methods that learn"
  table=("full f16")
  for scheme in w3a16 w2a16g64 w2a8 'w2*a8' w4a4q4kv4 w4a16g64; do
    table+=("rtn $scheme" "gptq $scheme" "gptq $scheme --no-act-order --tuning minmax" "omniquant $scheme")
    if [[ $scheme = w2a16* ]]; then table+=("omniquant $scheme --no-aug-loss"); fi
    if [[ $scheme != *a16* ]]; then table+=("smoothquant $scheme" "awrq $scheme" "abq $scheme"); fi
    table+=("auto $scheme")
    if [ "$scheme" = w3a16 ]; then table+=("auto $scheme --target-bits 2.8"); fi
  done
fi
if [ "${1:-}" = --setting ]; then
  [[ ${2:-} =~ ^([0-9]+)x([0-9]+)$ ]] || die "--setting: WINDOWSxTOKENS was expected, such as 32x1024"
  windows=${BASH_REMATCH[1]} window=${BASH_REMATCH[2]}
  shift 2
fi
[ $# -ge 2 ] || die "usage: bench/quality.sh [--learned] [--setting WINDOWSxTOKENS] MODEL.gguf TEXT_FOLDER [ROW...]"
model=$1 texts=$2
shift 2
rows=("$@")
[ ${#rows[@]} -gt 0 ] || rows=("${table[@]}")
calibration=$texts/wikitext2-raw.valid.txt evaluation=$texts/wikitext2-raw.test.txt
store=$cache/quality
mkdir -p "$store"
inputs=$(sha256sum "$model" "$calibration" "$evaluation" "$bin/oq-calibrate" "$bin/oq-eval" |
  cut -d' ' -f1 | sha256sum | cut -c1-12)
# row_base ROW: where its files lie, without their ends. Rows of 64 windows of 1024 say nothing of them.
row_base() {
  local setting=
  if [ "$windows $window" != "64 1024" ] && [[ $1 != "full "* ]]; then setting=$windows-$window-; fi
  echo "$store/$inputs-$setting$(tr -c 'a-zA-Z0-9.\n' '_' <<<"$1")"
}

f16() {  # the model that everything starts from, once
  [ -f "$store/$inputs.oq" ] || "$bin/oq-convert" "$model" -o "$store/$inputs.oq" --quiet
  echo "$store/$inputs.oq"
}

# calibrate MADE FLAG...: goes on where an earlier go was stopped. MADE.seconds has what each took.
calibrate() {
  made=$1
  shift
  go=$SECONDS
  trap 'echo $((SECONDS - go)) >>"$made.seconds"' EXIT
  "$bin/oq-calibrate" "$(f16)" -o "$made.oq" --head-bits 16 --windows "$windows" --window "$window" --resume \
    --json "$@" >"$made.new"
  mv "$made.new" "$made.made"
  echo $((SECONDS - go)) >>"$made.seconds"
  trap - EXIT
}

make_row() {  # make_row "METHOD SCHEME FLAG...": perplexity and what the calibrator says, as JSON
  local row=$1 file method scheme flags text=(--text "$calibration") result count=40
  file=$(row_base "$row").json
  [ -f "$file" ] && return
  say "== $row"
  if [[ $row = *" --all-windows" ]]; then
    row=${row% --all-windows}
    count=0
  fi
  read -r method scheme flags <<<"$row"
  if [[ $flags = *--text* ]]; then text=(); fi
  if [ "$method" = full ]; then
    result=$(f16)
  else
    result=$(row_base "$row").oq
    # shellcheck disable=SC2086  # flags are words
    [ -f "${result%.oq}.made" ] || calibrate "${result%.oq}" --method "$method" --scheme "$scheme" $flags "${text[@]}"
  fi
  "$bin/oq-eval" "$result" --perplexity "$evaluation" --max-windows "$count" --json >"$file.new"
  [ "$method" = full ] || cat "${result%.oq}.made" >>"$file.new"
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

# best_single SCHEME ALL: of the scheme's finished rows, at one width, of the whole text or not
best_single() {
  local row method scheme flags file all
  for row in "${rows[@]}"; do
    read -r method scheme flags <<<"$row"
    file=$(row_base "$row").json all=
    if [[ $row = *" --all-windows" ]]; then all=" --all-windows"; fi
    if [[ "$scheme$all" != "$1$2" || $method = auto || $method = full || $flags = *--target-bits* || ! -f $file ]]; then
      continue
    fi
    echo "$(numbers "$file" perplexity | head -n 1) $row"
  done | sort -g | head -n 1 | cut -d' ' -f2-
}

# falling FILE: of how many blocks, of all that learned, the last epoch's loss is below the first's
falling() {
  { grep -o '"losses":\[\[[0-9][^"]*\]\]' "$1" || true; } | sed 's/"losses"://' | tr ']' '\n' | tr -d '[' |
    awk -F, '{ sub(/^,/, "") } NF > 1 { n++; if ($NF + 0 < $1 + 0) fell++ } END { if (n) printf "%d of %d", fell, n }'
}

seconds() {  # seconds ROW: of all goes together
  local base
  base=$(row_base "${1% --all-windows}")
  if [ -f "$base.seconds" ]; then awk '{ s += $1 } END { print s }' "$base.seconds"; fi
}

print_table() {
  echo "# Quality of $title, $(basename "$model" .gguf)"
  echo
  echo "\`bench/quality.sh\`: $windows windows of $window tokens of WikiText-2 valid, seed 0; perplexity of the first 40"
  echo "windows of 2048 of WikiText-2 test; embedding and head in f16. Differences are in perplexity, +- their"
  echo "paired standard error over the windows. The full-precision model is itself dequantized from Q4_1."
  echo
  echo "| method | scheme | bits/weight | perplexity | against full precision | +- |$(printf ' against %s | +- |' "${against[@]}") calibrated in s | with MB | loss falls in blocks |"
  echo "|---|---|---|---|---|---|$(printf -- '---|%.0s' "${against[@]}" "${against[@]}")---|---|---|"
  local row file method scheme flags all other others
  for row in "${rows[@]}"; do
    file=$(row_base "$row").json
    [ -f "$file" ] || continue
    read -r method scheme flags <<<"$row"
    all=  # rows of the whole text are compared with rows of the whole text
    if [[ $flags = *--all-windows ]]; then all=" --all-windows"; fi
    others=
    for other in "${against[@]}"; do
      other="$other $scheme$all"
      if [[ $other = best* ]]; then other=$(best_single "$scheme" "$all"); fi
      others+=" $(difference "$(row_base "$other").json" "$file")"
    done
    printf '| %s | %s | %.2f | %.2f | %s%s %s | %s | %s |\n' "$method${flags:+ $flags}" "$scheme" \
      "$(numbers "$file" bits_per_weight | head -n 1)" "$(numbers "$file" perplexity | head -n 1)" \
      "$(difference "$(row_base "full f16$all").json" "$file")" "$others" "$(seconds "$row")" \
      "$(numbers "$file" peak_memory | awk '{ printf "%.0f", $1 / 1e6 }')" "$(falling "$file")"
  done
}

if [ "${OQ_QUALITY:-}" != print ]; then
  for row in "${rows[@]}"; do make_row "$row"; done
fi
print_table
