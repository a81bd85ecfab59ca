package main

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
)

// crashLogs are where the panics of a cluster's processes on this machine are: a dead agent is
// started again, and nobody would look.
func crashLogs(dir string) (logs []string) {
	for _, p := range []string{"head.log", "nodes/*/agent.log", "crashes/*.log"} {
		found, _ := filepath.Glob(filepath.Join(dir, p))
		logs = append(logs, found...)
	}
	return logs
}

// crashesIn counts the panics in a log, and gives the first line of the newest.
func crashesIn(path string) (n int, newest string) {
	f, err := os.Open(path)
	if err != nil {
		return 0, ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if l := lines.Text(); strings.HasPrefix(l, "panic: ") || strings.HasPrefix(l, "fatal error: ") {
			n, newest = n+1, l
		}
	}
	return n, newest
}

// keepCrashes moves the logs of nodes that have panics to the record, which outlives them.
func keepCrashes(dir string) {
	logs, _ := filepath.Glob(filepath.Join(dir, "nodes", "*", "agent.log"))
	for _, l := range logs {
		if n, _ := crashesIn(l); n > 0 {
			kept := filepath.Join(dir, "crashes")
			_ = os.MkdirAll(kept, 0o700)
			_ = os.Rename(l, filepath.Join(kept, filepath.Base(filepath.Dir(l))+".log"))
		}
	}
}
