# Configure and build with CMake presets, and where the results lie.

find_nvcc() {
  if command -v nvcc >/dev/null; then
    command -v nvcc
  elif [[ -x /usr/local/cuda/bin/nvcc ]]; then
    echo /usr/local/cuda/bin/nvcc
  else
    return 1
  fi
}

# The preset for this machine, with one line that says why.
default_preset() {
  local nvcc
  if nvcc=$(find_nvcc); then
    say "nvcc found ($nvcc): CPU and CUDA kernels (preset cuda)"
    echo cuda
  else
    say "nvcc not found: CPU kernels only (preset cpu)"
    echo cpu
  fi
}

check_preset() {
  case $1 in
    cpu | debug | asan | tsan) ;;
    cuda) find_nvcc >/dev/null || fail 2 "preset cuda needs nvcc, on PATH or in /usr/local/cuda/bin" \
      "install the CUDA toolkit 13, or build without it: ./dev build cpu" ;;
    *) fail 2 "unknown preset '$1'" "one of: cpu cuda debug asan tsan" ;;
  esac
}

# A C++ file on libtorch takes up to 2 GB to compile.
build_jobs() {
  local cores memory_kb jobs
  cores=$(nproc)
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  jobs=$((memory_kb / 2000000))
  ((jobs >= 1)) || jobs=1
  echo $((jobs < cores ? jobs : cores))
}

configure() {  # configure PRESET ARG...
  local preset=$1
  shift
  cd "$root" && "$venv/bin/cmake" --preset "$preset" "$@"
}

configure_args() {  # configure_args PRESET: into the caller's array `args`
  local preset=$1 nvcc torch
  torch=$(torch_dir)
  args=("-DCMAKE_MAKE_PROGRAM=$venv/bin/ninja" "-DPython3_EXECUTABLE=$venv/bin/python"
    "-DDROPLESS_TORCH_DIR=$torch" -DDROPLESS_BENCHMARKS=ON)
  command -v ccache >/dev/null && args+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
  # A cross compiler does not look for it among the programs of this machine.
  [[ $preset == aarch64 ]] || ! command -v mold >/dev/null || args+=(-DCMAKE_LINKER_TYPE=MOLD)
  if [[ $preset == cuda ]]; then
    nvcc=$(find_nvcc)
    args+=("-DCMAKE_CUDA_COMPILER=$nvcc")
  fi
}

ensure_configured() {
  local preset=$1 stamp=$root/build/$1/.dev-configured args
  configure_args "$preset"
  [[ ! -f $root/build/$preset/build.ninja || ! -f $stamp || $(<"$stamp") != "${args[*]}" ]] || return 0
  stage "configure" "after changing compilers or tools: ./dev clean, then again" \
    configure "$preset" "${args[@]}"
  printf '%s\n' "${args[*]}" >"$stamp"
}

run_ninja() { "$venv/bin/ninja" -C "$root/build/$1" -j "$(build_jobs)" "${@:2}"; }

# build_targets PRESET TARGET...: builds what is out of date; no target: everything.
build_targets() {
  local preset=$1
  ensure_configured "$preset"
  # The same sources in another folder (a clone, CI) hit the cache too.
  export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros
  # Ninja's dry run tells in a moment whether there is work; then the stage is left out. A changed
  # CMakeLists.txt shows as work too.
  if "$venv/bin/ninja" -C "$root/build/$preset" -n "${@:2}" 2>/dev/null | grep -q '^ninja: no work to do'; then
    return 0
  fi
  stage "build" "mend what the log names; ./dev clean starts over" run_ninja "$@"
}

command_of() { echo "$root/build/$1/bin/dropless"; }

# Packages, Python and the command itself.
build_command() {
  local preset=$1
  take_lock
  ensure_packages build
  ensure_python build
  build_targets "$preset" bin/dropless "${@:2}"
  release_lock
}

build_all() {  # build_all PRESET: with tests and benchmarks
  take_lock
  ensure_packages build
  ensure_python full
  build_targets "$1"
  release_lock
}

verb_build() {
  local preset
  [[ $# -le 1 ]] || fail 2 "build takes one preset, got: $*" "./dev build [cpu|cuda|debug|asan|tsan]"
  [[ $# == 0 ]] || check_preset "$1"
  preset=${1:-$(default_preset)}
  build_command "$preset"
  command_of "$preset"
}

verb_run() {
  local preset
  preset=$(default_preset 2>/dev/null)
  build_command "$preset"
  cd "$caller_dir"
  exec "$(command_of "$preset")" "$@"
}

verb_clean() {
  local what=("$root/build")
  case "${1:-}" in
    "") ;;
    --all) what+=("$venv" "$root/runs") ;;
    *) fail 2 "clean takes no argument but --all, got: $*" "./dev clean removes build/; --all also .venv/ and runs/" ;;
  esac
  rm -rf "${what[@]}"
  say "removed: ${what[*]#"$root"/}"
}
