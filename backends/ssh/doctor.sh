# After provision.sh, in place of main: says what a node would find, and leaves nothing.
limit() { sed -n "s/^$1  *\([^ ]*\) *\([^ ]*\) .*/\\$2/p" /proc/self/limits 2>/dev/null; }

look() {
	greet
	say clock "$(date +%s)"
	if pick; then
		say room "$(room "$R")" "$R"
		[ -z "$made" ] || rmdir "$made" 2>/dev/null
	else
		say fail directory "$D"
	fi
	say shm "$(room /dev/shm)"
	say files "$(limit 'Max open files' 2)"
	say processes "$(limit 'Max processes' 1)"
	say filesize "$(limit 'Max file size' 1)"
	if has python3; then
		e=$(python3 -c 'import sys
print("%d.%d" % sys.version_info[:2])
sys.exit(sys.version_info < (3, 9))' 2>&1 </dev/null) || say nopython "its python3 is $(printf %s "$e" | tail -n 1)"
	else
		say nopython "there is no python3 on its PATH"
	fi
	if has nvidia-smi; then
		if e=$(timeout 20 nvidia-smi -L 2>&1 </dev/null); then
			say gpus "$(printf '%s\n' "$e" | grep -c '^GPU')"
		else
			say nogpu "nvidia-smi: $(printf %s "$e" | tr '\n' ' ')"
		fi
	elif [ -e /dev/nvidia0 ]; then
		say nogpu "there is /dev/nvidia0 and no nvidia-smi"
	fi
	say end
}

# probe ADDRESS PORT: an answer of any kind shows that there is a way.
probe() {
	greet
	if has bash && has timeout; then
		e=$(LC_ALL=C timeout 4 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>&1)
		case $?,$e in
		0,* | *[Rr]efused*) say way ;;
		124,*) say nothing "nothing answers" ;;
		*) say nothing "${e##*: }" ;;
		esac
	fi
	say end
}
