package proc

import (
	"context"
	"os"
	"syscall"
	"time"
)

// KillBelow kills everything below this process until nothing is left, reaping as it
// goes. It finds what called setsid, forked twice or cleared its environment, as long as
// this process is the sub-reaper above it. It gives what was still alive when ctx ended
// (a process that hangs in the kernel cannot be killed).
func KillBelow(ctx context.Context) (left []Stat) {
	self := os.Getpid()
	for pause := time.Duration(0); ; pause = min(pause*2+100*time.Microsecond, 20*time.Millisecond) {
		below := Descendants(self)
		for _, s := range below {
			if s.State != 'Z' {
				_ = syscall.Kill(s.PID, syscall.SIGKILL)
			}
		}
		for {
			_, ok, none := Reap(-1)
			if none {
				return nil
			}
			if !ok {
				break
			}
			pause = 0 // progress: orphans may have come to us
		}
		select {
		case <-ctx.Done():
			return below
		case <-time.After(pause):
		}
	}
}

// KillMarked kills every process that Marked finds, and looks again until it finds none
// or ctx ends. It is the belt for whoever is not the parent.
func KillMarked(ctx context.Context, mark string) (killed int) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		found := 0
		for _, pid := range Marked(mark) {
			st, err := ReadStat(pid)
			if err != nil || st.State == 'Z' {
				continue
			}
			found++
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed++
			}
		}
		if found == 0 {
			return killed
		}
		select {
		case <-ctx.Done():
			return killed
		case <-time.After(pause):
		}
	}
}
