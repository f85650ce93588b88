#!/bin/bash
# GPTQ beside a plain PyTorch one, on the same cores: one block of SmolLM2's shapes, or a whole run.
#
#   bench/gptq.sh [windows of 2048 tokens [threads]]      PYTHON=python3 BUILD=build
#   bench/gptq.sh --whole MODEL TEXT [windows [threads [blocks]]]
#
# The ratio of the clock, and that of the CPU time, which is what counts on a shared machine.
# --whole: all blocks of the command, from file to file; of PyTorch the first BLOCKS (2), without
# loading, for blocks are all alike: times of the whole model are extrapolated from those.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build} TIMEFORMAT='total %R %U %S'

in_torch() { "${PYTHON:-python3}" bench/gptq_torch.py "$@"; }

one_block() { # windows, threads
    local ours torch
    make -s BUILD="$build" "$build/bench/bench_gptq"
    ours=$("$build/bench/bench_gptq" "$1" "$2")
    torch=$(in_torch "$1" "$2")
    printf '%s\n\n%s\n\n' "$ours" "$torch"
    paste -d ' ' <(grep ^total <<<"$ours") <(grep ^total <<<"$torch") |
        awk '{ printf "PyTorch takes %.1f times the time, %.1f times the CPU time\n", $5 / $2, $6 / $3 }'
}

row() { # what, wall seconds, CPU seconds, blocks: a line of the table
    awk -v what="$1" -v wall="$2" -v cpu="$3" -v n="$4" -v all="$layers" 'BEGIN {
        printf "%-13s %2d blocks %8.1f s %8.1f s CPU", what, n, wall, cpu
        printf ", a block %7.2f s %7.2f s CPU", wall / n, cpu / n
        printf ", %d blocks %8.1f s %8.1f s CPU\n", all, wall / n * all, cpu / n * all
    }' | tee -a "$work/table"
}

command_row() { # type of products
    local spent wall
    spent=$({ time "$build/nibble" quantize "$model" -o "$work/$1" --weights int4:row \
        --method minmax,gptq --calib "$text" --samples "$windows" --seqlen 2048 \
        --threads "$threads" --compute "$1" >"$work/$1.log" 2>&1; } 2>&1 | grep ^total)
    wall=$(cut -d " " -f 2 <<<"$spent")
    row "nibble $1" "$wall" "$(awk "{ print \$3 + \$4 }" <<<"$spent")" "$layers"
    rm -r "${work:?}/$1"
}

torch_row() { # blocks
    local spent wall cpu
    in_torch "$windows" "$threads" "$work/plain" "$1" >"$work/torch.log"
    spent=$(grep ^total "$work/torch.log")
    read -r _ wall cpu <<<"$spent"
    cat "$work/torch.log"
    row "PyTorch f32" "$wall" "$cpu" "$1"
}

ratio() { # what: PyTorch's blocks by those of a row
    awk -v what="$1" '{ wall[$1 " " $2] = $12; cpu[$1 " " $2] = $14 } END {
        p = "PyTorch f32"
        printf "PyTorch takes %.2f times the time of %s, %.2f times the CPU time\n",
            wall[p] / wall[what], what, cpu[p] / cpu[what]
    }' "$work/table"
}

whole() { # model, text, windows, threads, blocks
    local blocks=$5
    model=$1 text=$2 windows=$3 threads=$4
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    make -s BUILD="$build" "$build/nibble"
    "$build/nibble" quantize "$model" -o "$work/plain" --weights f32 --threads "$threads" >/dev/null 2>&1
    layers=$(grep -oP '"num_hidden_layers": *\K\d+' "$work/plain/config.json")
    command_row f32
    torch_row "$blocks"
    ratio "nibble f32"
    command_row bf16
    ratio "nibble bf16"
}

if [[ ${1:-} == --whole ]]; then
    (($# >= 3)) || { sed -n '/^#  /s/^# *//p' "$0" >&2 && exit 2; }
    whole "$2" "$3" "${4:-128}" "${5:-$(nproc)}" "${6:-2}"
else
    one_block "${1:-8}" "${2:-$(nproc)}"
fi
