package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/detect"
	"launcher/wire"
)

func freeSpace(dir string) (int64, bool) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0, false
	}
	return int64(st.Bavail) * st.Bsize, true
}

// machine looks at what this machine grants us.
func (f *findings) machine(h string) {
	tmp := os.TempDir()
	if t, err := os.CreateTemp(tmp, ".launcher-doctor-*"); err != nil {
		f.add("error", "set TMPDIR to a directory you can write", "the temporary directory %s cannot be written: %v", tmp, err)
	} else {
		_ = t.Close()
		_ = os.Remove(t.Name())
		if free, ok := freeSpace(tmp); ok && free < 512<<20 {
			f.add("warning", "free some space, or set TMPDIR", "the temporary directory %s has %s left", tmp, wire.Bytes(free))
		}
	}
	f.clock()
	f.limits()
	f.cgroups()
	f.gpus()
	if b, err := os.ReadFile("/proc/swaps"); err == nil && strings.Count(strings.TrimSpace(string(b)), "\n") > 0 {
		f.add("note", "swapoff -a, or give tasks a --memory that fits", "swap is on: work that outgrows the memory becomes very slow before it fails")
	}
	if fd, err := unix.MemfdCreate("launcher-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		f.add("error", "a Linux of 3.17 or newer; in a container, a seccomp profile that allows memfd_create", "shared memory cannot be made: memfd_create: %v", err)
	} else {
		_ = unix.Close(fd)
	}
	if os.Getuid() != 0 {
		f.add("note", "", "not root: should a node's guard and supervisor be killed in the same instant, a process of the work that called setsid may stay; `launcher down` finds it")
	}
}

// clock tells a clock that is plainly wrong, and one that nothing keeps right.
func (f *findings) clock() {
	if y := time.Now().Year(); y < 2025 || y > 2100 {
		f.add("error", "set the clock: certificates are only valid at their time", "the clock says %s", time.Now().Format(time.RFC3339))
		return
	}
	var tx unix.Timex
	if state, err := unix.Adjtimex(&tx); err == nil && state == unix.TIME_ERROR {
		f.add("note", "run chrony, ntpd or systemd-timesyncd where several machines work together", "nothing keeps this clock in step")
	}
}

func (f *findings) limits() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Max < 4096 {
		f.add("warning", "raise it in /etc/security/limits.conf (nofile), or ask who runs this machine", "at most %d open files a process; a node with many tasks needs more", l.Max)
	}
	if unix.Getrlimit(unix.RLIMIT_NPROC, &l) == nil && l.Cur < 1024 {
		f.add("warning", "ulimit -u, or nproc in /etc/security/limits.conf", "at most %d processes for this user", l.Cur)
	}
	if unix.Getrlimit(unix.RLIMIT_FSIZE, &l) == nil && l.Cur != unix.RLIM_INFINITY {
		f.add("warning", "ulimit -f unlimited", "files may have at most %s", wire.Bytes(int64(l.Cur)))
	}
}

// cgroups tells limits that are tighter than the machine.
func (f *findings) cgroups() {
	total := int64(0)
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if w := strings.Fields(l); len(w) > 1 && w[0] == "MemTotal:" {
				kb, _ := strconv.ParseInt(w[1], 10, 64)
				total = kb << 10
			}
		}
	}
	limit := int64(0)
	for _, p := range cgroupFiles("memory.max", "memory.limit_in_bytes", "memory") {
		if v, err := strconv.ParseInt(readTrim(p), 10, 64); err == nil && v > 0 && (limit == 0 || v < limit) {
			limit = v
		}
	}
	room := wire.Bytes(total)
	if limit > 0 && limit < total {
		room = fmt.Sprintf("%s by a cgroup limit (the machine has %s)", wire.Bytes(limit), wire.Bytes(total))
	}
	var set unix.CPUSet
	cores := runtime.NumCPU()
	if unix.SchedGetaffinity(0, &set) == nil {
		cores = set.Count()
	}
	f.add("ok", "", "%d cores, memory %s", cores, room)
	for _, p := range cgroupFiles("pids.max", "pids.max", "pids") {
		if v, err := strconv.Atoi(readTrim(p)); err == nil && v < 1024 {
			f.add("warning", "raise it, or start launcher outside this cgroup", "at most %d processes by the cgroup limit %s", v, p)
		}
	}
}

// gpuBound is for asking the driver: one that has lost a GPU may hang.
const gpuBound = 30 * time.Second

// gpus tells which GPUs the driver shows, and those that others use.
func (f *findings) gpus() {
	ctx, cancel := context.WithTimeout(context.Background(), gpuBound)
	defer cancel()
	gpus, err := detect.GPUs(ctx, "/", os.Environ())
	if err != nil {
		f.add("warning", "see that nvidia-smi works here, or say resources = { gpu = N } in the pool", "GPUs cannot be told: %v", err)
		return
	}
	var names, taken []string
	for _, g := range gpus {
		names = append(names, g.Name)
		if g.Busy {
			taken = append(taken, g.UUID)
		}
	}
	if len(names) > 0 {
		f.add("ok", "", "GPU: %d, %s", len(names), strings.Join(slices.Compact(names), ", "))
	}
	if len(taken) > 0 {
		f.add("note", `share = "ignore" in the pool offers them all the same`, "another user computes on GPU %s: not offered until that ends", strings.Join(taken, ", "))
	}
}

func readTrim(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// cgroupFiles gives the paths of one limit in our cgroup and its parents, for v2 and v1.
func cgroupFiles(v2, v1, controller string) (out []string) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	for l := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(l), ":", 3)
		if len(parts) != 3 {
			continue
		}
		root, name := "", ""
		switch {
		case parts[0] == "0" && parts[1] == "":
			root, name = "/sys/fs/cgroup", v2
		case strings.Contains(","+parts[1]+",", ","+controller+","):
			root, name = "/sys/fs/cgroup/"+controller, v1
		default:
			continue
		}
		for dir := parts[2]; ; dir = filepath.Dir(dir) {
			if p := filepath.Join(root, dir, name); readTrim(p) != "" {
				out = append(out, p)
			}
			if dir == "/" || dir == "." {
				break
			}
		}
	}
	return out
}
