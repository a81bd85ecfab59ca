// Package cgroup reads what the control groups around this process allow: memory,
// CPU time, cores. It knows version 1 (a hierarchy per controller), version 2, and
// machines that have both; a limit anywhere between the process's own group and the
// root of what is mounted counts.
//
// Every function takes the root of the file system, "/" on a live machine, so that
// tests read recorded trees. What is missing or unreadable is no limit.
package cgroup

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Groups are the directories of this process's control groups.
type Groups struct {
	root string
	dirs map[string][]string // controller -> directories, own group first, up to the mount; "" = version 2
}

// Find reads /proc/self/cgroup and /proc/self/mountinfo below root.
func Find(root string) Groups {
	g := Groups{root: root, dirs: map[string][]string{}}
	paths := map[string]string{} // controller -> path of our group, "" = version 2
	for line := range strings.Lines(g.read("/proc/self/cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" && f[1] == "" {
			paths[""] = f[2]
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			paths[c] = f[2]
		}
	}
	for line := range strings.Lines(g.read("/proc/self/mountinfo")) {
		before, after, ok := strings.Cut(line, " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if !ok || len(b) < 5 || len(a) < 3 {
			continue
		}
		within, at := unescape(b[3]), unescape(b[4])
		switch a[0] {
		case "cgroup2":
			g.add("", paths, within, at)
		case "cgroup":
			for c := range strings.SplitSeq(a[2], ",") {
				g.add(c, paths, within, at)
			}
		}
	}
	return g
}

// add notes the directories of one controller: its mount shows the subtree `within` of
// the hierarchy at directory `at`.
func (g Groups) add(controller string, paths map[string]string, within, at string) {
	own, ok := paths[controller]
	if !ok || g.dirs[controller] != nil {
		return
	}
	rel := "/"
	switch {
	case strings.HasPrefix(own, "/.."): // our group lies outside of the namespace's view
	case within == "/":
		rel = own
	case own == within || strings.HasPrefix(own, within+"/"):
		rel = own[len(within):]
	}
	rel = path.Clean("/" + rel)
	for {
		g.dirs[controller] = append(g.dirs[controller], path.Join(at, rel))
		if rel == "/" {
			return
		}
		rel = path.Dir(rel)
	}
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Memory is the tightest memory limit around the process. Room is what may still be
// taken before the kernel kills for it, file cache that it could drop counted as free.
// ok is false when nothing limits.
func (g Groups) Memory() (limit, room int64, ok bool) {
	take := func(dir, limitFile, usageFile, cacheKey string) {
		most, has := g.number(dir, limitFile)
		if !has || most >= 1<<60 { // version 1 writes "no limit" as a huge number
			return
		}
		left := most
		if used, has := g.number(dir, usageFile); has {
			cache := g.key(dir, "memory.stat", cacheKey)
			left = min(most, max(0, most-used+min(used, cache)))
		}
		if !ok || most < limit {
			limit = most
		}
		if !ok || left < room {
			room = left
		}
		ok = true
	}
	for _, d := range g.dirs["memory"] {
		take(d, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
	}
	for _, d := range g.dirs[""] {
		take(d, "memory.max", "memory.current", "inactive_file")
		take(d, "memory.high", "memory.current", "inactive_file")
	}
	return limit, room, ok
}

// CPU is the tightest quota of CPU time, in cores; ok is false when nothing limits.
func (g Groups) CPU() (cores float64, ok bool) {
	take := func(quota, period int64) {
		if quota <= 0 || period <= 0 {
			return
		}
		if c := float64(quota) / float64(period); !ok || c < cores {
			cores, ok = c, true
		}
	}
	for _, d := range g.dirs["cpu"] {
		quota, _ := g.number(d, "cpu.cfs_quota_us")
		period, _ := g.number(d, "cpu.cfs_period_us")
		take(quota, period)
	}
	for _, d := range g.dirs[""] {
		f := strings.Fields(g.read(path.Join(d, "cpu.max")))
		if len(f) == 2 {
			quota, _ := strconv.ParseInt(f[0], 10, 64) // "max" gives 0
			period, _ := strconv.ParseInt(f[1], 10, 64)
			take(quota, period)
		}
	}
	return cores, ok
}

// Cpuset is the cores that the cpusets around the process leave; ok is false when
// there is none.
func (g Groups) Cpuset() (cores []int, ok bool) {
	take := func(dir string, files ...string) {
		for _, f := range files {
			list, err := ParseList(g.read(path.Join(dir, f)))
			if err != nil || len(list) == 0 {
				continue
			}
			if ok {
				list = slices.DeleteFunc(list, func(c int) bool { return !slices.Contains(cores, c) })
			}
			cores, ok = list, true
			return
		}
	}
	for _, d := range g.dirs["cpuset"] {
		take(d, "cpuset.effective_cpus", "cpuset.cpus")
	}
	for _, d := range g.dirs[""] {
		take(d, "cpuset.cpus.effective", "cpuset.cpus")
	}
	return cores, ok
}

// OOMKills counts the processes that the kernel has killed in the process's own group
// (and below, in version 2) for want of memory; -1 when it does not tell.
func (g Groups) OOMKills() int64 {
	kills := int64(-1)
	if d := g.dirs["memory"]; len(d) > 0 {
		if text := g.read(path.Join(d[0], "memory.oom_control")); strings.Contains(text, "oom_kill ") {
			kills = g.key(d[0], "memory.oom_control", "oom_kill")
		}
	}
	if d := g.dirs[""]; len(d) > 0 {
		if text := g.read(path.Join(d[0], "memory.events")); text != "" {
			kills = max(kills, 0) + g.key(d[0], "memory.events", "oom_kill")
		}
	}
	return kills
}

// ParseList reads a kernel list of numbers, for example "0-3,8,10-11".
func ParseList(s string) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		if part == "" {
			continue
		}
		lo, hi, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(lo, 10, 16)
		if err != nil {
			return nil, err
		}
		b := a
		if isRange {
			if b, err = strconv.ParseUint(hi, 10, 16); err != nil {
				return nil, err
			}
		}
		for n := a; n <= b; n++ {
			out = append(out, int(n))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (g Groups) read(name string) string {
	b, err := os.ReadFile(filepath.Join(g.root, name))
	if err != nil {
		return ""
	}
	return string(b)
}

// number reads a file that holds one number; "max" and anything else is none.
func (g Groups) number(dir, file string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(g.read(path.Join(dir, file))), 10, 64)
	return n, err == nil
}

// key reads one "key number" line; 0 when it is not there.
func (g Groups) key(dir, file, key string) int64 {
	for line := range strings.Lines(g.read(path.Join(dir, file))) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}
