package shm

import (
	"os"
	"strconv"
	"strings"

	"launcher/shm/cgroup"
)

// Room is how many bytes of memory may still be taken, by this machine's MemAvailable
// and by the limits of the control groups around this process. The kernel answers
// taking more by killing a process, not by an error; so ask first.
func Room() int64 {
	room := int64(1 << 62)
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemAvailable:" {
				if kb, err := strconv.ParseInt(f[1], 10, 64); err == nil {
					room = kb << 10
				}
				break
			}
		}
	}
	if _, left, ok := cgroup.Find("/").Memory(); ok {
		room = min(room, left)
	}
	return room
}
