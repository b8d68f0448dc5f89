# The demo: Python's standard library as corpus, a small dropless mixture-of-experts model trained on it,
# evaluated, sampled, and set beside n-grams of the same files.

demo_corpus() {  # demo_corpus DROPLESS SEQUENCE_LENGTH: runs/demo-data/{train,val} and the two lists of files
  local dropless=$1 length=$2 data=$root/runs/demo-data part files
  rm -rf "$data"
  "$venv/bin/python" "$root/scripts/demo_corpus.py" "$data" || return 1
  for part in train:train val:held_out; do
    mapfile -t files <"$data/${part#*:}.txt"
    "$dropless" data text "${files[@]}" --out "$data/${part%:*}" --tokenizer bytes --concat-tokens "$length" ||
      return 1
  done
}

demo_ngram() {
  local data=$root/runs/demo-data
  "$1" "$data/train.txt" "$data/held_out.txt" >"$data/ngram.json"
}

# The sequence length stands in the config alone.
config_value() { sed -n "s/^$1: *\([0-9]*\).*/\1/p" "$root/$2"; }

# Training in the demo's run folder. Not a stage: the command shows its own progress. It saves at Ctrl-C, which
# the terminal sends to it as well, and at SIGTERM, and ends well; the demo is over then, too.
demo_train() {  # demo_train DROPLESS CONFIG OVERRIDE...; sets demo_stopped
  local training status=0
  demo_stopped=
  "$@" >&2 &
  training=$!
  trap 'demo_stopped=1' INT
  trap 'demo_stopped=1; kill -TERM "$training" 2>/dev/null' TERM
  # A signal that is trapped ends `wait`, not the training.
  while status=0; wait "$training" || status=$?; kill -0 "$training" 2>/dev/null; do :; done
  trap stop_by_hand INT
  trap - TERM
  return "$status"
}

verb_demo() {
  local name=demo preset dropless config length steps most pace reason demo_stopped start=$EPOCHREALTIME
  case "$*" in
    "") most=6400 ;;
    --tiny) name=demo-tiny most=0 ;;
    *) fail 2 "demo takes no argument but --tiny, got: $*" "./dev demo, 5 to 10 minutes; ./dev demo --tiny, under 40 s" ;;
  esac
  config=configs/$name.yaml
  preset=$(default_preset)
  build_command "$preset" bin/dropless_ngram
  dropless=$(command_of "$preset")
  exec 8>"$root/build/.demo-lock"
  flock -n 8 || fail 1 "another ./dev demo is running here" "both would write runs/demo-data"
  start=$EPOCHREALTIME
  length=$(config_value max_seq_len "$config")
  steps=$(config_value max_duration "$config")
  stage corpus "see the log" demo_corpus "$dropless" "$length"
  stage n-gram "see the log" demo_ngram "${dropless}_ngram"
  stage pace "see the log" demo_pace "$dropless" "$config" "$steps" "$most"
  { read -ra pace && read -r reason; } <runs/demo-data/pace
  say "$reason"
  rm -rf "runs/$name"
  # The evaluation in the middle is left out: it takes as long as 2 % of the steps.
  pace+=(eval_interval=1dur)
  say "training: dropless train $config ${pace[*]}"
  demo_train "$dropless" train "$config" "${pace[@]}" || fail 1 "training failed" "the message above; the data: runs/demo-data"
  # A signal to the command alone ends it well too, before its last step.
  [[ ${pace[*]} =~ max_duration=([0-9]+) ]] && steps=${BASH_REMATCH[1]}
  [[ $(readlink "runs/$name/latest") == "step-$steps" ]] || demo_stopped=1
  [[ -z $demo_stopped ]] || fail 130 "demo stopped; what it learnt is saved in runs/$name" \
    "to train it to its end, without the demo's summary: ./dev run train $config ${pace[*]} autoresume=true"
  stage evaluate "the data: runs/demo-data" demo_evaluate "$dropless" "$name" "$length"
  stage sample "dropless generate --help" demo_sample "$dropless" "$name"
  "$venv/bin/python" scripts/demo_summary.py "runs/$name" runs/demo-data/ngram.json
  say "demo took $(seconds_since "$start") s after set-up"
}

# The faster precision and the steps of five minutes, as overrides, and a sentence about them.
demo_pace() {  # demo_pace DROPLESS CONFIG FEWEST_STEPS MOST_STEPS
  "$venv/bin/python" "$root/scripts/demo_pace.py" "$@" >"$root/runs/demo-data/pace"
}

# Training evaluates on rows whose first bytes nothing predicts; here every byte counts, as for the n-gram.
demo_evaluate() {  # demo_evaluate DROPLESS RUN SEQUENCE_LENGTH
  local dropless=$1 run=$2 length=$3 data=$root/runs/demo-data
  "$venv/bin/python" "$root/scripts/demo_rows.py" "$data/held_out.txt" "$length" |
    "$dropless" data write "$data/held_out" --columns '{"tokens":"ndarray:int32"}' &&
    "$dropless" eval "runs/$run" --data "$data/held_out" --json >"runs/$run/held_out.json"
}

demo_sample() {
  "$1" generate "runs/$2" --prompt "def read_" --max-new-tokens 160 --temperature 0.7 --seed 1 >"runs/$2/sample.txt"
}
