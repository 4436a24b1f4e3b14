#!/usr/bin/env bash
# The CPU's table: throughput of SmolLM2-135M at several schemes, as markdown on stdout.
#
# usage: bench/cpu.sh MODEL.gguf > bench/results/NAME.md
set -euo pipefail
bin=$(cd "$(dirname "$0")/.." && pwd)/build/release/bin
source=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "# $(basename "$source" .gguf) on $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores"
echo
echo "\`bench/cpu.sh\`, $(date -u +%F). Medians; every row's read bandwidth was measured in the same run."
for scheme in w16a16 w8a16g64 w4a16g64 w3a16g64 w2a16g64; do
  "$bin/oq-convert" "$source" -o "$work/$scheme.oq" --scheme "$scheme" --quiet
  echo
  (cd "$work" && "$bin/oq-bench" "$scheme.oq")
done
