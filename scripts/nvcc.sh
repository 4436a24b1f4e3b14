#!/usr/bin/env bash
# Compiles every CUDA kernel for each architecture, reads what ptxas says of it, and fails where a
# kernel spills registers.
#
# usage: scripts/nvcc.sh [ARCHITECTURE...]     default: 80 90a; "all": those that this nvcc knows of
#                                              80 86 89 90a 100 120
set -euo pipefail
. "$(dirname "$0")/lib.sh"

architectures=("$@")
[ ${#architectures[@]} -gt 0 ] || architectures=(80 90a)
if [ "${architectures[0]}" = all ]; then
  known=$(nvcc --list-gpu-code)
  architectures=()
  for a in 80 86 89 90a 100 120; do
    grep -q "sm_${a%a}$" <<<"$known" && architectures+=("$a")
  done
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() {  # compile ARCHITECTURE FILE: its ptxas report beside the object
  local out=${2#kernels/cuda/}
  out=${out%.cu}
  out=$work/$1-${out//\//-}  # two folders may have files of one name
  nvcc -std=c++20 --expt-relaxed-constexpr -Werror=all-warnings -arch="sm_$1" -Xptxas -v -I"$root" \
    -cubin -o "$out.cubin" "$root/$2" >"$out.ptxas" 2>&1 || { cat "$out.ptxas" >&2; return 1; }
}
export -f compile
export work root

for a in "${architectures[@]}"; do
  git -C "$root" ls-files 'kernels/cuda/*.cu' | sed "s/^/$a /"
done | xargs -P "$(nproc)" -L 1 bash -c 'compile "$0" "$1"' || die "nvcc failed"

# Three lines for each kernel: its name, its stack and spills, its registers.
for a in "${architectures[@]}"; do
  cat "$work/$a"-*.ptxas | awk -v arch="$a" '
    /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; ++kernels }
    /bytes stack frame/ { if ($5 > 0 || $9 > 0) { print "sm_" arch ": " kernel " spills: " $0; bad = 1 } }
    /Used [0-9]+ registers/ { for (i = 1; i < NF; ++i) if ($i == "Used" && $(i + 1) > most) most = $(i + 1) }
    END { printf "sm_%s: %d kernels, at most %d registers, %s\n", arch, kernels, most, bad ? "SPILLS" : "no spills"
          exit bad || kernels == 0 }' || die "a kernel spills registers on sm_$a"
done
