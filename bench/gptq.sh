#!/bin/bash
# GPTQ of one block of SmolLM2's shapes against a plain PyTorch one, on the same cores.
#
#   bench/gptq.sh [windows of 2048 tokens [threads]]      PYTHON=python3 BUILD=build
#
# The ratio of the clock, and that of the CPU time, which is what counts on a shared machine.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
make -s BUILD="$build" "$build/bench/bench_gptq"
ours=$("$build/bench/bench_gptq" "${1:-8}" "${2:-$(nproc)}")
torch=$("${PYTHON:-python3}" bench/gptq_torch.py "${1:-8}" "${2:-$(nproc)}")
printf '%s\n\n%s\n\n' "$ours" "$torch"
paste -d ' ' <(grep ^total <<<"$ours") <(grep ^total <<<"$torch") |
    awk '{ printf "PyTorch takes %.1f times the time, %.1f times the CPU time\n", $5 / $2, $6 / $3 }'
