#!/usr/bin/env bash
# One Markdown table of recipes on one model: what each costs in bits, quality, time and memory.
#
#   bench/tables.sh MODEL --calib TEXT --test TEXT [options] RECIPE...
#
#   RECIPE            a shipped recipe, FILE.yaml, or "LABEL=OPTIONS of nibble quantize", such as
#                     "RTN 4 bits=--weights int4:g128 --method nearest"
#   --samples N       calibration windows (the recipe's)    --seqlen N    their tokens (the recipe's)
#   --windows N       test windows (all)                    --ctx N       their tokens (2048)
#   --threads N       (all)
#   --work DIR        finished rows, kept: an interrupted table goes on; empty it for another
#                     version of the command (bench-tables)
#   --keep            the quantized models stay in DIR, too
#
# NIBBLE: the command (build/nibble). Text goes to standard output, progress to standard error.
set -euo pipefail
nibble=${NIBBLE:-$(dirname "$0")/../build/nibble}
model= calib= text= work=bench-tables keep=
quantize=() evaluate=() run=() recipes=()

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

while (($#)); do
    case $1 in
    --calib | --test | --samples | --seqlen | --windows | --ctx | --threads | --work)
        (($# > 1)) || usage
        case $1 in
        --calib) calib=$2 quantize+=(--calib "$2") ;;
        --test) text=$2 ;;
        --samples | --seqlen) quantize+=("$1" "$2") ;;
        --windows | --ctx) evaluate+=("$1" "$2") ;;
        --threads) run+=("$1" "$2") ;;
        --work) work=$2 ;;
        esac
        shift ;;
    --keep) keep=1 ;;
    --*) usage ;;
    *) [[ $model ]] && recipes+=("$1") || model=$1 ;;
    esac
    shift
done
[[ $model && $calib && $text && ${#recipes[@]} -gt 0 ]] || usage
mkdir -p "$work"

# A number of a flat JSON object on standard input.
number() { grep -oP "\"$1\": \K[-+0-9.eE]+" || echo nan; }

# What a row depends on: model, texts, options, and the recipe's own words.
row_key() { # options of the recipe
    local words=("$@") file
    for file in "${words[@]}"; do
        for file in "$file" "$(dirname "$nibble")/../recipes/$file.yaml"; do
            [[ -f $file ]] && words+=("$(<"$file")")
        done
    done
    printf '%s\n' "$(realpath "$model")" "${quantize[@]}" "${evaluate[@]}" \
        "$(stat -Lc '%s %Y' "$model" "$calib" "$text")" "${words[@]}" | sha256sum | cut -c 1-16
}

make_row() { # label, model directory, options of the recipe
    local label=$1 out=$2 made compared more=
    shift 2
    echo "$label: quantize" >&2
    made=$("$nibble" quantize "$model" -o "$out" --resume --json "${quantize[@]}" "${run[@]}" "$@") ||
        return
    (($(number blocks_resumed <<<"$made") == 0)) || more='> ' # the time of a part
    echo "$label: compare" >&2
    compared=$("$nibble" compare "$out" --against "$model" --text "$text" --json \
        "${evaluate[@]}" "${run[@]}") || return
    printf '| %s | %.3f | %.3f ± %.3f | %.4f | %.2f %% | %s%.0f | %.0f |\n' "$label" \
        "$(number bits_per_weight <<<"$made")" "$(number perplexity <<<"$compared")" \
        "$(number perplexity_error <<<"$compared")" "$(number kl_mean <<<"$compared")" \
        "$(awk -v x="$(number top1_agreement <<<"$compared")" 'BEGIN { print 100 * x }')" \
        "$more" "$(number seconds <<<"$made")" \
        "$(awk -v x="$(number peak_rss <<<"$made")" 'BEGIN { print x / 1048576 }')"
    printf '%.3f ± %.3f\n' "$(number perplexity_reference <<<"$compared")" \
        "$(number perplexity_reference_error <<<"$compared")" >"$out.source"
}

printf '| recipe | bits/weight | perplexity | KL, mean | top-1 | seconds | MiB |\n'
printf '|---|--:|--:|--:|--:|--:|--:|\n'
failed=0
for recipe in "${recipes[@]}"; do
    label=$recipe options=(--recipe "$recipe")
    if [[ $recipe == *=--* ]]; then
        label=${recipe%%=--*}
        read -ra options <<<"--${recipe#*=--}"
    fi
    out=$work/$(row_key "${options[@]}")
    if [[ ! -s $out.row ]]; then
        if ! make_row "$label" "$out" "${options[@]}" >"$out.new"; then
            echo "$label: failed, no row" >&2
            failed=1
            continue
        fi
        mv "$out.new" "$out.row"
        [[ $keep ]] || rm -rf "$out"
    fi
    cat "$out.row"
    source=$(<"$out.source")
done
[[ ! ${source:-} ]] || printf '\nThe source itself: perplexity %s.\n' "$source"
exit $failed
