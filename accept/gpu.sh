#!/usr/bin/env bash
# Real GPUs of this machine: found, given by UUID before anything of the user's is imported,
# shared by fractions, kept from tasks that asked for none, and not taken from others. A
# machine without one skips all points. PYTHON names an interpreter that has torch.
source "$(dirname "$0")/lib.sh"

POINTS="gpu.detected gpu.uuid gpu.hidden gpu.fractions gpu.whole gpu.fork gpu.command gpu.foreign gpu.doctor"
uuids=$(nvidia-smi --query-gpu=uuid --format=csv,noheader 2>/dev/null)
PY=${PYTHON:-$ROOT/.venv/bin/python}
"$PY" -c 'import torch' 2>/dev/null || PY=$(command -v python3)
if ! grep -q '^GPU-' <<<"$uuids"; then
	for p in $POINTS; do skip "$p" "no NVIDIA GPU"; done
	exit 0
fi
if ! "$PY" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
	for p in $POINTS; do fail "$p" "there is a GPU, but $PY has no torch that can use it; name one with PYTHON"; done
	exit 0
fi
count=$(wc -l <<<"$uuids")
OWN=(LAUNCHER="$ROOT/.build/launcher" PYTHONPATH="$ROOT/python" PYTHONDONTWRITEBYTECODE=1)
L() { t1 launcher "$@"; }
spec() { # NAME EXTRA
	printf 'version = 1\nname = "%s"\n[[pool]]\nname = "local"\nbackend = "local"\npython = "%s"\n%s\n' "$1" "$PY" "${2:-}" >"$WORK/$1.toml"
	chmod 644 "$WORK/$1.toml"
}

# ---------------------------------------------------------------- tasks
spec gpus
L up "$WORK/gpus.toml" >"$WORK/err" 2>&1
t1 env LAUNCHER_CLUSTER=gpus "${OWN[@]}" UUIDS="$uuids" timeout 300 "$PY" accept/gpu/tasks.py 2>"$WORK/tasks.err" || fail gpu.tasks "$(tail -5 "$WORK/tasks.err")"

# ---------------------------------------------------------------- commands
out=$(L run -c gpus --gpus 1 -- "$PY" -c 'import os, torch; print(os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.device_count(), float((torch.ones(512, 512, device="cuda") @ torch.ones(512, 512, device="cuda"))[0, 0]))' 2>&1)
uuid=${out%% *}
check gpu.command "$out" test "$out" = "$(grep -x "$uuid" <<<"$uuids") 1 512.0"
L down gpus >/dev/null 2>&1

# ---------------------------------------------------------------- other people's work
"$PY" -c '
import sys, torch
x = torch.ones(1 << 20, device="cuda"); torch.cuda.synchronize()
print("holding", flush=True); sys.stdin.read()' < <(exec sleep 300) >"$WORK/foreign" 2>&1 &
foreign=$!
eventually 60 grep -q holding "$WORK/foreign"
spec yields 'share = "yield"'
L up "$WORK/yields.toml" >/dev/null 2>&1
run() { timeout "$2" "$ROOT/scripts/as-user" env LAUNCHER_HOME="$LAUNCHER_HOME" PATH="$ROOT/.build:$PATH" launcher run -c "$1" --gpus "$count" -- echo got 2>&1; }
with=$(run yields 8)
kill "$foreign" 2>/dev/null
wait "$foreign" 2>/dev/null
after=$(run yields 60)
check gpu.foreign "with another's process: ${with:-waits}; after it: $after" test -z "$(grep -x got <<<"$with")" -a -n "$(grep "others use" <<<"$with")" -a -n "$(grep -x got <<<"$after")"
L down yields >/dev/null 2>&1

out=$(L doctor "$WORK/gpus.toml" 2>&1)
check gpu.doctor "$(grep GPU: <<<"$out")" grep -q "GPU: $count, " <<<"$out"
