#!/usr/bin/env bash
# The paper's comparison on small photographs of faces, for benchmarks/results: every method, table, grid and curve.
#
#   benchmarks/compare.sh faces32.zip OUTDIR [further options of `lia compare`]
#
#   STAGE1=, MLP=   pickles or run directories of φ's and of the MLP's stage 1, trained as below; else they are trained here
#   KIMG, ENC_KIMG  budgets in thousands of images [60, 30]      SEEDS [1]      PYTHON   interpreter [python3]
#   RESULTS=DIR     copies the tables and pictures there as DATE-compare.*
#
# After Ctrl-C the same call goes on where it stopped; the tables in OUTDIR are of what is there by then.
set -euo pipefail
[[ $# -ge 2 ]] || { echo "usage: $0 DATA OUTDIR [OPTION…]" >&2; exit 2; }
data=$(realpath "$1") out=$(realpath -m "$2")
shift 2
taken=()
[[ ${STAGE1:-} ]] && taken+=("--take=stage1=$(realpath "$STAGE1")")
[[ ${MLP:-} ]] && taken+=("--take=stage1-mlp=$(realpath "$MLP")")
results=${RESULTS:+$(realpath -m "$RESULTS")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

"${PYTHON:-python3}" -m lia_plugin compare --data="$data" --outdir="$out" ${taken[@]+"${taken[@]}"} \
  --kimg="${KIMG:-60}" --enc-kimg="${ENC_KIMG:-30}" --seeds="${SEEDS:-1}" \
  --cbase=1024 --cmax=64 --latent-dim=128 --batch=16 --gamma=0.02 --aug=noaug --mirror --val=0.1 --workers=0 \
  --num=1000 --opt-num=64 --gen-num=10000 "$@"

if [[ $results ]]; then
  mkdir -p "$results"
  cp "$out/compare.md" "$results/$(date +%F)-compare.md"
  cp "$out/grid.png" "$results/$(date +%F)-compare-grid.png"
  cp "$out/curve.png" "$results/$(date +%F)-compare-curve.png"
fi
