#!/usr/bin/env bash
# Sizes that grow when nobody looks: files over 800 lines, functions over 100 (kernels 150), and
# the median function, which stays near 15 (20 is refused).
set -euo pipefail
cd "$(dirname "$0")/.."

max_file=800 max_function=100 max_kernel=150 max_median=20
bad=0

mapfile -t files < <(git ls-files -co --exclude-standard '*.c' '*.h' '*.cu' | while read -r f; do
    [[ -f $f ]] && echo "$f"
done)
longest=$(wc -l "${files[@]}" | awk '$2 != "total"' | sort -n | tail -n 1 | awk '{ print $1, $2 }')
while read -r lines file; do
    echo "$file: $lines lines, at most $max_file"
    bad=1
done < <(wc -l "${files[@]}" | awk -v m=$max_file '$2 != "total" && $1 > m { print $1, $2 }')

# lines, name, file of every function, shortest first
functions=$(ctags -o - --languages=C,C++ --langmap=C:.c.h,C++:.cu --c-kinds=f --c++-kinds=f --fields=ne "${files[@]}" |
    awk -F'\t' '!/^!/ {
        for (i = 4; i <= NF; i++) { split($i, f, ":"); v[f[1]] = f[2] }
        if (v["end"]) print v["end"] - v["line"] + 1, $1, $2
        delete v
    }' | sort -n)
while read -r lines name file; do
    limit=$max_function
    [[ $file == src/kernel/* ]] && limit=$max_kernel
    if ((lines > limit)); then
        echo "$file: $name has $lines lines, at most $limit"
        bad=1
    fi
done <<<"$functions"

count=$(wc -l <<<"$functions")
median=$(sed -n "$(((count + 1) / 2))p" <<<"$functions" | cut -d' ' -f1)
over=$(awk '$1 > 60' <<<"$functions" | wc -l)
if ((median > max_median)); then
    echo "median function: $median lines, at most $max_median"
    bad=1
fi
echo "sizes: ${#files[@]} files, longest $longest; $count functions, median $median lines," \
    "$over over 60, longest $(tail -n 1 <<<"$functions")"
((bad == 0))
