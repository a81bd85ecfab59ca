//go:build !linux

package local

import (
	"context"
	"runtime"
	"syscall"
)

// Nodes are Linux machines; elsewhere this package only checks specs and shows dry runs.
const canStart = false

func usableCores() []int {
	cores := make([]int, runtime.NumCPU())
	for i := range cores {
		cores[i] = i
	}
	return cores
}

func usableMemory() int64 { return 0 }

func bootID() string { return "" }

func procStat(int) (start uint64, state byte, ok bool) { return 0, 0, false }

func signalProcess(record, syscall.Signal) {}

func markedProcesses(string) []int { return nil }

func watch(ctx context.Context, recs []*record, ended func(i int) bool) error {
	for i := range recs {
		if !ended(i) {
			return nil
		}
	}
	<-ctx.Done()
	return nil
}
