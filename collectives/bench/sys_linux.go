package bench

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cores are the processors that this process may run on.
func cores() (out []int) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return []int{0}
	}
	for i := range 64 * len(set) {
		if set.IsSet(i) {
			out = append(out, i)
		}
	}
	return out
}

// pinned runs start, which makes a process, such that it lives on the i-th core.
func pinned(i int, start func() error) error {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return start()
	}
	c := cores()
	one.Set(c[i%len(c)])
	// A child inherits the affinity of the thread that makes it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return start()
	}
	err := start()
	_ = unix.SchedSetaffinity(0, &all)
	return err
}

// cpu is the first line of /proc/stat.
type cpu struct{ total, steal uint64 }

func readCPU() (c cpu) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line) {
		if v, err := strconv.ParseUint(f, 10, 64); err == nil {
			c.total += v
			if i == 8 {
				c.steal = v
			}
		}
	}
	return c
}

// stolen reports whether the host took more than 1 % of the time since before.
func (c cpu) stolen(before cpu) bool {
	return (c.steal-before.steal)*100 > c.total-before.total
}
