package main

import (
	"fmt"
	"os"
	"path/filepath"
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
	f := statFields(pid)
	if len(f) < 15 {
		return 0
	}
	return ticks(f[11]) + ticks(f[12])
}

// cpuOf is the CPU time of processes whose environment has word in it, of roots and of all
// that descends from these, with that of their children that have ended.
func cpuOf(word string, roots []int) (s float64) {
	parent, ours := map[int]int{}, map[int]bool{}
	for _, r := range roots {
		ours[r] = true
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if f := statFields(pid); len(f) > 1 {
			parent[pid], _ = strconv.Atoi(f[1])
		}
		if env, err := os.ReadFile(d + "/environ"); err == nil && pid != os.Getpid() && strings.Contains(string(env), word) {
			ours[pid] = true
		}
	}
	for pid := range parent {
		for p := pid; p > 1; p = parent[p] {
			if !ours[p] {
				continue
			}
			if f := statFields(pid); len(f) > 14 {
				s += ticks(f[11]) + ticks(f[12]) + ticks(f[13]) + ticks(f[14])
			}
			break
		}
	}
	return s
}

// statFields are those of /proc/PID/stat after the name.
func statFields(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
}

func ticks(s string) float64 {
	v, _ := strconv.ParseFloat(s, 64)
	return v / 100 // USER_HZ
}
