#!/usr/bin/env bash
# Real GPUs of this machine: found, given by UUID before anything of the user's is imported,
# shared by fractions, kept from tasks that asked for none, and not taken from others. A
# machine without one skips those points. PYTHON names an interpreter that has torch.
# Before them: what is chosen on a machine whose nvidia-smi output was recorded, GPUs that a
# spec declares, and locks between clusters, which need no GPU.
source "$(dirname "$0")/lib.sh"

# ---------------------------------------------------------------- recorded and declared
BOX() { "$ROOT/scripts/as-user" env LAUNCHER_HOME="$LAUNCHER_HOME" PATH="$ROOT/accept/gpu:$ROOT/.build:$PATH" BOX="$ROOT/agent/detect/testdata/topo/v100-8.txt" launcher "$@"; }
L() { t1 launcher "$@"; }
box() { # NAME RESOURCES
	printf 'version = 1\nname = "%s"\n[[pool]]\nname = "local"\nbackend = "local"\nresources = { %s }\n' "$1" "$2" >"$WORK/$1.toml"
	chmod 644 "$WORK/$1.toml"
}
own() { timeout 60 "$ROOT/scripts/as-user" env LAUNCHER_HOME="$LAUNCHER_HOME" PATH="$ROOT/.build:$PATH" launcher run -c "$@" -- sh -c 'echo $CUDA_VISIBLE_DEVICES' 2>&1 | sed 's/GPU-00000000-0000-4000-8000-00000000000//g' | sort | tr '\n' ' ' | sed 's/ $//'; }
holding() { t1 launcher tasks --json -c "$1" 2>/dev/null | grep -q '"state":"running"'; }
box mesh "cpu = 16"
BOX up "$WORK/mesh.toml" >"$WORK/err" 2>&1
four=$(own mesh --gpus 4) two=$(own mesh --gpus 2) gang=$(own mesh --gpus 2 --nodes 1 --ranks-per-node 2)
check gpu.topology "4 of a DGX-1: $four; 2: $two; $(t1 launcher nodes -c mesh | awk 'NR == 2')" test "$four" = 0,1,2,3 -a "$two" = 0,3 -a -n "$(t1 launcher nodes --json -c mesh | grep '"text":"NV2 NV1 SYS')"
check gpu.gang "two ranks with two GPUs each: $gang" test "$gang" = "0,3 1,2"
box other "cpu = 16"
BOX up "$WORK/other.toml" >>"$WORK/err" 2>&1
t1 launcher run -c mesh --gpus 6 --detach -- sleep 300 >/dev/null 2>&1
eventually 30 holding mesh
agent() { t1 launcher nodes --json -c mesh 2>/dev/null | grep -o '"pid":[0-9]*' | cut -d: -f2; }
restarted() { local now; now=$(agent); [ -n "$now" ] && [ "$now" != "$killed" ]; }
killed=$(agent) # the lock must outlive the agent
[ -n "$killed" ] && kill -9 "$killed"
again=no
eventually 30 restarted && again=yes
beside=$(own other --gpus 2)
with=$(timeout 8 "$ROOT/scripts/as-user" env LAUNCHER_HOME="$LAUNCHER_HOME" PATH="$ROOT/.build:$PATH" launcher run -c other --gpus 4 -- echo got 2>&1)
t1 launcher cancel -c mesh 4 >/dev/null 2>&1
after=$(own other --gpus 8)
check gpu.locks "beside six of another cluster's, whose agent was killed: $beside; four: $(grep -v got <<<"$with" | tail -1); when they are free: $after" test "$again" = yes -a "$beside" = 6,7 -a -z "$(grep -x got <<<"$with")" -a "$after" = 0,1,2,3,4,5,6,7
L down mesh >/dev/null 2>&1
L down other >/dev/null 2>&1
box said "cpu = 4, gpu = 2"
L up "$WORK/said.toml" >>"$WORK/err" 2>&1
said=$(own said --gpus 2) json=$(t1 launcher nodes --json -c said)
if [ "$said" = 0,1 ]; then
	check gpu.declared "visible as $said, $(grep -o 'GPU-[0-9a-f-]*' <<<"$json" | head -1)" test "$(grep -oE '"uuid":"GPU-[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"' <<<"$json" | sort -u | wc -l)" = 2
else
	check gpu.declared "the machine has GPUs: $said" test -n "$(grep GPU- <<<"$said")"
fi
L down said >/dev/null 2>&1

# ---------------------------------------------------------------- real ones

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
check gpu.foreign "with another's process: ${with:-waits}; after it: $after" test -z "$(grep -x got <<<"$with")" -a -n "$(grep "held by another user" <<<"$with")" -a -n "$(grep -x got <<<"$after")"
L down yields >/dev/null 2>&1

out=$(L doctor "$WORK/gpus.toml" 2>&1)
check gpu.doctor "$(grep GPU: <<<"$out")" grep -q "GPU: $count, " <<<"$out"
