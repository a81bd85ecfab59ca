package local

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm/cgroup"
)

// canStart: nodes can run here.
const canStart = true

// usableCores is the cores that this process may use: its affinity, and as many of
// them as its control group's quota pays for.
func usableCores() []int {
	var set unix.CPUSet
	var cores []int
	if err := unix.SchedGetaffinity(0, &set); err == nil {
		for c := range len(set) * 64 {
			if set.IsSet(c) {
				cores = append(cores, c)
			}
		}
	}
	for c := len(cores); len(cores) == 0 && c < runtime.NumCPU(); c++ {
		cores = append(cores, c)
	}
	if q, ok := cgroup.Find("/").CPU(); ok {
		cores = cores[:min(len(cores), max(1, int(math.Ceil(q))))]
	}
	return cores
}

// usableMemory is the machine's memory, or the control group's if that is less.
func usableMemory() int64 {
	var si unix.Sysinfo_t
	total := int64(0)
	if unix.Sysinfo(&si) == nil {
		total = int64(si.Totalram) * int64(si.Unit)
	}
	if limit, _, ok := cgroup.Find("/").Memory(); ok && (total == 0 || limit < total) {
		total = limit
	}
	return total
}

var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(b))
})

// procStat is the start time and state of a process.
func procStat(pid int) (start uint64, state byte, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, false
	}
	// The second field is a name in parentheses and may hold anything.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return 0, 0, false
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0][0], err == nil
}

// signalProcess signals the record's process and never another one that has its number.
func signalProcess(r record, sig syscall.Signal) {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		if r.alive() { // a kernel without pidfds
			syscall.Kill(r.PID, sig)
		}
		return
	}
	defer unix.Close(fd)
	if r.alive() { // looked at after the descriptor was made: it is this one's
		unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}

// markedProcesses finds our processes whose environment holds entry.
func markedProcesses(entry string) []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []int
	for _, d := range dirs {
		b, err := os.ReadFile(d + "/environ")
		if err != nil || !slices.Contains(strings.Split(string(b), "\x00"), entry) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if _, state, ok := procStat(pid); ok && state != 'Z' && state != 'X' {
			out = append(out, pid)
		}
	}
	return out
}

// lookEvery is how often processes are looked at where there are no pidfds.
const lookEvery = 200 * time.Millisecond

// watch calls ended for each record whose process ends, each once, until ctx ends or
// ended says to stop.
func watch(ctx context.Context, recs []*record, ended func(i int) bool) error {
	return watchBy(ctx, recs, func(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }, ended)
}

func watchBy(ctx context.Context, recs []*record, open func(pid int) (int, error), ended func(i int) bool) error {
	var fds []unix.PollFd
	var index []int
	defer func() {
		for _, f := range fds {
			unix.Close(int(f.Fd))
		}
	}()
	// The first descriptor ends the wait.
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return errs.Wrap(errs.Exhausted, err, "watching processes")
	}
	fds, index = append(fds, unix.PollFd{Fd: int32(wake), Events: unix.POLLIN}), append(index, -1)
	var blind []int // no descriptor: looked at
	for i, r := range recs {
		if r == nil || !r.alive() {
			if !ended(i) {
				return nil
			}
			continue
		}
		fd, err := open(r.PID)
		if err != nil {
			blind = append(blind, i)
			continue
		}
		fds, index = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}), append(index, i)
		if !r.alive() { // it ended before the descriptor was made, which may be another's
			unix.Close(fd)
			fds, index = fds[:len(fds)-1], index[:len(index)-1]
			if !ended(i) {
				return nil
			}
		}
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken // before the descriptor is closed under it
		}
	}()
	for {
		timeout := -1
		if len(blind) > 0 {
			timeout = int(lookEvery.Milliseconds())
		}
		_, err := unix.Poll(fds, timeout)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return errs.Wrap(errs.Internal, err, "watching processes")
		}
		for k := len(fds) - 1; k > 0; k-- {
			if fds[k].Revents == 0 {
				continue
			}
			i := index[k]
			unix.Close(int(fds[k].Fd))
			fds, index = slices.Delete(fds, k, k+1), slices.Delete(index, k, k+1)
			if !ended(i) {
				return nil
			}
		}
		for k := len(blind) - 1; k >= 0; k-- {
			if i := blind[k]; !recs[i].alive() {
				blind = slices.Delete(blind, k, k+1)
				if !ended(i) {
					return nil
				}
			}
		}
	}
}
