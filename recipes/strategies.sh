#!/bin/sh
# Which layers stay: `importance` against `uniform`, at equal training, two seeds, on one data set (docs/strategies.md).
#
#     sh recipes/strategies.sh NAME [-S KEY=VALUE]...
#
# NAME begins the names of the experiments. Those that are there already are not run again: start it anew after a kill.
set -eu
name=$1
shift
cells="6-3 6-2 6-1 3-6"

for seed in 0 1; do
    for cell in $cells; do
        for strategy in uniform importance; do
            experiment=$name-$strategy-$cell-s$seed
            test -z "$(git for-each-ref "refs/exps/*/*/$experiment")" || continue
            dvc exp run score --name="$experiment" -S seed=$seed -S enc="${cell%-*}" -S dec="${cell#*-}" \
                -S keep.strategy=$strategy -S train.max_steps=100 -S train.warmup_steps=10 -S train.evaluations=1 \
                -S data.max_source_tokens=64 "$@"
        done
    done
done
for cell in $cells; do
    lopside compare "$name-uniform-$cell-s0,$name-uniform-$cell-s1" "$name-importance-$cell-s0,$name-importance-$cell-s1"
done
