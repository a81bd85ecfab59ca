# What a node is like, a line each; the variables above it come from doctor.
say() { printf 'look %s %s\n' "$1" "$2"; }
say host "${SLURMD_NODENAME:-$(hostname)}"
say now "$(date +%s)"
say cores "$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)"
say granted "${SLURM_CPUS_ON_NODE:-0}"
say visible "${CUDA_VISIBLE_DEVICES-none}"
if command -v nvidia-smi >/dev/null 2>&1; then
	say smi "$(timeout 20 nvidia-smi -L 2>/dev/null | grep -c '^GPU')"
fi
say total "$(sed -n 's/^MemTotal:[[:space:]]*\([0-9]*\) kB/\1/p' /proc/meminfo)"
# The least of the limits on the way up, of either kind of cgroup.
least() {
	d=$1
	while :; do
		v=$(cat "$2$d/$3" 2>/dev/null)
		case $v in '' | *[!0-9]*) ;; *) say memory "$v" ;; esac
		case $d in / | '') break ;; esac
		d=${d%/*}
	done
}
while IFS=: read -r _ kind path; do
	case ",$kind," in
	*,memory,*) least "$path" /sys/fs/cgroup/memory memory.limit_in_bytes ;;
	,,) least "$path" /sys/fs/cgroup memory.max ;;
	esac
done </proc/self/cgroup
say shm "$(df -Pk /dev/shm 2>/dev/null | awk 'END { print $4 }')"
say files "$(ulimit -Hn)"
say tmp "$(df -Pk "${TMPDIR:-/tmp}" 2>/dev/null | awk 'END { print $4 }')"
[ "$(cat "$token_file" 2>/dev/null)" = "$token" ] && say home shared
[ -x "$binary" ] && say binary there
say python "$(python3 -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)"
for a in $addresses; do
	if timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" && echo "$2" >&3' "$a" "$port" "$token" 2>/dev/null; then
		say way "$a"
		break
	fi
done
say end .
