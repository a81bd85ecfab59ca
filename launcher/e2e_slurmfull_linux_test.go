package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// smallHome is a home whose state directory is on a file system of its own, of some MB.
func smallHome(t *testing.T, o slurmtest.Options) (*testkit.Home, *slurmtest.Cluster) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIP: only root can make small file systems")
	}
	h, c := slurmHome(t, o)
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", h.Dir, "tmpfs", 0, "size=24m,mode=0700"); err != nil {
		t.Skipf("SKIP: no small file systems here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(h.Dir, unix.MNT_DETACH) })
	return h, c
}

// fill leaves no byte of room beside a home's state, and gives how to make room again.
func fill(t *testing.T, h *testkit.Home) (free func()) {
	t.Helper()
	path := filepath.Join(h.Dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 64<<10))
	}
	for err = nil; err == nil; {
		_, err = f.Write([]byte{0})
	}
	_ = f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A home without room: what cannot be done says what, where and what to do; jobs that wait
// for that go on by themselves when there is room, and nothing of what ran meanwhile is lost.
func TestRootSlurmFullHome(t *testing.T) {
	slurmtest.Whole(t)
	h, c := smallHome(t, slurmtest.Options{Nodes: 2})
	h.Write("queue.toml", slurmSpec("max = 2"))
	free := fill(t, h)
	r := h.Run("up", "queue.toml")
	if r.Code == 0 || !strings.Contains(r.Err, h.Dir+"/clusters/queue/") || !strings.Contains(r.Err, "no space left") || !strings.Contains(r.Err, "hint: make room") {
		t.Errorf("up without room: %s", r)
	}
	free()
	h.OK("up", "queue.toml")

	free = fill(t, h)
	run := h.Start("run", "--nodes", "2", "--", "sh", "-c", "echo start $RANK; until [ -e go ]; do sleep 0.1; done; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo done $RANK")
	says := func(words ...string) {
		t.Helper()
		testkit.Eventually(t, testkit.Bound, func() string {
			out := h.OK("status") + h.OK("why", "burst")
			for _, w := range words {
				if !strings.Contains(out, w) {
					return fmt.Sprintf("%q is not said: %s", w, out)
				}
			}
			return ""
		})
	}
	says("no room in the state directory", h.Dir+"/clusters/queue/slurm/", "make room there")
	if jobs := c.OK(t, "squeue", "-h", "-t", "all"); jobs != "" {
		t.Errorf("asked for though it could not be written down: %q", jobs)
	}
	free()
	testkit.Eventually(t, testkit.Bound, func() string {
		if strings.Count(run.Out(), "start ") < 2 {
			return "started: " + run.Out()
		}
		return ""
	})

	free = fill(t, h)
	h.Write("go", "") // not on that file system
	says("output cannot be written and waits on the nodes", h.Dir+"/clusters/queue/", "no space left", "make room")
	free()
	r = run.Wait()
	if r.Code != 0 || strings.Count(r.Out, "done 0\n") != 1 || strings.Count(r.Out, "done 1\n") != 1 || strings.Count(r.Out, "x") != 6_000_000 {
		t.Errorf("after that: exit code %d, %d bytes: %s", r.Code, len(r.Out), r.Err)
	}
	if out := h.OK("status"); strings.Contains(out, "trouble") {
		t.Errorf("trouble that is over: %s", out)
	}
	h.OK("down", "queue")
	if bad := c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}
