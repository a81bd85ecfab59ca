//go:build linux

package collectives

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func bytesAcked(c *net.TCPConn) int64 {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1
	}
	acked := int64(-1)
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			acked = int64(info.Bytes_acked)
		}
	})
	return acked
}

// spreadOver puts n ranks on nodes, unevenly.
func spreadOver(n, nodes int) []int {
	out := make([]int, nodes)
	for i := range out {
		out[i] = n / nodes
	}
	for i := range n % nodes {
		out[i]++
	}
	if nodes > 1 && out[1] > 1 { // not near-equal parts, which could hide a mistake
		out[0]++
		out[1]--
	}
	return out
}

// findPython is the command of a Python rank, if there is a python with numpy.
var findPython = sync.OnceValues(func() ([]string, bool) {
	root, err := filepath.Abs("..")
	if err != nil {
		return nil, false
	}
	for _, py := range []string{os.Getenv("LAUNCHER_TEST_PYTHON"), filepath.Join(root, ".venv/bin/python"), "python3"} {
		if py != "" && exec.Command(py, "-c", "import numpy").Run() == nil {
			return []string{py, filepath.Join(root, "python/tests/collective_rank.py")}, true
		}
	}
	return nil, false
})

// TestMixedLanguages: Go and Python ranks in one group do all operations, and come to
// the same bits.
func TestMixedLanguages(t *testing.T) {
	py, ok := findPython()
	if !ok {
		t.Skip("SKIP: there is no python with numpy (make setup makes one)")
	}
	c := newCrew(t, 2, 0)
	for i := range 5 {
		if i%2 == 1 {
			c.ranks = append(c.ranks, start(t, "rank"))
		} else {
			c.ranks = append(c.ranks, start(t, "rank", py...))
		}
	}
	for _, counts := range [][]int{{2}, {3}, {5}, {1, 1}, {2, 3}} {
		c.form(order{Round: 8192}, counts...).run("all", uint64(len(counts)+counts[0]), 12007)
		if t.Failed() {
			return
		}
	}
}

// TestEveryWorldSize holds all operations to the serial reference at every world size
// from 1 to 17 on 1 to 3 nodes, each rank and agent a process. Each group does a part of
// the types; all are done at many sizes. Under the race detector it is a few sizes.
func TestEveryWorldSize(t *testing.T) {
	c := newCrew(t, 3, slices.Max(worldSizes))
	for _, n := range worldSizes {
		for nodes := 1; nodes <= min(3, n); nodes++ {
			// Short rounds make short vectors take many.
			c.form(order{Round: 8192}, spreadOver(n, nodes)...).run("all", uint64(n*10+nodes), 12007, 1+n+nodes)
			if t.Failed() {
				return
			}
		}
	}
}

// TestPythonSDK runs the tests of the Python side by itself.
func TestPythonSDK(t *testing.T) {
	py, ok := findPython()
	if !ok {
		t.Skip("SKIP: there is no python with numpy (make setup makes one)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, py[0], "-W", "error", "-m", "unittest", "test_collective")
	cmd.Dir = filepath.Dir(py[1])
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "\nOK") {
		t.Fatalf("%v\n%s", err, out)
	}
}
