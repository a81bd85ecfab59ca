package proc

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stat is what /proc/PID/stat says of a process.
type Stat struct {
	PID     int
	Comm    string
	State   byte // R running, S sleeping, D in the kernel, T stopped, t traced, Z ended, ...
	Parent  int
	Group   int
	Session int
	Start   uint64 // clock ticks after boot: with PID a name that is never used again
}

// ReadStat reads one process.
func ReadStat(pid int) (Stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, err
	}
	return parseStat(b)
}

// parseStat takes the line apart. The name stands in parentheses and may hold anything,
// parentheses and newlines too; so the last one ends it.
func parseStat(b []byte) (s Stat, err error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return s, errors.New("malformed /proc/PID/stat")
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 || len(f[0]) != 1 {
		return s, errors.New("malformed /proc/PID/stat")
	}
	num := func(t string) int {
		n, e := strconv.Atoi(t)
		if e != nil && err == nil {
			err = e
		}
		return n
	}
	s = Stat{PID: num(string(bytes.TrimSpace(b[:open]))), Comm: string(b[open+1 : end]), State: f[0][0],
		Parent: num(f[1]), Group: num(f[2]), Session: num(f[3])}
	start, e := strconv.ParseUint(f[19], 10, 64)
	if e != nil && err == nil {
		err = e
	}
	s.Start = start
	return s, err
}

// All lists the processes of the machine that can be seen.
func All() []Stat {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var out []Stat
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if st, err := ReadStat(pid); err == nil {
			out = append(out, st)
		}
	}
	return out
}

// Descendants lists what lives below pid, without pid itself, parents before children.
// Processes that have ended and only wait to be reaped are in it.
func Descendants(pid int) []Stat {
	if out, ok := fromChildren(pid); ok {
		return out
	}
	return descend(pid, All())
}

// descend picks the descendants of pid out of a list of processes.
func descend(pid int, all []Stat) []Stat {
	below := map[int][]Stat{}
	for _, s := range all {
		below[s.Parent] = append(below[s.Parent], s)
	}
	var out []Stat
	seen := map[int]bool{pid: true} // the list is no snapshot: a pid used again could make a ring
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		for _, c := range below[queue[0]] {
			if !seen[c.PID] {
				seen[c.PID] = true
				out = append(out, c)
				queue = append(queue, c.PID)
			}
		}
	}
	return out
}

// fromChildren reads /proc/PID/task/TID/children, which most kernels have; it costs what
// our own tree costs and not what the whole machine does.
func fromChildren(pid int) ([]Stat, bool) {
	var out []Stat
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		files, _ := filepath.Glob("/proc/" + strconv.Itoa(queue[0]) + "/task/*/children")
		if len(files) == 0 && queue[0] == pid {
			return nil, false
		}
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			for _, f := range strings.Fields(string(b)) {
				c, err := strconv.Atoi(f)
				if err != nil {
					continue
				}
				if st, err := ReadStat(c); err == nil {
					out = append(out, st)
					queue = append(queue, c)
				}
			}
		}
	}
	return out, true
}

// Marked lists the processes of this user whose environment holds an entry
// ("NAME=value") that starts with mark, without the caller.
func Marked(mark string) []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var out []int
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err == nil && pid != os.Getpid() && hasEntry(pid, mark) {
			out = append(out, pid)
		}
	}
	return out
}

// HasMark reports whether the environment that a process was started with holds the
// entry mark. Another user's process cannot be read, so it has none.
func HasMark(pid int, mark string) bool { return hasEntry(pid, mark+"\x00") }

func hasEntry(pid int, start string) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return err == nil && bytes.Contains(append([]byte{0}, env...), append([]byte{0}, start...))
}

// Variable gives an environment variable that a process was started with.
func Variable(pid int, name string) (value string, ok bool) {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return "", false
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if v, ok := bytes.CutPrefix(kv, []byte(name+"=")); ok {
			return string(v), true
		}
	}
	return "", false
}

// Ended is a reaped process.
type Ended struct {
	PID    int
	Status syscall.WaitStatus
	Usage  syscall.Rusage
}

// Code is the exit code as a shell gives it (128+n when signal n killed it), and the
// signal or 0.
func (e Ended) Code() (code, signal int32) {
	if e.Status.Signaled() {
		s := int32(e.Status.Signal())
		return 128 + s, s
	}
	return int32(e.Status.ExitStatus()), 0
}

// AwaitAny blocks until some child of this process has ended and gives its pid without
// reaping it, so that its pid and group stay taken. ok is false when there is no child.
func AwaitAny() (pid int, ok bool) { return waitAny(0) }

// EndedNow is AwaitAny that does not block; ok is false also when none has ended.
func EndedNow() (pid int, ok bool) { return waitAny(unix.WNOHANG) }

func waitAny(options int) (pid int, ok bool) {
	for {
		var info unix.Siginfo
		switch err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT|unix.WALL|options, nil); err {
		case nil:
			// si_pid lies behind signo, errno and code, at the next multiple of eight.
			pid = int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
			return pid, pid != 0
		case unix.EINTR:
		default:
			return 0, false
		}
	}
}

// Reap takes an ended child (or, with pid -1, any) off the kernel's list without
// blocking; ok is false when there is none that has ended, none when there is none at all.
func Reap(pid int) (e Ended, ok, none bool) {
	for {
		var st syscall.WaitStatus
		got, err := syscall.Wait4(pid, &st, syscall.WNOHANG|unix.WALL, &e.Usage)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return e, false, true
		case got <= 0:
			return e, false, false
		}
		e.PID, e.Status = got, st
		return e, true, false
	}
}
