#!/usr/bin/env bash
# The CPU's table: throughput of a model at several schemes, as markdown on stdout. The model is a
# GGUF, converted to each of them, or a name of `oq-bench --synthetic`: random weights of its shape.
# Each is measured as it lies after opening, and on huge pages.
#
# usage: bench/cpu.sh MODEL.gguf|NAME [SCHEME...] > bench/results/NAME.md
set -euo pipefail
bin=$(cd "$(dirname "$0")/.." && pwd)/build/release/bin
source=$1
shift
schemes=("$@")
[ ${#schemes[@]} -gt 0 ] || schemes=(w16a16 w8a16g64 w4a16g64 w3a16g64 w2a16g64)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "# $(basename "$source" .gguf) on $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores"
echo
echo "\`bench/cpu.sh\`, $(date -u +%F). Medians; every row's read bandwidth was measured in the same run."
for scheme in "${schemes[@]}"; do
  echo
  if [ -f "$source" ]; then
    "$bin/oq-convert" "$source" -o "$work/$scheme.oq" --scheme "$scheme" --quiet
    measure=("$scheme.oq")
  else
    measure=(--synthetic "$source" --scheme "$scheme")
  fi
  (cd "$work" && "$bin/oq-bench" "${measure[@]}" && echo && "$bin/oq-bench" "${measure[@]}" --huge-pages)
  rm -f "$work/$scheme.oq"
done
