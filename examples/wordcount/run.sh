#!/bin/sh
# Counts the words of Go's own source tree (or of the tree given) with an array of 16
# tasks on the cluster that is up, and checks the result against coreutils.
#
#   launcher up configs/local.toml && examples/wordcount/run.sh [TREE]
set -eu
LC_ALL=C
export LC_ALL
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tree=$(CDPATH='' cd -- "${1:-$(go env GOROOT)/src}" && pwd) # the tasks have a directory of their own
launcher=${LAUNCHER:-launcher}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
mkdir "$out/parts"

"$launcher" run --array 0-15 --name wordcount --workdir "$here" \
	--env SHARDS=16 --env TREE="$tree" --env OUT="$out/parts" -- python3 count.py
python3 "$here/merge.py" "$out/parts" >"$out/ours"

find "$tree" -type f -name '*.go' -exec sed -s '$a\' {} + | tr -s '[:space:]' '\n' | sed '/^$/d' |
	sort -S 256M | uniq -c | sed 's/^ *//' >"$out/theirs"

if ! cmp "$out/ours" "$out/theirs"; then
	echo "wordcount: DIFFERENT from coreutils" >&2
	exit 1
fi
echo "the ten words seen most, of $(wc -l <"$out/ours") different ones:"
sort -s -k1,1nr "$out/ours" | head -10
echo "wordcount: equal to coreutils"
