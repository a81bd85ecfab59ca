#!/usr/bin/env bash
# Ray programs unchanged: the programs of examples/ray, every way to import ray, every name
# of docs/from-ray.md, and what stands on Ray. See accept/lib.sh for the form; ONLY="WORD..."
# runs the parts whose names begin so.
source "$(dirname "$0")/lib.sh"

HERE=$ROOT/examples/ray/accept
mkdir -p "$WORK/tmp"

# What stands on Ray comes from the Python index into an environment of its own.
VENV=$ROOT/.build/from-ray-venv
want=$(sha256sum "$HERE/packages.txt" | cut -d' ' -f1)
if [ "$(cat "$VENV/.pins" 2>/dev/null)" != "$want" ]; then
	python3=/usr/bin/python3
	[ -x $python3 ] || python3=$(command -v python3)
	rm -rf "$VENV"
	if "$python3" -m venv "$VENV" && "$VENV/bin/pip" install -q --disable-pip-version-check -r "$HERE/packages.txt" >"$WORK/pip" 2>&1; then
		echo "$want" >"$VENV/.pins"
	else
		fail fromray.packages "$(tail -3 "$WORK/pip")"
	fi
fi
PY=$VENV/bin/python
[ -x "$PY" ] || PY=$ROOT/.venv/bin/python

# examples WHAT ARGS...: points from the lines of scripts/ray-examples.
examples() {
	local out rc what=$1
	shift
	out=$(t1 env PYTHON="$PY" RAY_PYTHON="${RAY_PYTHON:-}" NODES="${NODES:-1}" timeout 1500 scripts/ray-examples "$@" 2>"$WORK/err")
	rc=$?
	grep -E '^(PASS|SKIP) ' <<<"$out" | sed -E "s/^([A-Z]+) /\\1 $what./"
	# A failure with the last line of what it said.
	awk -v what="$what" '
		function flush() { if (head != "") print head ": " last; head = "" }
		/^FAIL / { flush(); head = "FAIL " what "." substr($0, 6); last = ""; next }
		/^    / { if (head != "" && $0 !~ /^ *(hint:.*)?$/) last = substr($0, 5); next }
		{ flush() }
		END { flush() }' <<<"$out" | cut -c1-600
	grep -qE '^[0-9]+ passed' <<<"$out" || fail "$what.ended" "exit $rc: $(tail -3 "$WORK/err")"
}
if wants examples; then examples fromray; fi
if wants nodes; then NODES=3 examples fromray.nodes; fi
# Where Ray can be had, it prints the same: the version whose names docs/from-ray.md has, with
# what its programs need.
if wants ray; then
	REAL=$ROOT/.build/from-ray-ray-venv
	want=$(cat "$HERE/packages.txt" "$HERE/ray.txt" | sha256sum | cut -d' ' -f1)
	if [ "$(cat "$REAL/.pins" 2>/dev/null)" != "$want" ]; then
		rm -rf "$REAL"
		"$VENV/bin/python" -m venv "$REAL" && "$REAL/bin/pip" install -q --disable-pip-version-check -r "$HERE/packages.txt" -r "$HERE/ray.txt" >"$WORK/err" 2>&1 && echo "$want" >"$REAL/.pins"
	fi
	if [ -f "$REAL/.pins" ]; then
		RAY_PYTHON=$REAL/bin/python examples ray --ray
	else
		skip ray.same "Ray cannot be installed: $(tail -1 "$WORK/err")"
	fi
fi

printf 'version = 1\nname = "fromray"\n[[pool]]\nname = "local"\nbackend = "local"\nnodes = 2\nresources = { cpu = 3 }\npython = "%s"\n' "$PY" >"$WORK/fromray.toml"
chmod -R a+rX "$WORK"
up() { t1 launcher up "$WORK/fromray.toml" >"$WORK/err" 2>&1 || fail fromray.up "$(tail -3 "$WORK/err")"; }
down() { t1 launcher down fromray >/dev/null 2>&1; }
as_ray() { t1 timeout 120 launcher run --as-ray --cpus 0 -- "$@"; }
# way NAME WHAT [ARGS...]: the program on standard input must print 42, under --as-ray.
way() {
	local out rc name=$1 what=$2
	shift 2
	cat >"$WORK/lib/prog.py"
	chmod -R a+rX "$WORK/lib"
	out=$(cd "$WORK/lib" && as_ray "$PY" "${@:-prog.py}" 2>"$WORK/err")
	rc=$?
	check "import.$name" "$what: exit $rc, printed $(tail -c 200 <<<"$out") $(tail -2 "$WORK/err" | cut -c1-300)" test "$rc $out" = "0 42"
}

# ---------------------------------------------------------------- ways to import
if wants import; then
	up
	mkdir -p "$WORK/lib/package"
	cp "$HERE"/lib/*.py "$WORK/lib/"
	cp "$HERE"/lib/package/*.py "$WORK/lib/package/"
	source "$HERE/ways.sh"
	down
fi

# ---------------------------------------------------------------- names
if wants names; then
	up
	out=$(as_ray "$PY" "$HERE/names.py" "$ROOT/docs/from-ray.md" 2>"$WORK/err"); rc=$?
	grep -E '^(PASS|FAIL) ' <<<"$out" | cut -c1-600
	test $rc = 0 || fail names.ended "exit $rc: $(tail -3 "$WORK/err")"
	down
	verbs=$(grep -oE '^\| `ray [a-z]+[^`]*` \|.*' docs/from-ray.md)
	missing=$(for v in submit status logs list stop delete; do grep -q "^| \`ray job $v\`" <<<"$verbs" || echo "ray job $v"; done)
	check names.jobs "ray job's verbs that docs/from-ray.md lacks: ${missing:-none}" test -z "$missing"
	# What the page tells to use is there.
	missing=$(grep -vE '\| not there \||later' <<<"$verbs" | grep -oE '`launcher [a-z]+' | cut -d' ' -f2 | sort -u | while read -r c; do [ "$(t1 launcher help "$c" 2>&1 | head -1)" != "$(t1 launcher help | head -1)" ] || echo "$c"; done)
	check names.commands "commands that the page names and launcher lacks: ${missing:-none}" test -z "$missing"
fi

# ---------------------------------------------------------------- what stands on Ray
if wants apps; then
	up
	for app in pool graphs loops; do
		out=$(as_ray "$PY" "$HERE/$app.py" 2>"$WORK/err"); rc=$?
		grep -E '^(PASS|FAIL) ' <<<"$out" | cut -c1-600
		test $rc = 0 && grep -qE '^PASS' <<<"$out" || fail "apps.$app" "exit $rc: $(tail -3 "$WORK/err")"
	done
	down
fi
left=$(ours)
check fromray.clean "processes left: ${left:-none}" test -z "$left"
