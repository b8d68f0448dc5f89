# The fuzz targets of tests/fuzz with libFuzzer, where clang brings it; what they find is kept in
# build/fuzz/found-*, and belongs into tests/fuzz/corpus once it is mended.

# Debian: clang and libclang-rt-dev, 56 MB to fetch and 0.3 GB on the disk. Who may not install them, or has
# no network, tests without.
ensure_libfuzzer() {
  has_libfuzzer && return
  ((EUID == 0)) || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; } || return 0
  take_lock
  (ensure_packages fuzz) || true
  release_lock
}

has_libfuzzer() {
  command -v clang++ >/dev/null || return 1
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    clang++ -x c++ -fsanitize=address,fuzzer -o /dev/null - 2>/dev/null
}

run_fuzzers() {  # run_fuzzers [SECONDS]: each target for so long, 10 s if not given
  local target seconds=${1:-10}
  ensure_libfuzzer
  if ! has_libfuzzer; then
    say "fuzzing skipped: no clang++ with libFuzzer (apt-get install clang libclang-rt-dev); the corpus was replayed"
    return 0
  fi
  take_lock
  build_targets fuzz
  release_lock
  for target in index shard tokenizer_json tiktoken safetensors; do
    stage "fuzz $target" "build/fuzz/bin/${target}_fuzz FILE repeats the crash; mended, the file goes to tests/fuzz/corpus/$target" \
      fuzz_one "$target" "$seconds"
  done
}

# The corpus grows in build/fuzz; the one in the tree, and the tests' sets and tokenizers, are only read.
fuzz_one() {
  local target=$1 seconds=$2 work=$root/build/fuzz/corpus/$1
  mkdir -p "$work" &&
    "$root/build/fuzz/bin/${target}_fuzz" "$work" "$root/tests/fuzz/corpus/$target" -max_total_time="$seconds" \
      -timeout=20 -max_len=16384 -artifact_prefix="$root/build/fuzz/found-$target-" -print_final_stats=1
}
