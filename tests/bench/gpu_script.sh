#!/usr/bin/env bash
# bench/gpu.sh against stand-ins for its programs that pass, find no test, fail, crash and hang. The
# tables are kept by the real oq-bench-gpu, which needs no GPU for that.
#
# usage: tests/bench/gpu_script.sh OQ-BENCH-GPU
set -euo pipefail
script=$(cd "$(dirname "$0")/../.." && pwd)/bench/gpu.sh
real=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/bench/peers" "$work/path"
cp "$script" "$work/bench/gpu.sh"
export REAL=$real CALLS=$work/calls TESTS=pass KERNELS=pass LOADS=
unset OUT OQ_PART_SECONDS OQ_TOTAL_SECONDS

stand_in() { { printf '#!/usr/bin/env bash\n'; cat; } >"$1"; chmod +x "$1"; }
stand_in "$work/bin/oq-bench-gpu" <<'EOF'
case $1 in
  --version) [ -z "$LOADS" ] || { echo "cannot load $LOADS" >&2; exit 127; } ;;
  device) echo "A GPU" ;;
  kernels)
    echo "kernels $*" >>"$CALLS"
    put() { "$REAL" put --results "$3" --device "A GPU" --table "$1" --key "$2" "${@:4}"; }
    limits=("The device's limits" "an empty kernel in a graph (t0)" "$3")
    [ "$KERNELS" != no-row ] || { echo "no stream" >&2; exit 1; }
    [ "$KERNELS" != no-limits ] || { put "${limits[@]}" --failed broken; exit 1; }
    put "${limits[@]}" <<<'{"us": 1.3}'
    if [ "$KERNELS" = crash ] && [[ "$*" != *--skip-failed* ]]; then kill -SEGV $$; fi
    put Linears w4 "$3" <<<'{"us": 7}' ;;
  *) exec "$REAL" "$@" ;;
esac
EOF
stand_in "$work/bin/test-gpu" <<'EOF'
echo "test-gpu $*" >>"$CALLS"
case $TESTS in
  pass) echo '[doctest] test cases:  4 |  4 passed | 0 failed | 2 skipped' ;;
  none) echo '[doctest] test cases:  0 |  0 passed | 0 failed | 6 skipped' ;;
  crash) echo 'an error of the device' >&2; kill -SEGV $$ ;;
  hang) exec sleep 100 ;;
esac
EOF
stand_in "$work/bin/oq-bench" <<'EOF'
echo "oq-bench $*" >>"$CALLS"
peer=
while [ $# -gt 0 ]; do [ "$1" != --peer ] || peer=$2; shift; done
[ -z "$peer" ] || bash -c "$peer" >/dev/null || exit 1
echo '{"bits_per_weight": 4.2, "results": [{"test": "tg64", "tokens_per_second": 200,
  "shares_of_read_bandwidth": [0.7]}], "device_memory": 5e9, "read_bandwidth": 3e12, "backend": "x"}'
EOF
stand_in "$work/path/python3" <<'EOF'
echo "python3 LD_LIBRARY_PATH=${LD_LIBRARY_PATH-unset} $*" >>"$CALLS"
case $* in
  *transformers*) echo 'ModuleNotFoundError: No module named transformers' >&2; exit 1 ;;
  *"import nvidia"*) echo "$NVIDIA" ;;
esac
EOF
stand_in "$work/path/nvidia-smi" <<<'echo "state of the GPU"'
stand_in "$work/path/compute-sanitizer" <<'EOF'
while [[ $1 != */test-gpu ]]; do shift; done
exec "$@"
EOF
export PATH=$work/path:$PATH NVIDIA=$work/nvidia
mkdir -p "$NVIDIA/cu13/lib"

fail() { echo "FAILED: $*" >&2; cat "$work/said" >&2; exit 1; }
# gpu STATUS ARGUMENT...: what it says is in $work/said, what it called in $CALLS
gpu() {
  local expected=$1 status=0
  shift
  : >"$CALLS"
  "$work/bench/gpu.sh" "$@" >"$work/said" 2>&1 || status=$?
  [ $status = "$expected" ] || fail "gpu.sh $*: exit status $status, expected $expected"
}
anew() { rm -rf "$work/bench/results"; }
called() { grep -c "$1" "$CALLS" || true; }
says() { grep -qF -- "$1" "$work/said" || fail "does not say: $1"; }
row() { grep -F "\"key\":\"$1\"" "$work/bench/results/a-gpu.json" | grep -qF -- "$2" || fail "row $1 has no $2"; }

# All pass; the sanitizer is last; a second call measures the limits alone.
LD_LIBRARY_PATH=/own gpu 0
[ "$(grep '^=== ' "$work/said" | tail -n 1)" = "=== sanitizer on A GPU" ] || fail "order of parts"
row "all, and every kernel reached" passed
row "llama-7b w4a16g128 8" '"met":true'
row "llama-7b w4a16g128 8, 8 sequences" '"share of read bandwidth":0.7'
row "llama-7b w4a16g128 8, beside plain PyTorch in fp16, static cache, CUDA graph" tokens
says "SKIPPED: nothing to stand beside, transformers in fp16"
grep -q "state of the GPU" "$work/tests.log" || fail "no state of the GPU"
grep -q "No module named transformers" "$work/e2e.log" || fail "the log has no reason"
[ "$(grep -c 'python3 LD_LIBRARY_PATH=/own .*torch' "$CALLS")" = 3 ] || fail "the peer's libraries"
gpu 0
[ "$(called test-gpu)/$(called oq-bench)" = 0/0 ] || fail "rows were measured again"
[ "$(called ^kernels)" = 1 ] || fail "no limits"

# What failed is measured again, and replaced.
anew
TESTS=none gpu 1 tests
row "the emulator's conformance" "no test ran"
TESTS=crash gpu 1 tests
row "the emulator's conformance" "an error of the device"
[ "$(called test-gpu)" = 13 ] || fail "not by file after a crash"
gpu 0 tests
row "the emulator's conformance" passed

# Kernels: another process behind a crash, none where the limits cannot be had.
anew
KERNELS=crash gpu 0 kernels
[ "$(called ^kernels)" = 2 ] || fail "no second process"
row w4 7
KERNELS=no-limits gpu 1 kernels
[ "$(called ^kernels)" = 1 ] || fail "went on without limits"
anew
KERNELS=no-row gpu 1 kernels
row "an empty kernel in a graph (t0)" "before any row: no stream"
[ "$(called ^kernels)" = 1 ] || fail "went on without a row"

# Programs that do not run: why, and without cuBLAS nothing is built.
LOADS=libcublas.so.13 gpu 1
says "cannot load libcublas.so.13"
says "no cuBLAS here"
LOADS=libfmt.so.9 gpu 1
says "cannot load libfmt.so.9"
says "no sources to build them from"

# --only, and time: of a part, and of a call whose program hangs.
anew
gpu 0 --only "w3a16g512"
[ "$(called test-gpu)/$(called oq-bench)" = 0/1 ] || fail "--only: other rows"
grep -q -- "--only w3a16g512" "$CALLS" || fail "--only is not passed on"
OQ_PART_SECONDS=5 gpu 0 tests e2e
[ "$(called test-gpu)/$(called oq-bench)" = 0/0 ] || fail "rows were begun"
says "no time left"
began=$SECONDS
TESTS=hang OQ_TOTAL_SECONDS=14 gpu 1 tests kernels e2e
[ $((SECONDS - began)) -le 30 ] || fail "took $((SECONDS - began)) s"
row "the emulator's conformance" "not done after"
says "no time left for kernels"
echo "passed in $SECONDS s"
