#!/usr/bin/env bash
# One Markdown table of recipes on one model: what each costs in bits, quality, time and memory.
#
#   bench/tables.sh MODEL --calib TEXT --test TEXT [options] [RECIPE...]
#
#   RECIPE            a shipped recipe, FILE.yaml, or "LABEL=OPTIONS of nibble quantize", such as
#                     "RTN 4 bits=--weights int4:g128 --method nearest"
#   --rows FILE       RECIPEs, one per line; # begins a comment (bench/rows)
#   --samples N       calibration windows (the recipe's)    --seqlen N    their tokens (the recipe's)
#   --epochs N        over them, where a step learns (the recipe's)
#   --windows N       test windows (all)                    --ctx N       their tokens (2048)
#   --threads N       (all)                                 --device NAME   (cpu)
#   --compute TYPE    of products, in calibration and test: fp32, bf16 (fp32)
#   --simulate, --full-chunks    as of nibble compare
#   --batch N         models that go through the text beside one run of the source (8)
#   --work DIR        finished rows, kept: an interrupted table goes on; empty it for another
#                     version of the command (bench-tables)
#   --keep            the quantized models stay in DIR, too
#
# NIBBLE: the command (build/nibble). Text goes to standard output, progress to standard error.
set -euo pipefail
nibble=${NIBBLE:-$(dirname "$0")/../build/nibble}
model= calib= text= work=bench-tables keep= batch=8
quantize=() evaluate=() run=() recipes=()

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

while (($#)); do
    case $1 in
    --calib | --test | --samples | --seqlen | --epochs | --windows | --ctx | --threads | --device | \
        --compute | --batch | --work)
        (($# > 1)) || usage
        case $1 in
        --calib) calib=$2 quantize+=(--calib "$2") ;;
        --test) text=$2 ;;
        --samples | --seqlen | --epochs) quantize+=("$1" "$2") ;;
        --windows | --ctx) evaluate+=("$1" "$2") ;;
        --threads | --device | --compute) run+=("$1" "$2") ;;
        --batch) batch=$2 ;;
        --work) work=$2 ;;
        esac
        shift ;;
    --rows)
        (($# > 1)) || usage
        mapfile -t -O ${#recipes[@]} recipes < <(grep -v '^#' "$2")
        shift ;;
    --simulate | --full-chunks) evaluate+=("$1") ;;
    --keep) keep=1 ;;
    --*) usage ;;
    *) [[ $model ]] && recipes+=("$1") || model=$1 ;;
    esac
    shift
done
[[ $model && $calib && $text && ${#recipes[@]} -gt 0 ]] || usage
mkdir -p "$work"

# Number $1 of the N-th object (first) of JSON on standard input.
number() { grep -oP "\"$1\": \K[-+0-9.eE]+" | sed -n "${2:-1}p" | grep . || echo nan; }

# What a row depends on: model, texts, options, and the recipe's own words.
row_key() { # options of the recipe
    local words=("$@") file
    for file in "${words[@]}"; do
        for file in "$file" "$(dirname "$nibble")/../recipes/$file.yaml"; do
            [[ -f $file ]] && words+=("$(<"$file")")
        done
    done
    printf '%s\n' "$(realpath "$model")" "${quantize[@]}" "${evaluate[@]}" "${run[@]}" \
        "$(stat -Lc '%s %Y' "$model" "$calib" "$text")" "${words[@]}" | sha256sum | cut -c 1-16
}

make_model() { # label, model directory, options of the recipe
    local label=$1 out=$2
    shift 2
    [[ -s $out.made ]] && return
    local quantize_it=("$nibble" quantize "$model" -o "$out" --resume --json "${run[@]}" "$@") status=0
    echo "$label: quantize" >&2
    # Without the text first: where no step looks at it, a run through it would only be reported.
    "${quantize_it[@]}" >"$out.new" 2>"$out.log" || status=$?
    ((status == 0)) || "${quantize_it[@]}" "${quantize[@]}" >"$out.new" || return
    mv "$out.new" "$out.made"
}

print_row() { # label, model directory, its place in $compared
    local label=$1 made more= number=$3
    made=$(<"$2.made")
    (($(number blocks_resumed <<<"$made") == 0)) || more='> ' # the time of a part
    printf '| %s | %.3f | %.3f ± %.3f | %.4f ± %.4f | %.2f %% | %s%.0f | %.0f |\n' "$label" \
        "$(number bits_per_weight <<<"$made")" "$(number perplexity "$number" <<<"$compared")" \
        "$(number perplexity_error "$number" <<<"$compared")" \
        "$(number kl_mean "$number" <<<"$compared")" \
        "$(number kl_mean_error "$number" <<<"$compared")" \
        "$(awk -v x="$(number top1_agreement "$number" <<<"$compared")" 'BEGIN { print 100 * x }')" \
        "$more" "$(number seconds <<<"$made")" \
        "$(awk -v x="$(number peak_rss <<<"$made")" 'BEGIN { print x / 1048576 }')"
}

measure() { # "LABEL<tab>DIRECTORY"...: all beside one run of the source
    local pair i=0
    echo "compare: ${*%%$'\t'*}" >&2
    compared=$("$nibble" compare "${@##*$'\t'}" --against "$model" --text "$text" --json \
        "${evaluate[@]}" "${run[@]}") || return
    for pair in "$@"; do
        print_row "${pair%%$'\t'*}" "${pair##*$'\t'}" $((++i)) >"${pair##*$'\t'}.new"
        mv "${pair##*$'\t'}.new" "${pair##*$'\t'}.row"
        [[ $keep ]] || rm -rf "${pair##*$'\t'}" "${pair##*$'\t'}.made" "${pair##*$'\t'}.log"
    done
    printf '%.3f ± %.3f\n' "$(number perplexity_reference <<<"$compared")" \
        "$(number perplexity_reference_error <<<"$compared")" >"$source"
}

failed=0 waiting=() rows=() source=$work/$(row_key).source
for recipe in "${recipes[@]}"; do
    label=$recipe options=(--recipe "$recipe")
    if [[ $recipe == *=--* ]]; then
        label=${recipe%%=--*}
        read -ra options <<<"--${recipe#*=--}"
    fi
    out=$work/$(row_key "${options[@]}")
    rows+=("$out.row")
    [[ ! -s $out.row ]] || continue
    if ! make_model "$label" "$out" "${options[@]}"; then
        echo "$label: failed, no row" >&2
        failed=1
        continue
    fi
    waiting+=("$label"$'\t'"$out")
    ((${#waiting[@]} < batch)) && continue
    measure "${waiting[@]}" || failed=1
    waiting=()
done
((${#waiting[@]} == 0)) || measure "${waiting[@]}" || failed=1

printf '| recipe | bits/weight | perplexity | KL, mean | top-1 | seconds | MiB |\n'
printf '|---|--:|--:|--:|--:|--:|--:|\n'
for row in "${rows[@]}"; do
    [[ ! -s $row ]] || cat "$row"
done
[[ ! -s $source ]] || printf '\nThe source itself: perplexity %s.\n' "$(<"$source")"
exit $failed
