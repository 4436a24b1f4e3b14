#!/usr/bin/env bash
# From nothing to an answer: installs what is missing, builds, fetches a real model, converts it,
# quantizes it to 4 bits, and streams an answer. A second run is offline and starts at once.
#
# usage: scripts/demo.sh [PROMPT]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
prompt=${1:-Why is the sky blue?}
bin=$root/build/release/bin

# The stamp names the commit that was built and installed for: while it holds, nothing is asked.
stamp=$root/build/release/.demo-stamp
state=$(cd "$root" && { git rev-parse HEAD && git status --porcelain || true; } 2>/dev/null | sha256sum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$state" ] || [ ! -x "$bin/oq-run" ]; then
  install "${build_packages[@]}"
  build release oq-convert oq-run >&2
  printf '%s' "$state" >"$stamp"
fi

if fetch_model; then
  source=$model_gguf full=$cache/smollm2-f16.oq small=$cache/smollm2-w4a16g64.oq
  # So small a model, rounded to 4 bits, says one sentence for ever without the penalty.
  arguments=(--chat -p "$prompt" -n 200 --temperature 0 --repeat-penalty 1.1)
else
  say "note: the model cannot be had (no network?); going on with a tiny random one, so the answer"
  say "      will be nonsense"
  build release oq-tiny-gguf >&2
  source=$cache/tiny.gguf full=$cache/tiny-f16.oq small=$cache/tiny-w4a16g64.oq
  mkdir -p "$cache"
  "$bin/oq-tiny-gguf" "$source"
  arguments=(-p "$prompt" -n 50)
fi

# A newer converter converts again: its outputs are cheap, and stale ones are confusing.
[ "$full" -nt "$bin/oq-convert" ] || "$bin/oq-convert" "$source" -o "$full"
[ "$small" -nt "$bin/oq-convert" ] ||
  "$bin/oq-convert" "$source" -o "$small" --scheme w4a16g64
exec "$bin/oq-run" "$small" "${arguments[@]}"
