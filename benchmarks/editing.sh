#!/usr/bin/env bash
# Editing measured on the demo's emoji people at 64x64: directions from labels in y and in z, their edits on people that
# the network has never seen, strips, and the paper's figures. For benchmarks/results.
#
#   benchmarks/editing.sh OUTDIR
#
#   NETWORK=  a pickle with an encoder; else one is trained as below (an hour and a half on one CPU core)
#   KIMG, ENC_KIMG  length of its stages in thousands of images [80, 40]      PYTHON  interpreter [python3]
#
# The same call goes on with a training that was stopped; the rest takes about ten minutes and is made anew.
set -euo pipefail
[[ $# -eq 1 ]] || { echo "usage: $0 OUTDIR" >&2; exit 2; }
out=$(realpath -m "$1")
network=${NETWORK:+$(realpath "$NETWORK")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
sets=(--data=demo/people64.zip --val=demo/people64_val.zip)
labels=(--labels=demo/people_labels.csv)
pairs=(gender=man,woman skin_tone=light,dark hair=default,red)

if [[ ! $network ]]; then
  "$python" train.py --cfg=lia "${sets[@]}" --outdir="$out/runs" --kimg="${KIMG:-80}" --enc-kimg="${ENC_KIMG:-40}" \
    --batch=8 --gamma=3 --glr=0.004 --dlr=0.003 --cbase=1024 --cmax=128 --latent-dim=128 --phi-layers=2 \
    --noise-inputs=false --aug=noaug --mirror --workers=0
  network=$(find "$out/runs" -name 'network-snapshot-*.pkl' | sort | tail -n 1)
fi

# Directions: every value against the rest; and pairs of values, from mean to mean.
means=()
for space in y z; do
  "$python" edit.py directions --network="$network" --method=labels --space=$space "${sets[@]}" "${labels[@]}" \
    --attribute=gender --attribute=skin_tone --attribute=hair --attribute=profession --outdir="$out/directions-$space"
  for pair in "${pairs[@]}"; do
    name=${pair%%=*}
    "$python" edit.py directions --network="$network" --method=labels --fit=means --space=$space "${sets[@]}" \
      "${labels[@]}" --attribute="$name" --values="${pair#*=}" --outdir="$out/$name-$space"
    means+=("--directions=$out/$name-$space/directions.npz")
  done
done

# Edits on held-out people.
attributes=--attributes=gender=man/woman,skin_tone=light/dark,hair=default/red
"$python" edit.py evaluate --network="$network" "${sets[@]}" "${labels[@]}" "$attributes" "${means[@]}" \
  --outdir="$out/edits-by-means" | tee "$out/edits-by-means.md"
"$python" edit.py evaluate --network="$network" "${sets[@]}" "${labels[@]}" "$attributes" --fit=plane \
  --outdir="$out/edits-by-planes" | tee "$out/edits-by-planes.md"

# Strips of five of them.
mkdir -p "$out/people"
"$python" -m zipfile -e demo/people64_val.zip "$out/people"
faces=()
for number in 12 20 24 50 67; do faces+=("$out/people/00000/img000000$number.png"); done
for space in y z; do
  for pair in "${pairs[@]}"; do
    name=${pair%%=*}
    "$python" edit.py manipulate "${faces[@]}" --network="$network" --direction="$out/$name-$space/directions.npz" \
      --from=-1.5 --to=2.5 --steps=5 --outdir="$out/strip-$name-$space"
  done
done
"$python" edit.py interpolate "${faces[@]:2}" --network="$network" --space=z --space=y --steps=6 --video=webp \
  --outdir="$out/interpolation"
"$python" -m lia_plugin figures --network="$network" --data=demo/people64_val.zip "${labels[@]}" --split=val \
  --group-column=look --num=90 --outdir="$out/figures"
