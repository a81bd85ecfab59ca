package detect

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"launcher/internal/errs"
	"launcher/shm/cgroup"
	"launcher/wire"
)

// CPU is what this process may use of the machine's cores.
type CPU struct {
	Cores []int   // by affinity and cpusets, ascending
	Quota float64 // CPU time in cores that the control groups allow; 0 = no limit
}

// Amount is c as a resource, in wire.Unit-ths: no more than cores, nor than the quota.
func (c CPU) Amount() int64 {
	n := float64(len(c.Cores))
	if c.Quota > 0 {
		n = min(n, c.Quota)
	}
	return int64(n * wire.Unit)
}

// Limit narrows c to the cores that a pool gives its node; nil = all.
func (c CPU) Limit(cores []int) CPU {
	if cores == nil {
		return c
	}
	var both []int
	for _, a := range c.Cores {
		for _, b := range cores {
			if a == b {
				both = append(both, a)
				break
			}
		}
	}
	c.Cores = both
	return c
}

// ReadCPU reads the affinity and the control groups of this process.
func ReadCPU(root string) (CPU, error) {
	var c CPU
	list, err := cgroup.ParseList(field(read(root, "/proc/self/status"), "Cpus_allowed_list:"))
	if err != nil || len(list) == 0 {
		return c, errs.New(errs.Unavailable, "cannot tell which cores this process may use: /proc/self/status has no Cpus_allowed_list")
	}
	c.Cores = list
	g := cgroup.Find(root)
	if set, ok := g.Cpuset(); ok {
		// The kernel has applied it to the affinity already, but for cores that went
		// away or changes that come while we run.
		if both := c.Limit(set); len(both.Cores) > 0 {
			c = both
		}
	}
	if q, ok := g.CPU(); ok {
		c.Quota = q
	}
	return c, nil
}

// Memory is what this process may use of the machine's memory, in bytes.
type Memory struct {
	Total int64 // of the machine, or the control groups' limit where that is less
	Room  int64 // what can be taken now without anything being killed for it
	Limit int64 // of the control groups; 0 = none
}

// ReadMemory reads /proc/meminfo and the control groups of this process.
func ReadMemory(root string) (Memory, error) {
	info := read(root, "/proc/meminfo")
	kib := func(key string) int64 {
		n, _ := strconv.ParseInt(strings.TrimSuffix(field(info, key), " kB"), 10, 64)
		return n << 10
	}
	m := Memory{Total: kib("MemTotal:"), Room: kib("MemAvailable:")}
	if m.Total <= 0 {
		return m, errs.New(errs.Unavailable, "cannot tell how much memory there is: /proc/meminfo has no MemTotal")
	}
	if m.Room == 0 { // kernels before 3.14
		m.Room = kib("MemFree:") + kib("Cached:")
	}
	if limit, room, ok := cgroup.Find(root).Memory(); ok && limit < m.Total {
		m.Total, m.Limit, m.Room = limit, limit, min(m.Room, room)
	}
	return m, nil
}

// OOMKills counts the processes of this process's control group that the kernel has
// killed for want of memory; -1 when it does not tell. A count that grew while a process
// was killed by SIGKILL says why.
func OOMKills(root string) int64 { return cgroup.Find(root).OOMKills() }

// Load is the load average of the last minute; 0 when it cannot be read.
func Load(root string) float64 {
	first, _, _ := strings.Cut(read(root, "/proc/loadavg"), " ")
	n, _ := strconv.ParseFloat(first, 64)
	return n
}

// Hostname is the machine's name, without a trailing dot; never empty.
func Hostname() string {
	h, err := os.Hostname()
	if h = strings.TrimSuffix(h, "."); err != nil || h == "" {
		return "localhost"
	}
	return h
}

func read(root, name string) string {
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return ""
	}
	return string(b)
}

// field gives the rest of the line that starts with key.
func field(text, key string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}
