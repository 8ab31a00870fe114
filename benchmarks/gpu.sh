#!/usr/bin/env bash
# Correctness, operators, iterations beside the original's, and a training in both stages until the last minute, on a
# machine with one NVIDIA GPU, in one call of under ten minutes.
#
#   OUT=DIR      where results go [benchmarks/results]     HOST=DIR   checkout of stylegan2-ada-pytorch to compare with
#   WHEELS=DIR   wheels of packages that are missing here   PYTHON     interpreter that has torch [python3]
#   SMOKE=1      everything in miniature on the CPU, in a minute or two, to see that it runs
#
# Needs no internet. Each step has its own time limit; the exit code is 0 only if all of them succeeded.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
SMOKE=${SMOKE:-}
HOST=${HOST:+$(cd "$HOST" && pwd)}
WHEELS=${WHEELS:+$(cd "$WHEELS" && pwd)}
mkdir -p "${OUT:=benchmarks/results}"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

SECONDS=0
DEADLINE=560  # Of all steps but the last.
NAME=$(date +%F)-${SMOKE:+smoke-}gpu
LOG=$OUT/$NAME.log
: > "$LOG"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TORCH_EXTENSIONS_DIR=$WORK/extensions
if [[ $SMOKE ]]; then
  export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive OMP_PROC_BIND=false  # Whatever else the machine does.
  DEVICE=cpu ALONE=S COMPARED=S EXTRAS=S ROUNDS=1 OPS='--batch=2 --channels=8 --resolution=16' TYPES=float32 WIDTHS='--cbase=512 --cmax=16 --latent-dim=16' BATCH=8
  LENGTH='--kimg=0.016' ENC_LENGTH='--enc-kimg=0.016' STAGE1=60 STAGE2=60 IMAGES=64
else
  DEVICE=cuda ALONE='G D E F' COMPARED='G D E F' EXTRAS='D F' GRAPHS='G D E F' ROUNDS=8 OPS= TYPES='float16 float32'
  WIDTHS='--cbase=4096 --cmax=128 --latent-dim=256' BATCH=64
  LENGTH='--kimg=100000' ENC_LENGTH='--enc-kimg=100000' STAGE1=200 STAGE2=100 IMAGES=5000
fi
[[ $HOST ]] && ALONE=  # What is compared needn't be timed alone as well.

# step NAME SECONDS COMMAND …: stdout to $WORK/NAME.out and all output to the log. Never ends the script.
step() {
  local name=$1 limit=$2 left=$((DEADLINE - SECONDS)) began=$SECONDS code result
  shift 2
  [[ $SMOKE ]] && limit=$((3 * limit))
  ((limit < left)) || limit=$left
  echo "== $name, at most $limit s" | tee -a "$LOG"
  if ((limit > 0)); then
    timeout --kill-after=5 "$limit" "$@" > >(tee "$WORK/$name.out" | tee -a "$LOG") 2> >(tee -a "$LOG" >&2)
    code=$?
  else
    code=124
  fi
  case $code in 0) result=ok ;; 124 | 137) result='ran out of time' ;; *) result="failed ($code)" ;; esac
  echo "| $name | $((SECONDS - began)) | $result |" >> "$WORK/steps"
  echo "== $name: $result after $((SECONDS - began)) s" | tee -a "$LOG"
}

# interruptible SECONDS COMMAND …: Ctrl-C after so long, upon which a training saves and ends with 130: a success here.
interruptible() {
  timeout --foreground --preserve-status --signal=INT --kill-after=20 "$@"
  local code=$?
  return $((code == 130 ? 0 : code))
}
export -f interruptible

# at_most SECONDS RESERVED: SECONDS, or less if the deadline is nearer, RESERVED being for what comes after.
at_most() {
  local left=$((DEADLINE - SECONDS - $2))
  echo $(($1 < left ? $1 : left))
}

newest() { ls -t "$WORK"/$1 2> /dev/null | head -n 1; }

# Not a step: without these packages nothing runs. A folder of its own leaves the machine as it was.
if [[ $WHEELS ]]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$WORK/site" "$WHEELS"/*.whl 2>&1 | tee -a "$LOG"
  export PYTHONPATH=$WORK/site${PYTHONPATH:+:$PYTHONPATH} PATH=$WORK/site/bin:$PATH
fi
# All steps need these: one line instead of a failure for each.
needed='torch click numpy PIL psutil pytest requests safetensors scipy tqdm'
missing=$("$PYTHON" -c 'import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n) is None])' $needed 2> /dev/null)
if [[ $? != 0 || $missing ]]; then
  echo "Error: $PYTHON: no Python that has ${missing:-$needed}; say which with PYTHON=…, or bring wheels (WHEELS=DIR)" >&2
  exit 2
fi

# PyTorch takes the folder above the first nvcc for the toolkit, which it is not where that is a link or a script.
[[ -z ${CUDA_HOME:-} && -x /usr/local/cuda/bin/nvcc ]] && export CUDA_HOME=/usr/local/cuda

step machine 30 bash -c '
  nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm,temperature.gpu --format=csv 2>&1
  nvcc --version 2>&1 | tail -n 1
  type nvcc > /dev/null 2>&1 || [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]] ||
    echo "No nvcc: neither the CUDA kernels of this project nor those of the original can be built."
  grep -m 1 "model name" /proc/cpuinfo; echo "$(getconf _NPROCESSORS_ONLN) cores"; grep MemTotal /proc/meminfo; uptime
  git log -1 --format="commit %h, %cd" 2> /dev/null
  '"$PYTHON"' -c "
import sys, torch, numpy
print(\"Python\", sys.version.split()[0], \"torch\", torch.__version__, \"CUDA\", torch.version.cuda, \"numpy\", numpy.__version__)"'

# The host's kernels take a minute or two to build, which tests don't mind. Fails unless its own plugins have loaded.
if [[ $HOST && ! $SMOKE ]]; then
  step build 170 "$PYTHON" benchmarks/iteration.py --size=S --device=$DEVICE --rounds=1 --host="$HOST" &
fi
# This project's own kernels: built once, then held against float64. Required, so that no row below is PyTorch's unasked.
build_kernels='from torch_utils.ops import cuda_kernels as k; import sys; sys.exit(None if k.library() else "no kernels")'
[[ $SMOKE ]] && build_kernels='print("none on a CPU")'
step kernels-build 150 env LIA_KERNELS=required "$PYTHON" -c "$build_kernels"
LIA_TEST_DEVICE=$DEVICE step kernels 90 "$PYTHON" -m pytest -q -p no:cacheprovider ${SMOKE:+-k activations} tests/test_device_ops.py
LIA_TEST_DEVICE=$DEVICE step tests 120 "$PYTHON" -m pytest -q -p no:cacheprovider -m 'not slow' --deselect tests/test_device_ops.py tests/test_device*.py
wait

for type in $TYPES; do
  step "ops-$type" 40 "$PYTHON" benchmarks/ops.py --device=$DEVICE --dtype=$type --rounds=5 --seconds=12 $OPS ${HOST:+--host="$HOST"}
done

for size in $ALONE; do
  step "alone-$size" 45 "$PYTHON" benchmarks/iteration.py --size=$size --device=$DEVICE --rounds=$ROUNDS --seconds=15
done
if [[ $HOST ]]; then
  for size in $COMPARED; do
    step "compared-$size" 60 "$PYTHON" benchmarks/iteration.py --size=$size --device=$DEVICE --rounds=$ROUNDS \
      --seconds=14 --host="$HOST"
  done
fi

# This project alone in other precisions, if there is time. The row above has float16 layers.
for size in $EXTRAS; do
  ((SECONDS < 380)) || break
  for extra in nhwc precision=fp32 tf32; do
    [[ $SMOKE && $extra != precision=fp32 ]] && continue
    [[ $extra == tf32 ]] && more=--precision=fp32 || more=
    step "$extra-$size" $(at_most 25 170) "$PYTHON" benchmarks/iteration.py --size=$size --device=$DEVICE --rounds=3 --seconds=5 --$extra $more
  done
done

# Phases recorded as CUDA graphs, to compare with the rows above.
if [[ ! $SMOKE ]]; then
  for size in $GRAPHS; do
    step "graphs-$size" $(at_most 35 200) "$PYTHON" benchmarks/iteration.py --size=$size --device=$DEVICE --rounds=5 --seconds=8 --graphs
  done
fi

COMMON="--outdir=$WORK/runs --data=demo/people64.zip --val=demo/people64_val.zip --cfg=lia --device=$DEVICE --batch=$BATCH"
COMMON+=" --metrics=none --tick=2 --snap=1000 --seed=0 --workers=2 --mirror=true"
STAGE1=$(at_most $STAGE1 $(((DEADLINE - SECONDS) / 3 + 90)))
step stage1 $((STAGE1 + 25)) bash -c "interruptible $STAGE1 $PYTHON train.py $COMMON --stage=gan $LENGTH $WIDTHS \
  --gamma=0.1 --glr=0.0025 --dlr=0.0025 --aug=ada --augpipe=bgc --target=0.6"
SNAPSHOT=$(newest 'runs/*gan*/network-snapshot-*.pkl')
STAGE2=$(at_most $STAGE2 95)
step stage2 $((STAGE2 + 25)) bash -c "interruptible $STAGE2 $PYTHON train.py $COMMON --stage=encoder $ENC_LENGTH \
  ${WIDTHS% --latent-dim*} --resume=$SNAPSHOT --enc-loss=default --enc-arch=resnet --enc-space=y --enc-lr=0.001"
SNAPSHOT=$(newest 'runs/*encoder*/network-snapshot-*.pkl')

step reconstructions 40 "$PYTHON" calc_metrics.py --network="$SNAPSHOT" --data=demo/people64_val.zip --device=$DEVICE \
  --metrics=recon_mse,recon_psnr,recon_ssim,cycle_z,latent_fd --num=$IMAGES --verbose=false
step samples 40 "$PYTHON" calc_metrics.py --network="$SNAPSHOT" --data=demo/people64.zip --device=$DEVICE \
  --metrics=fid50k_full --num=$IMAGES --detector=random:0 --verbose=false

# The snapshot without what only training needs, and pictures.
DEADLINE=590 step collect 25 "$PYTHON" - "$SNAPSHOT" "$OUT/$NAME.pkl" << 'PYTHON_END'
import sys
import legacy
from torch_utils import network_pickle
with open(sys.argv[1], 'rb') as f:
    contents = legacy.load_network_pkl(f)
network_pickle.save(sys.argv[2], {**contents, 'G': None, 'D': None, 'training_set_kwargs': None})
PYTHON_END
for kind in fakes recon; do
  picture=$(newest "runs/*/$kind[0-9]*.png")
  [[ $picture ]] && cp "$picture" "$OUT/$NAME-$kind.png"
done

{
  echo "# Measured on a GPU, $(date +%F)${SMOKE:+ (in miniature, on the CPU: no results)}"
  echo -e '\nWritten by `benchmarks/gpu.sh`; what the tables mean is in `benchmarks/README.md`.'
  echo -e '\n## Machine\n\n```'; cat "$WORK/machine.out"; echo '```'
  echo -e '\n## Steps\n\n| step | seconds | result |\n| --- | ---: | --- |'; cat "$WORK/steps"
  echo -e '\n## Operators'
  for type in $TYPES; do echo; cat "$WORK/ops-$type.out"; done
  echo -e '\n## Iteration'
  for size in $ALONE; do echo; cat "$WORK/alone-$size.out"; done
  [[ $HOST ]] && for size in $COMPARED; do echo; cat "$WORK/compared-$size.out"; done
  for file in "$WORK"/{nhwc,precision,tf32,graphs}*.out; do [[ -f $file ]] && { echo; cat "$file"; }; done
  echo -e "\n## Training\n\n\`train.py\` on the demo set, $WIDTHS, batch $BATCH; the last lines of both stages.\n\n\`\`\`"
  for stage in stage1 stage2; do grep '^tick' "$WORK/$stage.out" | tail -n 2; done
  echo -e '```\n\n## Metrics\n\nSmall sets and a random detector: only comparable with each other.\n\n```'
  cat "$WORK/reconstructions.out" "$WORK/samples.out"; echo '```'
} > "$WORK/report.md" 2> /dev/null
# No paths of the machine in what is kept.
sed -e "s#$WORK/##g" -e "s#${HOST:-$WORK}#HOST#g" -e "s#$PWD/##g" "$WORK/report.md" > "$OUT/$NAME.md"
sed -i -e "s#$WORK/##g" -e "s#${HOST:-$WORK}#HOST#g" -e "s#$PWD/##g" "$LOG"

cat "$WORK/steps"
echo "Took $SECONDS s. Results: $OUT/$NAME.md"
! grep -qv '| ok |$' "$WORK/steps"
