#!/usr/bin/env bash
# All that is to be measured on a GPU, on a machine where nothing can be downloaded or installed.
# Each part ends within 9 minutes and writes <gpu>.md and <gpu>.json after every row. A row that
# fails says so, and the others go on. What is there already is not measured again: a part that was
# cut short goes on when it is called again. docs/cuda.md says what is measured.
#
# usage: bench/gpu.sh [--dry-run] [PART...]     parts: tests sanitizer kernels e2e; default: all
#
# Results go to $OUT, begun from those in bench/results, or straight to bench/results. The programs
# are those of the bundle that `cmake --preset gpu && cmake --build --preset gpu` makes, here or on
# another machine; where they do not run here, they are built here.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
part_seconds=500  # after which no row is begun
if [ -x "$root/bin/oq-bench-gpu" ]; then bundle=$root; else bundle=$root/build/gpu/bundle; fi
bin=$bundle/bin
results=${OUT:-$root/bench/results}
logs=${OUT:-$bundle}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
left() { echo $((part_seconds - SECONDS)); }

add_libraries() { [ ! -d "$1" ] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$1"; }

# cuBLAS is this machine's: its toolkit's, or that of Python's packages.
find_cublas() {
  local nvcc folder
  if nvcc=$(command -v nvcc); then add_libraries "$(dirname "$(readlink -f "$nvcc")")/../lib64"; fi
  while read -r folder; do
    add_libraries "$folder/cu13/lib"
    add_libraries "$folder/cublas/lib"
  done < <(python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null || true)
}

bring_programs() {
  "$bin/oq-bench-gpu" --version >/dev/null 2>&1 && return
  [ -f "$root/CMakePresets.json" ] || die "the programs in $bin do not run here: bring OQ's sources"
  command -v nvcc >/dev/null || die "no programs in $bin that run here, and no nvcc to build them"
  say "building with $(nvcc --version | tail -n 1)"
  local options=()
  [ ! -d "$bundle/deps" ] || options+=("-DOQ_DEPS=$bundle/deps")
  (cd "$root" && cmake --preset gpu "${options[@]}" && cmake --build --preset gpu) \
    >"$logs/build.log" 2>&1 || die "the gpu preset does not build here: see $logs/build.log"
}

# table VERB [ARGUMENT...]: of this device's results
table() {
  local verb=$1
  shift
  "$bin/oq-bench-gpu" "$verb" --results "$results" --device "$device" "$@"
}

# attempt TABLE KEY SECONDS COMMAND...: whether a row that is not there yet could be had. What
# COMMAND printed is in $output then, and the seconds that it took in $took.
attempt() {
  local table=$1 key=$2 seconds=$3 status=0
  shift 3
  if [ -n "$dry" ]; then
    printf 'timeout %s ' "$seconds"
    printf '%q ' "$@"
    printf '\n'
    return 1
  fi
  ! table has --table "$table" --key "$key" || return 1
  if [ "$(left)" -le 10 ]; then
    say "no time left for $table: $key"
    return 1
  fi
  [ "$seconds" -le "$(left)" ] || seconds=$(left)
  say "== $table: $key"
  took=$SECONDS
  timeout -k 5 "$seconds" "$@" >"$output" 2>"$output.errors" || status=$?
  took=$((SECONDS - took))
  { printf '\n== %s: %s\n' "$table" "$key"; cat "$output" "$output.errors"; } >>"$log"
  [ $status -ne 0 ] || return 0
  local why="exit status $status"
  [ $status -ne 124 ] || why="not done after $seconds s"
  why+=$(grep -ahiE 'error' "$output.errors" "$output" | head -n 1 | cut -c 1-300 | sed 's/^/: /' || true)
  table put --table "$table" --key "$key" --failed "$why"
  return 1
}

# check TABLE KEY SECONDS COMMAND...: a row of what passes or fails
check() {
  if attempt "$@"; then
    table put --table "$1" --key "$2" <<<"{\"result\": \"passed\", \"seconds\": $took}"
  fi
}

test_files=(conformance packed linear integer batch attention rows rank upload engine_tuner)

part_tests() {
  local name="Tests on the GPU" all="all, and every kernel reached" file
  check "$name" "the emulator's conformance" 60 "$bin/test-gpu" "--source-file=*conformance_test*"
  check "$name" "$all" 300 "$bin/test-gpu" --test-suite-exclude=data
  [ -n "$dry" ] || ! table has --table "$name" --key "$all" || return 0
  for file in "${test_files[@]}" decoder; do  # which of them, where one ended all
    check "$name" "$file" 120 "$bin/test-gpu" "--source-file=*${file}_test*" --test-suite-exclude=data
  done
}

# Of single kernels; and of one small model, for what happens between kernels.
part_sanitizer() {
  local sanitizer tool file
  sanitizer=$(command -v compute-sanitizer || echo "${dry:+compute-sanitizer}")
  if [ -z "$sanitizer" ]; then
    say "SKIPPED: no compute-sanitizer"
    return 0
  fi
  for tool in memcheck racecheck; do
    local with=("$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/test-gpu")
    for file in "${test_files[@]}"; do
      check "compute-sanitizer" "$tool: $file" 90 "${with[@]}" "--source-file=*${file}_test*"
    done
    check "compute-sanitizer" "$tool: a small model" 90 "${with[@]}" "--test-case=the KV cache of every kind"
  done
}

# A failure that leaves the device of no use ends the process: another one takes the other rows.
part_kernels() {
  local more=() attempts=0
  local command=("$bin/oq-bench-gpu" kernels --results "$results")
  if [ -n "$dry" ]; then
    printf '%q ' timeout "$part_seconds" "${command[@]}"
    printf '\n'
    return 0
  fi
  until timeout -k 5 "$(($(left) + 20))" "${command[@]}" --seconds "$(left)" "${more[@]}" 2>>"$log"; do
    attempts=$((attempts + 1))
    say "the kernels' bench ended early: $(tail -n 1 "$log")"
    [ $attempts -lt 12 ] && [ "$(left)" -gt 20 ] || return 0
    more=(--skip-failed)
  done
}

# model "SHAPE SCHEME HEAD-BITS" [-r N ARGUMENT...] [-- AIM...]: 64 tokens around position 512, and
# prompts of 512
model() {
  local key=$1 shape scheme bits arguments=()
  read -r shape scheme bits <<<"$1"
  shift
  [ "$bits" = 16 ] || arguments+=(--head-bits "$bits")
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [ "$1" != --peer ] || key+=", beside transformers in fp16"
    arguments+=("$1")
    shift
  done
  [ $# -eq 0 ] || shift
  if attempt "Whole models" "$key" 200 "$bin/oq-bench" --backend cuda --synthetic "$shape" \
    --scheme "$scheme" -p 512 -n 64 -d 0,480 --json "${arguments[@]}"; then
    table model --table "Whole models" --key "$key" "$@" <"$output" ||
      table put --table "Whole models" --key "$key" --failed "its report cannot be read"
  fi
}

part_e2e() {
  local peer="python3 $root/bench/peers/transformers_llama.py -p 512 -n 64 -d 0,480"
  model "llama-7b w4a16g128 8" -r 3 -- --share 0.65
  model "llama-7b w2a16g128 8" -r 3 -- --share 0.52
  model "llama-7b w3a16g128 8" -r 3
  model "llama-7b w2*a16g128 8" -r 3
  model "llama-7b w2a8 8" -r 3
  model "llama-7b w4a8 8" -r 3
  model "llama-7b w4a4q4kv4 8" -r 3
  model "llama-30b w2a8 8" -r 3 -- --gigabytes 11
  model "falcon-180b w3a16g512 8" -r 2 -- --gigabytes 80
  model "llama-7b w16a16 16" -r 3
  model "mixtral-8x7b w4a16g128 8" -r 3
  model "falcon-7b w4a16g128 8" -r 3
  model "opt-6.7b w4a16g128 8" -r 3
  model "llama-30b w4a8 8" -r 3
  if [ -n "$dry" ] || python3 -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; then
    model "llama-7b w4a16g128 8" -r 1 --peer "$peer"
  else
    say "SKIPPED: no PyTorch with transformers and CUDA to stand beside"
  fi
}

main() {
  dry=
  [ "${1:-}" != --dry-run ] || { dry=1; shift; }
  local part parts=("$@")
  [ ${#parts[@]} -gt 0 ] || parts=(tests sanitizer kernels e2e)
  for part in "${parts[@]}"; do
    case $part in
      tests | sanitizer | kernels | e2e) ;;
      *) die "no part is called '$part'; there are tests, sanitizer, kernels, e2e" ;;
    esac
  done
  if [ -z "$dry" ]; then
    [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null || die "no NVIDIA GPU in this machine"
    find_cublas
    mkdir -p "$results" "$logs"
    bring_programs
    device=$("$bin/oq-bench-gpu" device) || exit 1
    [ -z "${OUT:-}" ] || cp -n "$root"/bench/results/*.json "$results" 2>/dev/null || true
    output=$(mktemp)
    trap 'rm -f "$output" "$output.errors"' EXIT
  fi
  for part in "${parts[@]}"; do
    SECONDS=0
    log=$logs/$part.log
    say "=== $part${device:+ on $device}"
    "part_$part"
  done
  [ -n "$dry" ] || table summary
}
main "$@"
