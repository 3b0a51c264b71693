#!/usr/bin/env bash
# Runs every fuzz target for a while; the first input that breaks one is printed and kept in that crate's fuzz/artifacts.
#
# usage: fuzz.sh CARGO_FUZZ SECONDS
#
# Sanitizers and coverage are features of a nightly compiler. The stable one has them as well, and takes them when it is told that
# it builds the standard library's way.
set -euo pipefail

cargo_fuzz=$1
seconds=$2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export RUSTC_BOOTSTRAP=1

for crate in extension/providers sidecar/address; do
    for target in "$crate"/fuzz/fuzz_targets/*.rs; do
        name=$(basename "$target" .rs)
        echo "Fuzzing $crate: $name, $seconds s"
        # From within the crate: cargo-fuzz takes its place from the current directory.
        (cd "$crate" && "$cargo_fuzz" fuzz run "$name" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1)
    done
done
