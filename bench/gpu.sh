#!/usr/bin/env bash
# All that is to be measured on a GPU, on a machine where nothing can be downloaded or installed.
# A call ends by itself within 9 minutes, with <gpu>.md and <gpu>.json written after every row. A row
# that fails says so, and the others go on. docs/cuda.md says what is measured.
#
# usage: bench/gpu.sh [--dry-run] [--only TEXT] [PART...]
#   PART     of tests kernels e2e sanitizer; default: all, in this order
#   --only   rows whose "TABLE: KEY" has TEXT in it
# environment: OQ_PART_SECONDS (500) and OQ_TOTAL_SECONDS (540), building included, after which no row
# is begun; one that runs is cut short then.
#
# Results go to $OUT, begun from those in bench/results, or straight to bench/results. A second call
# goes on where the first one stopped: it leaves rows that are there, measures those again that
# failed or were cut short, and replaces them. To have a row measured anew, take it out of the .json,
# or the .json away. The device's limits alone are measured every time. The programs are those of
# the bundle that `cmake --preset gpu && cmake --build --preset gpu` makes, here or on another
# machine; where they do not run here, they are built here.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd -P)
part_seconds=${OQ_PART_SECONDS:-500}
total_seconds=${OQ_TOTAL_SECONDS:-540}
part_began=0
if [ -x "$root/bin/oq-bench-gpu" ]; then bundle=$root; else bundle=$root/build/gpu/bundle; fi
bin=$bundle/bin
results=${OUT:-$root/bench/results}
logs=${OUT:-$bundle}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Seconds of the part and of the call, whichever ends first. SECONDS counts from the call's begin.
left() {
  local part=$((part_began + part_seconds - SECONDS)) total=$((total_seconds - SECONDS))
  echo $((part < total ? part : total))
}

# The toolkit need not be on the PATH; nor need the libraries that others load be ours (with_own).
find_toolkit() {
  local folder
  for folder in /usr/local/cuda/bin /usr/local/cuda/compute-sanitizer; do
    [ ! -d "$folder" ] || PATH+=:$folder
  done
}
own_libraries=(-u LD_LIBRARY_PATH)
[ -z "${LD_LIBRARY_PATH+set}" ] || own_libraries=("LD_LIBRARY_PATH=$LD_LIBRARY_PATH")

add_libraries() { [ ! -d "$1" ] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$1"; }

# cuBLAS is this machine's: its toolkit's, or that of Python's packages.
find_cublas() {
  local nvcc folder
  if nvcc=$(command -v nvcc); then add_libraries "$(dirname "$(readlink -f "$nvcc")")/../lib64"; fi
  while read -r folder; do
    add_libraries "$folder/cu13/lib"
    add_libraries "$folder/cublas/lib"
  done < <(python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null || true)
  add_libraries /usr/local/cuda/lib64
}

bring_programs() {
  local why
  why=$(timeout 90 "$bin/oq-bench-gpu" --version 2>&1 >/dev/null) && return
  say "the programs in $bin do not run here: ${why:-not even in 90 s}"
  [[ $why != *libcublas* ]] || die "no cuBLAS here: its folder belongs into LD_LIBRARY_PATH"
  [ -f "$root/CMakePresets.json" ] || die "no sources to build them from: bring OQ's"
  command -v nvcc >/dev/null || die "no nvcc to build them"
  say "building with $(nvcc --version | tail -n 1)"
  local options=() status=0
  [ ! -d "$bundle/deps" ] || options+=("-DOQ_DEPS=$bundle/deps")
  (cd "$root" && timeout -k 5 60 cmake --preset gpu "${options[@]}" &&
    timeout -k 5 "$(left)" cmake --build --preset gpu) >"$logs/build.log" 2>&1 || status=$?
  [ $status -ne 124 ] || die "no time left to build: call again, on the same machine, and it goes on where it stopped"
  [ $status -eq 0 ] || die "the gpu preset does not build here: see $logs/build.log"
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
  [[ "$table: $key" == *"$only"* ]] || return 1
  if [ -n "$dry" ]; then
    printf 'timeout %s ' "$seconds"
    printf '%q ' "$@"
    printf '\n'
    return 1
  fi
  if [ "$(left)" -le 10 ]; then
    [ -n "$late" ] || say "no time left for $table: $key, nor for what comes behind it"
    late=1
    return 1
  fi
  ! table has --table "$table" --key "$key" || return 1
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

# check TABLE KEY SECONDS COMMAND...: a row of what passes or fails. COMMAND runs tests, and passes too
# where its filter finds none.
check() {
  attempt "$@" || return 0
  if grep -qE '^\[doctest\] test cases: +[1-9]' "$output"; then
    table put --table "$1" --key "$2" <<<"{\"result\": \"passed\", \"seconds\": $took}"
  else
    table put --table "$1" --key "$2" --failed "no test ran"
  fi
}

test_files=(conformance packed linear integer batch attention rows rank upload engine_tuner)

part_tests() {
  local name="Tests on the GPU" all="all, and every kernel reached" file
  check "$name" "the emulator's conformance" 60 "$bin/test-gpu" "--source-file=*conformance_test*"
  check "$name" "$all" 300 "$bin/test-gpu" --test-suite-exclude=data
  local of_file
  for file in "${test_files[@]}" decoder; do  # which of them, where one ended all
    of_file=(--table "$name" --key "$file")
    [ "$(left)" -gt 10 ] || return 0
    if [ -z "$dry" ] && table has --table "$name" --key "$all"; then  # then those that failed before
      table has "${of_file[@]}" --failed || continue
    fi
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
    local own=()
    [ "$tool" != memcheck ] || own=(--report-api-errors no)  # libraries try and see
    local with=("$sanitizer" --tool "$tool" --error-exitcode 9 "${own[@]}" "$bin/test-gpu")
    for file in "${test_files[@]}"; do  # but for cuBLAS's kernels, which are not ours to mend
      check "compute-sanitizer" "$tool: $file" 180 "${with[@]}" "--source-file=*${file}_test*" \
        "--test-case-exclude=*matrix product*"
    done
    check "compute-sanitizer" "$tool: a small model" 180 "${with[@]}" "--test-case=the KV cache of every kind"
  done
}

# A failure that leaves the device of no use ends the process: another one takes the other rows. A row
# that is begun late is cut short, and measured again by the next call.
part_kernels() {
  local more=(--only "$only") attempts=0
  local limits=(--table "The device's limits" --key "an empty kernel in a graph (t0)")
  local command=("$bin/oq-bench-gpu" kernels --results "$results")
  if [ -n "$dry" ]; then
    printf '%q ' timeout "$part_seconds" "${command[@]}" "${more[@]}"
    printf '\n'
    return 0
  fi
  while [ "$(left)" -gt 30 ]; do
    ! timeout -k 5 "$(left)" "${command[@]}" --seconds "$(($(left) - 20))" "${more[@]}" 2>>"$log" ||
      return 0
    say "the kernels' bench ended early: $(tail -n 1 "$log")"
    if ! table has "${limits[@]}"; then
      table put "${limits[@]}" --failed "the bench ended before any row: $(tail -n 1 "$log" | cut -c 1-300)"
      return 0
    fi
    attempts=$((attempts + 1))
    [ $attempts -lt 12 ] || return 0
    more=(--only "$only" --skip-failed)
  done
  say "no time left for kernels"
}

# model "SHAPE SCHEME HEAD-BITS" [--as SUFFIX] [-r N ARGUMENT...] [-- AIM...]: 64 tokens around
# position 512, and prompts of 512. SUFFIX: of the row's key.
model() {
  local key=$1 shape scheme bits arguments=()
  read -r shape scheme bits <<<"$1"
  shift
  [ "${1:-}" != --as ] || { key+=$2; shift 2; }
  [ "$bits" = 16 ] || arguments+=(--head-bits "$bits")
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
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

# beside NAME SCRIPT MODULES: LLaMA-7B beside a program of PyTorch's, which loads its own libraries.
beside() {
  local name=$1 script=$2 modules=$3 row="llama-7b w4a16g128 8" as=", beside $1" peer
  [[ "Whole models: $row$as" == *"$only"* ]] || return 0
  printf -v peer '%q ' env "${own_libraries[@]}" python3 "$root/bench/peers/$script"
  if [ -z "$dry" ]; then
    [ "$(left)" -gt 30 ] || { say "no time left to stand beside $name"; return 0; }
    ! table has --table "Whole models" --key "$row$as" || return 0
    timeout -k 5 "$(left)" env "${own_libraries[@]}" python3 -c \
      "import $modules; assert torch.cuda.is_available(), 'PyTorch sees no GPU'" >>"$log" 2>&1 || {
      say "SKIPPED: nothing to stand beside, $name: $(tail -n 1 "$log")"
      return 0
    }
  fi
  model "$row" --as "$as" -r 1 --peer "$peer-p 512 -n 64 -d 0,480"
}

part_e2e() {
  model "llama-7b w4a16g128 8" -r 3 -- --share 0.65
  model "llama-7b w2a16g128 8" -r 3 -- --share 0.52
  model "llama-7b w3a16g128 8" -r 3
  model "llama-7b w2*a16g128 8" -r 3
  model "llama-7b w2a8 8" -r 3
  model "llama-7b w4a8 8" -r 3
  model "llama-7b w4a4q4kv4 8" -r 3
  model "llama-30b w2a8 8" -r 3 -- --gigabytes 11
  model "falcon-180b w3a16g512 8" -r 2 -- --gigabytes 80
  beside "transformers in fp16" transformers_llama.py "torch, transformers"
  beside "plain PyTorch in fp16, static cache, CUDA graph" torch_llama.py torch
  model "llama-7b w4a16g128 8" --as ", 8 sequences" -b 8 -r 3
  model "llama-7b w16a16 16" -r 3
  model "mixtral-8x7b w4a16g128 8" -r 3
  model "falcon-7b w4a16g128 8" -r 3
  model "opt-6.7b w4a16g128 8" -r 3
  model "llama-30b w4a8 8" -r 3
}

# Before the first row: programs, where results go, and the device's name and state.
begin() {
  [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null || die "no NVIDIA GPU in this machine"
  find_cublas
  mkdir -p "$results" "$logs"
  bring_programs
  device=$(timeout -k 5 60 "$bin/oq-bench-gpu" device) || die "the device does not answer"
  [ -z "${OUT:-}" ] || cp -n "$root"/bench/results/*.json "$results" 2>/dev/null || true
  output=$(mktemp)
  trap 'rm -f "$output" "$output.errors"' EXIT
  timeout 30 nvidia-smi -q >>"$logs/$1.log" 2>&1 || true
}

main() {
  dry='' only=''
  while [[ "${1:-}" == --* ]]; do
    case $1 in
      --dry-run) dry=1 ;;
      --only)
        [ $# -gt 1 ] || die "--only wants a text"
        only=$2
        shift
        ;;
      *) die "there is no option $1; there are --dry-run and --only TEXT" ;;
    esac
    shift
  done
  local part parts=("$@")
  [ ${#parts[@]} -gt 0 ] || parts=(tests kernels e2e sanitizer)
  for part in "${parts[@]}"; do
    case $part in
      tests | sanitizer | kernels | e2e) ;;
      *) die "no part is called '$part'; there are tests, kernels, e2e, sanitizer" ;;
    esac
  done
  find_toolkit
  [ -n "$dry" ] || begin "${parts[0]}"
  for part in "${parts[@]}"; do
    part_began=$SECONDS late=''
    log=$logs/$part.log
    say "=== $part${device:+ on $device}"
    "part_$part"
  done
  [ -n "$dry" ] || table summary
}
main "$@"
