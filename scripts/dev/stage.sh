# Stages: one line per stage with its time, the full output in build/logs/, and on failure the end of that
# log with what to do. Everything here writes to standard error.
log_dir=$root/build/logs
painter=

say() { printf '%s\n' "$*" >&2; }
fail() {  # fail EXIT_CODE MESSAGE [HINT]
  say "dev: $2"
  [[ -z ${3:-} ]] || say "HINT: $3"
  exit "$1"
}

seconds_since() {  # seconds_since EPOCHREALTIME -> "12.3"
  local now=${EPOCHREALTIME/[.,]/} start=${1/[.,]/}
  local tenths=$(((now - start) / 100000))
  printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# Shows the log's last line beside the elapsed time: redrawn in place on a terminal, every 30 s elsewhere.
# Ends by itself when the script is gone ($$ is the script's own process, in this subshell too).
paint_progress() {
  local name=$1 log=$2 start=$3 tick=0 line width
  while true; do
    # The sleep holds no file open: whoever reads our output must not wait for it.
    sleep 1 <&- >&- 2>&- 7>&- 8>&- 9>&- || return 0
    kill -0 $$ 2>/dev/null || return 0
    tick=$((tick + 1))
    [[ -t 2 ]] || ((tick % 30 == 0)) || continue
    line=$(tail -c 400 "$log" 2>/dev/null | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | tr -d '\000-\037') || true
    if [[ -t 2 ]]; then
      width=$(tput cols || echo 80)
      printf '\r\033[K%.*s' $((width - 1)) "$(printf '%-12s %6s s  %s' "$name" "$(seconds_since "$start")" "$line")" >&2
    else
      printf '%-12s %6s s  ... %.100s\n' "$name" "$(seconds_since "$start")" "$line" >&2
    fi
  done
}

start_painter() {  # start_painter NAME LOG START
  paint_progress "$@" &
  painter=$!
}

stop_painter() {
  [[ -n $painter ]] || return 0
  kill "$painter" 2>/dev/null || true
  wait "$painter" 2>/dev/null || true
  painter=
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

# Ctrl-C where nothing else is said of it; whatever ran has had the signal, too. A stage's standard error is its
# log: 7 is the one of before.
exec 7>&2
stop_by_hand() {
  exec 2>&7
  stop_painter
  say "dev: stopped"
  exit 130
}
trap stop_by_hand INT

# stage NAME HINT COMMAND...: runs COMMAND with its output in build/logs/NAME.log. A function given as
# COMMAND must chain its steps with &&, as errexit is off inside.
stage() {
  local name=$1 hint=$2 log start=$EPOCHREALTIME status=0
  shift 2
  log=$log_dir/${name// /-}.log
  mkdir -p "$log_dir"
  : >"$log"
  start_painter "$name" "$log" "$start"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  stop_painter
  if ((status == 0)); then
    printf '%-12s %6s s\n' "$name" "$(seconds_since "$start")" >&2
    return 0
  fi
  printf '%-12s %6s s  FAILED (exit code %d)\n' "$name" "$(seconds_since "$start")" "$status" >&2
  say "---- end of ${log#"$root"/}"
  tail -n 40 "$log" >&2
  say "----"
  ((status < 128)) || say "(ended by signal $((status - 128)))"
  fail 1 "stage '$name' failed; its whole log: ${log#"$root"/}" "$hint"
}

# One ./dev at a time changes .venv and build/.
take_lock() {
  mkdir -p "$root/build"
  exec 9>"$root/build/.dev-lock"
  flock -n 9 && return 0
  say "another ./dev is setting up or building here; waiting for it"
  flock 9
}
release_lock() { exec 9>&-; }
