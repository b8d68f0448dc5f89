# Tests, format and lint, benchmarks, GPU runs.

# Of ctest's output, all but the lines on starting, passed and skipped tests: failures with their output, and
# the end, with the number of skipped ones.
ctest_essentials() {
  awk '/^ *Start +[0-9]+: / || /^ *[0-9]+\/[0-9]+ Test +#[0-9]+: .* Passed / || /^Test project / || /^Internal ctest/ { next }
    /\*\*\*Skipped/ || /^The following tests did not run:/ { next }
    /^[ \t]+[0-9]+ - .*\(Skipped\)$/ { skipped++; next }
    { print }
    END { if (skipped) print skipped " tests skipped (no GPU here, or as the log says)" }'
}

# run_tests PRESET CTEST_ARG...: results to standard output, the whole output to a log.
run_tests() {
  local preset=$1 log=$log_dir/test-$1.log start=$EPOCHREALTIME status=0
  shift
  mkdir -p "$log_dir"
  : >"$log"
  start_painter test "$log" "$start"
  # Tests run side by side: OpenMP threads that spin while they wait would take each other's cores (a
  # training step was over ten times slower with two busy neighbours on two cores).
  (cd "$root/build/$preset" && OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} "$venv/bin/ctest" -j2 --output-on-failure --no-tests=error "$@") \
    >"$log" 2>&1 </dev/null || status=$?
  stop_painter
  printf '%-12s %6s s%s\n' test "$(seconds_since "$start")" "$( ((status)) && echo '  FAILED')" >&2
  ctest_essentials <"$log" || true
  ((status == 0)) || fail 1 "tests failed (preset $preset); the whole log: ${log#"$root"/}" \
    "one test alone: ./dev test -R NAME"
}

# The package reads what dropless writes. It brings 0.9 GB of others with it, so it has an environment of its own
# under build; torch and numpy are those of the tests' one.
compare_sets() {  # compare_sets PRESET
  local own=$root/build/streaming
  if [[ ! -x $own/bin/python ]]; then
    "$venv/bin/python" -m venv "$own" || return
    "$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])' \
      >"$("$own/bin/python" -c 'import site; print(site.getsitepackages()[0])')/tests.pth" || return
  fi
  "$own/bin/python" -m pip install -q mosaicml-streaming==0.13.0 pillow || return
  "$own/bin/python" "$root/scripts/compare_sets.py" "$root/build/$1/bin/dropless"
}

verb_test() {
  local preset nightly=
  if [[ ${1:-} == --nightly ]]; then
    nightly=1
    shift
  fi
  preset=$(default_preset)
  # Tests read this: random and fuzz cases run longer.
  if [[ -n $nightly ]]; then
    export DROPLESS_NIGHTLY=1
    take_lock
    ensure_packages build nightly
    release_lock
  fi
  build_all "$preset"
  run_tests "$preset" "$@"
  if [[ $# == 0 ]]; then
    check_text
    run_fuzzers "${nightly:+600}"
  fi
  [[ -n $nightly ]] || return 0
  stage "compare sets" "a set that dropless wrote is read otherwise by the package; or it cannot be installed" compare_sets "$preset"
  # libgomp is not instrumented and torch is not built with sanitizers: what lies in them is not ours.
  export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1
  export TSAN_OPTIONS=suppressions=$root/scripts/tsan.supp:ignore_noninstrumented_modules=1
  for preset in asan tsan; do
    say "preset $preset"
    build_all "$preset"
    run_tests "$preset" "$@"
  done
  # The library for the other architecture, by qemu: its loops for any processor, and the op tests.
  take_lock
  ensure_packages build nightly
  release_lock
  say "preset aarch64"
  build_all aarch64
  run_tests aarch64 "$@"
  verb_check --all
}

ensure_check_tools() {
  take_lock
  ensure_packages build check
  ensure_python build
  ensure_python check
  release_lock
}

tracked_sources() { git -C "$root" ls-files -- '*.h' '*.cc' '*.cu' '*.cuh'; }

# Sources that differ from the main branch, or from HEAD where there is none to compare with.
changed_sources() {
  local base
  base=$(git -C "$root" merge-base HEAD origin/main 2>/dev/null) || base=HEAD
  {
    git -C "$root" diff --name-only --diff-filter=d "$base" -- '*.cc'
    git -C "$root" ls-files --others --exclude-standard -- '*.cc'
  } | sort -u
}

check_format() { cd "$root" && tracked_sources | xargs -r "$venv/bin/clang-format" --dry-run -Werror; }
check_layers() { "$venv/bin/python" "$root/scripts/check_layers.py"; }
check_spelling() { cd "$root" && git ls-files -- '*.h' '*.cc' '*.cu' '*.cuh' '*.md' '*.py' '*.sh' dev | xargs -r "$venv/bin/codespell" -L "$(<scripts/codespell-ignore.txt)"; }
# With a command for each file, and without g++'s precompiled headers, which clang does not read.
ensure_lint_commands() {  # ensure_lint_commands PRESET
  local args commands=$root/build/lint/compile_commands.json
  configure_args "$1"
  configure "$1" -B "$root/build/lint" "${args[@]}" -DDROPLESS_BATCHES=OFF >/dev/null
  sed -E -i 's/ -Winvalid-pch -include [^ ]*cmake_pch\.hxx//' "$commands"
}
check_tidy() {
  (cd "$root" && xargs -r -n 1 -P "$(nproc)" clang-tidy --quiet -p build/lint)
}

# What of ./dev check takes seconds, so that whoever runs all tests sees it too. Needs the list of tracked files.
check_text() {
  if ! git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
    say "format and spelling skipped: they are checked of what git tracks here (apt-get install git)"
    return 0
  fi
  take_lock
  ensure_python check
  release_lock
  stage format "./dev format mends it" check_format
  stage spelling "words that are right: scripts/codespell-ignore.txt" check_spelling
}

verb_check() {
  local preset files=changed_sources failed=
  case "${1:-}" in
    "") ;;
    --all) files=tracked_cc ;;
    *) fail 2 "check takes no argument but --all, got: $*" "./dev check lints changed files; --all every file" ;;
  esac
  preset=$(default_preset)
  ensure_check_tools
  take_lock
  ensure_configured "$preset"
  release_lock
  # Each in a subshell: one call shows all that is wrong.
  (stage layers "who may include whom: scripts/check_layers.py" check_layers) || failed=1
  (stage format "./dev format mends it" check_format) || failed=1
  (stage spelling "words that are right: scripts/codespell-ignore.txt" check_spelling) || failed=1
  (stage lint "the checks: .clang-tidy" lint "$preset" "$files") || failed=1
  [[ -z $failed ]] || exit 1
}

tracked_cc() { git -C "$root" ls-files -- '*.cc'; }
# Only what this preset compiles: others have no compile command.
lint() {
  local preset=$1 files=$2 file
  ensure_lint_commands "$preset"
  for file in $("$files"); do
    grep -qF "\"$root/$file\"" "$root/build/lint/compile_commands.json" && printf '%s\n' "$file"
  done | check_tidy
}

verb_format() {
  ensure_check_tools
  cd "$root"
  tracked_sources | xargs -r "$venv/bin/clang-format" -i
}

run_benchmarks() {  # run_benchmarks PRESET PATTERN ARG...: each program in turn with the arguments
  local preset=$1 pattern=$2 program found=
  shift 2
  for program in "$root/build/$preset/bin"/$pattern; do
    [[ -x $program ]] || continue
    found=1
    say "== ${program##*/}"
    "$program" "$@" || fail 1 "${program##*/} failed"
  done
  [[ -n $found ]] || fail 2 "no benchmark is built (build/$preset/bin/$pattern)"
}

verb_bench() {
  local preset
  preset=$(default_preset)
  build_all "$preset"
  run_benchmarks "$preset" '*_benchmark' "$@"
}

# bench_moe_table NAME ARG...: `dropless bench moe ARG...` as the tables of docs/benchmarks.md; its JSON stays in build/gpu.
bench_moe_table() {
  local name=$1 json=$root/build/gpu/$1.json
  shift
  say "== dropless bench moe $*"
  mkdir -p "$root/build/gpu"
  "$(command_of cuda)" bench moe --json "$@" > "$json" || fail 1 "dropless bench moe $* failed"
  "$venv/bin/python" "$root/scripts/bench_rows.py" "$json"
  say "   its JSON: build/gpu/$name.json"
}

# What docs/kernels.md says was checked so: layers of a few sizes, routing, the router, few tokens.
sanitize_gpu() {
  command -v compute-sanitizer >/dev/null ||
    fail 2 "compute-sanitizer is not on the PATH" "it comes with the CUDA toolkit: add its bin folder"
  local tool test filter layers='*T130_*:*T96_*:*T1_*'
  for tool in memcheck racecheck; do
    for test in moe routing router small_batch row_tiles column_sums; do
      filter='*'
      [[ $test != moe ]] || filter=$layers
      [[ $test != moe || $tool != memcheck ]] || filter+=':*T1300*bfloat16:*Halves*:*AddsToFp32*'
      [[ $test != small_batch ]] || filter='*ManyExperts*'
      say "== $tool $test"
      compute-sanitizer --tool "$tool" --error-exitcode 1 "$root/build/cuda/bin/${test}_cuda_test" \
        --gtest_brief=1 --gtest_filter="$filter" || fail 1 "$tool found errors in ${test}_cuda_test"
    done
  done
}

verb_gpu() {
  local rounds=() rivals=() sanitize=
  while (($#)); do
    case $1 in
      --rounds | --rivals)
        (($# > 1)) || fail 2 "$1 needs a value"
        if [[ $1 == --rounds ]]; then rounds=(--rounds "$2"); else rivals=(--rivals "$2"); fi
        shift
        ;;
      --sanitize) sanitize=1 ;;
      *) fail 2 "./dev gpu has no option '$1'" "--rounds N, --rivals COMMAND, --sanitize" ;;
    esac
    shift
  done
  has_gpu || fail 2 "this machine has no NVIDIA GPU (no /dev/nvidia0)" \
    "run ./dev gpu on a machine with one; ./dev build cuda compiles the kernels anywhere with nvcc"
  check_preset cuda
  build_all cuda
  # Of the kernels, and of the programs of the trainer that have tests for a GPU: all that say GPU in their CMakeLists.txt.
  run_tests cuda -L '^gpu$'
  [[ -z $sanitize ]] || sanitize_gpu
  run_benchmarks cuda '*cuda_benchmark' "${rounds[@]}"
  say "== ladder"
  "$root/build/cuda/bin/ladder" || fail 1 "ladder failed"
  bench_moe_table layer --kernels "${rounds[@]}" "${rivals[@]}"
  bench_moe_table skew --routing uniform --routing zipf --shape 32768,2048,1024,64,8 \
    --shape 8192,7168,2048,64,8 "${rounds[@]}"
  bench_moe_table decode --decode "${rounds[@]}"
  bench_moe_table in_a_row --calls 5 "${rounds[@]}" "${rivals[@]}"
  DROPLESS_CUDA_PATH=portable bench_moe_table portable "${rounds[@]}"
}

verb_wheel() {
  fail 2 "the Python wheel comes with a later version; this one has the library and the command" \
    "./dev build builds the command"
}
