#!/usr/bin/env bash
# Compiles every CUDA kernel for each architecture, reads what ptxas says of it, and fails where a
# kernel spills registers or has a stack frame: an array that some index keeps out of registers.
#
# usage: scripts/nvcc.sh [ARCHITECTURE...]     default: 80 90a; "all": those that this nvcc knows of
#                                              75 80 86 89 90a 100 120, and PTX
#
# PTX is what later devices get: that of compute_90, made ready for the newest that nvcc knows. Those have no bit
# planes, so that kernels on planes are compiled there, but never started: their spills do not count.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

architectures=("$@")
[ ${#architectures[@]} -gt 0 ] || architectures=(80 90a)
if [ "${architectures[0]}" = all ]; then
  known=$(nvcc --list-gpu-code)
  architectures=()
  for a in 75 80 86 89 90a 100 120; do
    grep -q "sm_${a%a}$" <<<"$known" && architectures+=("$a")
  done
  architectures+=(ptx)
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

newest=$(nvcc --list-gpu-code | sed 's/sm_//' | sort -n | tail -n 1)

compile() {  # compile ARCHITECTURE FILE: its ptxas report beside the object
  local out=$work/$1-${2//\//-} target=-arch=sm_$1
  [ "$1" = ptx ] && target=-gencode=arch=compute_90,code=sm_$newest
  nvcc -std=c++20 --expt-relaxed-constexpr -Werror=all-warnings "$target" -Xptxas -v -I"$root" \
    -cubin -o "$out.cubin" "$root/$2" >"$out.ptxas" 2>&1 || { cat "$out.ptxas" >&2; return 1; }
}
export -f compile
export work root newest

# Three lines for each kernel: its name, its stack and spills, its registers.
for a in "${architectures[@]}"; do
  start=$SECONDS
  git -C "$root" ls-files 'kernels/cuda/*.cu' | sed "s/^/$a /" |
    xargs -P "$(nproc)" -L 1 bash -c 'compile "$0" "$1"' || die "nvcc failed"
  cat "$work/$a"-*.ptxas | awk -v arch="$a" -v seconds=$((SECONDS - start)) '
    /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; ++kernels }
    /bytes stack frame/ { if (arch == "ptx" && kernel ~ /IntegerKernelE2E/) next  # planes
                          if ($1 > 0 || $5 > 0 || $9 > 0) { print name ": " kernel ": " $0; bad = 1 } }
    /Used [0-9]+ registers/ { for (i = 1; i < NF; ++i) if ($i == "Used" && $(i + 1) > most) most = $(i + 1) }
    BEGIN { name = arch == "ptx" ? "PTX" : "sm_" arch }
    END { printf "%s: %d kernels, at most %d registers, %s, %d s\n", name, kernels, most,
            bad ? "USES THE STACK" : "no stack, no spills", seconds
          exit bad || kernels == 0 }' || die "a kernel spills registers or has a stack frame: $a"
done
