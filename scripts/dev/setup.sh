# Set-up: Debian packages and the virtual environment. Each part leaves a stamp of what it was made from,
# so that a call with nothing to do neither starts a package manager nor touches the network.
venv=$root/.venv

packages_of() {  # packages_of GROUP...: their packages in scripts/apt-packages.txt
  local group package
  while read -r group package _; do
    [[ " $* " == *" $group "* ]] && printf '%s\n' "$package"
  done <"$root/scripts/apt-packages.txt"
  return 0
}

missing_packages() {
  local installed package
  installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null) || true
  for package in "$@"; do
    [[ $'\n'$installed$'\n' == *$'\n'"installed $package"$'\n'* ]] || printf '%s\n' "$package"
  done
}

apt_install() {  # apt_install PREFIX_COMMAND -- PACKAGE...
  local prefix=()
  while [[ $1 != -- ]]; do prefix+=("$1") && shift; done
  shift
  # A broken third-party source must not stop the install: apt-get install decides.
  "${prefix[@]}" apt-get -o DPkg::Lock::Timeout=300 update ||
    echo "apt-get update reported errors; trying to install all the same"
  "${prefix[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
    install -y --no-install-recommends "$@"
}

ensure_packages() {  # ensure_packages GROUP...
  [[ $(uname -m) == x86_64 ]] || fail 2 "this machine is $(uname -m); dropless builds on x86-64 only"
  [[ -z ${DROPLESS_NO_APT:-} ]] || return 0
  local wanted missing
  mapfile -t wanted < <(packages_of "$@")
  command -v dpkg-query >/dev/null || fail 2 "this is not a Debian-like system: no dpkg-query" \
    "install what corresponds to: ${wanted[*]}; then set DROPLESS_NO_APT=1"
  mapfile -t missing < <(missing_packages "${wanted[@]}")
  ((${#missing[@]})) || return 0
  local hint="apt-get install -y ${missing[*]}"
  if ((EUID == 0)); then
    stage packages "by hand: $hint" apt_install -- "${missing[@]}"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    stage packages "by hand: sudo $hint" apt_install sudo -n -- "${missing[@]}"
  else
    fail 2 "these Debian packages are missing, and installing them needs root: ${missing[*]}" "sudo $hint"
  fi
}

has_gpu() { [[ -e /dev/nvidia0 ]] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; }

# A Python that can make virtual environments; Debian's own first, as python3-venv belongs to it.
find_python() {
  local candidate
  for candidate in ${DROPLESS_PYTHON:-/usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.10}; do
    command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
    printf '%s' "$candidate"
    return 0
  done
  return 1
}

make_venv() {
  local python
  [[ ! -x $venv/bin/python ]] || "$venv/bin/python" -c 'import pip' 2>/dev/null || rm -rf "$venv"
  [[ ! -x $venv/bin/python ]] || return 0
  python=$(find_python) || { echo "no Python >= 3.10 with venv and ensurepip found" && return 1; }
  echo "making $venv with $python"
  "$python" -m venv "$venv"
}

# pip_install STAMP FILE [PIP OPTION...]: installs a requirements file unless its stamp is up to date.
pip_install() {
  local stamp=$venv/.stamp-$1 file=$2 want
  want=$(cat "$root/scripts/requirements.txt" "$file" | cksum)
  shift 2
  [[ ! -x $venv/bin/python || ! -f $stamp || $(<"$stamp") != "$want" ]] || return 0
  stage "python" "see its last lines: no usable Python (DROPLESS_PYTHON names one), or no package index? ./dev clean --all starts over" \
    pip_install_now "$file" "$@"
  printf '%s\n' "$want" >"$stamp"
}

pip_install_now() {
  local file=$1
  shift
  make_venv && "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
    --progress-bar off "$@" -r "$file"
}

# ensure_python build|full|check. A machine with a GPU always gets every CUDA library.
ensure_python() {
  local part=$1
  [[ $part != build ]] || ! has_gpu || part=full
  case $part in
    full) pip_install full "$root/scripts/requirements-full.txt" ;;
    check) pip_install check "$root/scripts/requirements-check.txt" --no-deps ;;
    build)
      # The full set holds the small one.
      [[ ! -f $venv/.stamp-full ]] || { pip_install full "$root/scripts/requirements-full.txt" && return 0; }
      pip_install build "$root/scripts/requirements.txt" --no-deps
      ;;
  esac
}

torch_dir() {  # the folder of the torch wheel; no Python started
  local dir
  for dir in "$venv"/lib/python3.*/site-packages/torch; do
    [[ -d $dir ]] && printf '%s' "$dir" && return 0
  done
  fail 1 "torch is not in .venv" "./dev clean --all, then try again"
}
