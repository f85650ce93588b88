#!/usr/bin/env bash
# Installs what is missing on Debian 12 or 13 (and relatives): says what it will do, does nothing
# when all is there.
#
#   scripts/deps.sh [build] [demo] [check]      default: all three
set -euo pipefail

declare -A sets=(
    [build]="make gcc libc6-dev libdnnl-dev libopenblas-dev liblapacke-dev libjansson-dev libyaml-dev
        libpcre2-dev libutf8proc-dev libxxhash-dev"
    [demo]="python3 python3-pip ca-certificates"
    [check]="libcmocka-dev python3 python3-numpy clang libomp-dev clang-format universal-ctags mandoc"
)

is_installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# clang's sanitizer and fuzzer runtimes carry its version in their name.
runtime_of_clang() {
    apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/libclang-rt-\1-dev/p'
}

missing_of() {
    for p in "$@"; do is_installed "$p" || echo "$p"; done
}

if ! command -v dpkg-query >/dev/null; then
    echo "deps: no dpkg here; needed are the libraries of docs/tour.md, by your system's names" >&2
    exit 0
fi

wanted=()
for set in "${@:-build demo check}"; do
    for name in $set; do
        [[ -v sets[$name] ]] || { echo "deps: unknown set $name: build, demo, check" >&2; exit 2; }
        read -r -d '' -a packages <<<"${sets[$name]}" || true
        wanted+=("${packages[@]}")
        if [[ $name == check ]] && runtime=$(runtime_of_clang) && [[ -n $runtime ]]; then
            wanted+=("$runtime")
        fi
    done
done

mapfile -t missing < <(missing_of "${wanted[@]}" | sort -u)
((${#missing[@]} == 0)) && exit 0

sudo=()
if ((EUID != 0)); then
    command -v sudo >/dev/null ||
        { echo "deps: as root: apt-get install ${missing[*]}" >&2; exit 4; }
    sudo=(sudo env DEBIAN_FRONTEND=noninteractive) # sudo drops the variable set here
fi
export DEBIAN_FRONTEND=noninteractive
echo "deps: missing: ${missing[*]}"
echo "deps: apt-get update"
"${sudo[@]}" apt-get -o Acquire::Retries=3 update -qq
if [[ " ${wanted[*]} " == *" clang "* ]]; then # its version is known only now on a bare system
    mapfile -t missing < <(missing_of "${missing[@]}" "$(runtime_of_clang)" | sort -u)
fi
echo "deps: apt-get install ${missing[*]}"
"${sudo[@]}" apt-get -o Acquire::Retries=3 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "deps: done"
