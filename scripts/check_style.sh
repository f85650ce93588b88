#!/usr/bin/env bash
# Style that a script can see: tabs, trailing blanks, clang-format, unique file names, and calls
# that the library must not make (it never exits, prints, reads the environment or writes strings
# without a bound).
set -euo pipefail
cd "$(dirname "$0")/.."
bad=0

complain() { # heading, lines
    [[ -n $2 ]] || return 0
    printf '%s:\n%s\n' "$1" "$2"
    bad=1
}

mapfile -t all < <(git ls-files -co --exclude-standard | grep -vE '^tests/golden/.*/|^fuzz/corpus/|^LICENSE$' |
    while read -r f; do [[ -f $f ]] && echo "$f"; done)
mapfile -t code < <(printf '%s\n' "${all[@]}" | grep -E '\.([ch]|cu)$')

complain "trailing blanks" "$(grep -nIE '[[:blank:]]+$' "${all[@]}" || true)"
complain "tabs" "$(printf '%s\n' "${all[@]}" | grep -E '\.(c|h|py|sh|bash|md|yaml)$' |
    xargs grep -nIP '\t' || true)"
complain "invisible characters" "$(grep -nIP '[\x{200B}-\x{200F}\x{202A}-\x{202E}\x{2066}-\x{2069}\x{FEFF}]' \
    "${code[@]}" || true)"
complain "file names that are not unique" "$(printf '%s\n' "${code[@]}" | sed 's|.*/||' | sort | uniq -d)"

forbidden='exit|_exit|abort|printf|vprintf|puts|putchar|perror|getenv|secure_getenv|strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atof|strtok'
complain "calls that src/ must not make" \
    "$(grep -rnE --include='*.[ch]' --include='*.cu' "(^|[^A-Za-z0-9_>.])($forbidden)\(" src || true)"
complain "standard streams in src/" "$(grep -rnE --include='*.[ch]' --include='*.cu' '\b(stdout|stderr|stdin)\b' src || true)"

# Other versions of clang-format lay some lines out differently: this one decides.
version=$(clang-format --version | grep -oE 'version [0-9]+' | cut -d' ' -f2)
if [[ $version == 14 ]]; then
    complain "clang-format" "$(clang-format --dry-run -Werror "${code[@]}" 2>&1 |
        grep -E 'error:' | head -n 40 || true)"
else
    echo "style: clang-format $version found, the layout is that of 14: not checked"
fi

if ((bad)); then echo "style: ${#all[@]} files, faults above"; else echo "style: ${#all[@]} files, clean"; fi
((bad == 0))
