package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// stealTicks is the CPU time that the host took from this machine, and all there was.
func stealTicks() (steal, total int64) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:] {
		if i > 7 { // guest time is counted in user time already
			break
		}
		v, _ := strconv.ParseInt(f, 10, 64)
		total += v
		if i == 7 {
			steal = v
		}
	}
	return steal, total
}

// residentBytes is a process's proportional set size: pages that several processes of
// the same binary share count once in the sum.
func residentBytes(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		if w := strings.Fields(l); len(w) > 1 && w[0] == "Pss:" {
			kb, _ := strconv.ParseInt(w[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// cpuSeconds is the CPU time of a process so far.
func cpuSeconds(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	u, _ := strconv.ParseFloat(f[11], 64)
	s, _ := strconv.ParseFloat(f[12], 64)
	return (u + s) / 100 // USER_HZ
}
