#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test. With --full, the long forms too.
#
# usage: scripts/test.sh [--full] [STAGE...]     stages: style release nvcc asan simt tsan scalar
#                                                        neon fuzz tidy
#
# OQ_TEST_DATA names a folder of test data (texts, vocabularies, golden layers); tests that want
# it skip, and say so, where it is not set. The real model is fetched once into the cache.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

full=
[ "${1:-}" = --full ] && { full=1; shift; }
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(style release nvcc asan simt scalar neon tsan fuzz tidy)
fuzz_seconds=20
simt='^(emulator|cuda|cuda\.(models|reverse|random))$'  # the tests of stage simt, and in release
without_data=(-LE data)  # what takes minutes under a sanitizer or without SIMD
if [ -n "$full" ]; then
  fuzz_seconds=300
  without_data=()
fi

run_ctest() {  # run_ctest PRESET [ctest arguments]
  local preset=$1
  shift
  (cd "$root" && ctest --preset "$preset" --no-tests=error "$@")
}

sources() { git -C "$root" ls-files '*.h' '*.cpp' '*.cu' '*.cuh'; }

stage_style() {
  (cd "$root" && sources | xargs clang-format --dry-run -Werror)
}

stage_release() { build release && run_ctest release; }

stage_asan() {
  export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
  build asan && run_ctest asan -j "$(nproc)" "${without_data[@]}" -E "$simt"
}

# The CUDA kernels on the emulator, in every thread order, under AddressSanitizer.
stage_simt() {
  export UBSAN_OPTIONS=print_stacktrace=1
  build asan test-emulator test-cuda && run_ctest asan -j "$(nproc)" -R "$simt"
}

# Every CUDA kernel for two architectures (--full: all that nvcc knows), refused where one spills.
stage_nvcc() {
  if ! command -v nvcc >/dev/null; then
    say "SKIPPED: no nvcc; the CUDA kernels are compiled for the emulator alone"
    return
  fi
  "$root/scripts/nvcc.sh" ${full:+all}
}

stage_tsan() {
  build tsan test-kernels test-runtime
  run_ctest tsan -R '^(kernels|runtime)$'
}

stage_scalar() { build scalar && run_ctest scalar "${without_data[@]}" -E "$simt"; }

# The kernels of 64-bit Arm, on the CPUs that qemu plays: one with dotprod and one without.
stage_neon() {
  if ! (install "${arm_packages[@]}"); then
    say "SKIPPED: ${arm_packages[*]} cannot be had; NEON kernels are neither compiled nor tested"
    return
  fi
  build neon test-kernels
  QEMU_CPU=max OQ_TEST_KERNELS="scalar neon neon_dotprod" run_ctest neon -R '^kernels$'
  QEMU_CPU=cortex-a53 OQ_TEST_KERNELS="scalar neon" run_ctest neon -R '^kernels$'
}

stage_fuzz() {
  build asan
  local target name work
  for target in "$root"/build/asan/bin/fuzz-*; do
    name=$(basename "$target")
    work=$(mktemp -d)
    say "== $name, $fuzz_seconds s"
    (cd "$work" && "$target" -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 \
      -print_final_stats=1 "$work" "$root/tests/fuzz/corpus/${name#fuzz-}" >"$work.log" 2>&1) || {
      tail -n 40 "$work.log" >&2
      die "$name found something"
    }
    grep -E 'stat::number_of_executed_units' "$work.log" || true
    rm -rf "$work" "$work.log"
  done
}

# in_database FOLDER: of the paths read, those that the build there compiles; not CUDA's own.
in_database() {
  local path
  while read -r path; do
    if grep -qF "\"$root/$path\"" "$1/compile_commands.json"; then echo "$path"; fi
  done
}

# clang-tidy on what the last day changed (the first dozen files), or on everything with --full.
stage_tidy() {
  local files base
  # The asan preset's flags: clang-tidy knows clang's, not g++'s.
  [ -f "$root/build/asan/compile_commands.json" ] || (cd "$root" && cmake --preset asan >/dev/null)
  if [ -n "$full" ]; then
    files=$(sources | grep '\.cpp$' | in_database "$root/build/asan")
  else
    base=$(git -C "$root" rev-list --max-count=1 --before='1 day ago' HEAD)
    files=$(git -C "$root" diff --name-only --diff-filter=d "${base:-4b825dc642cb6eb9a060e54bf8d69288fbee4904}" -- '*.cpp' |
      { grep -vE '^(tests|bench)/' || true; } | in_database "$root/build/asan" | head -n 12 || true)
  fi
  [ -z "$files" ] && return
  (cd "$root" && xargs -n 1 -P "$(nproc)" clang-tidy -p build/asan --quiet 2>/dev/null <<<"$files")  # stderr counts warnings
}

main() {
  install "${build_packages[@]}" "${test_packages[@]}"
  if fetch_model; then
    export OQ_SMOLLM2_GGUF=$model_gguf
  else
    say "SKIPPED: the real model cannot be had; tests that need it are skipped, no quality figure"
  fi
  [ -n "${OQ_TEST_DATA:-}" ] || say "SKIPPED: OQ_TEST_DATA is not set; tests on outside data are skipped"
  local stage start
  for stage in "${stages[@]}"; do
    say "=== $stage"
    start=$SECONDS
    "stage_$stage"
    say "=== $stage: $((SECONDS - start)) s"
  done
  say "all stages passed"
}
main
