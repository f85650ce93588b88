#!/usr/bin/env bash
# Includes point downwards only: a folder under src/ includes folders of lower layers, never a
# sibling of its own layer; cli/ sees the public header and its own files.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A layer=(
    [base]=1 [format]=2 [kernel]=3 [op]=4 [io]=5 [token]=5 [model]=6 [method]=7
    [calib]=8 [run]=8 [eval]=9 [export]=9 [api]=10
)
bad=0 n=0

complain() {
    echo "$1"
    bad=$((bad + 1))
}

while IFS=: read -r file line include; do
    n=$((n + 1))
    from=${file#src/}
    from=${from%%/*}
    to=${include#*\"}
    to=${to%%\"*}
    [[ -v layer[$from] ]] || { complain "$file: folder $from has no layer"; continue; }
    [[ $to == nibble.h ]] && continue
    [[ $to == */* ]] || { complain "$file:$line: \"$to\" is not written from src/"; continue; }
    to=${to%%/*}
    [[ $to == "$from" ]] && continue
    [[ -v layer[$to] ]] || { complain "$file:$line: folder $to has no layer"; continue; }
    if ((layer[$to] >= layer[$from])); then
        complain "$file:$line: $from (${layer[$from]}) includes $to (${layer[$to]})"
    fi
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' src --include='*.[ch]' --include='*.cu')

while IFS=: read -r file line include; do
    n=$((n + 1))
    to=${include#*\"}
    to=${to%%\"*}
    [[ $to == nibble.h || -e cli/$to ]] || complain "$file:$line: cli includes \"$to\""
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' cli --include='*.[ch]' --include='*.cu')

echo "layers: $n includes, $bad wrong"
((bad == 0 && n > 0))
