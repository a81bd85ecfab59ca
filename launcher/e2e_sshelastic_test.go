package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// TestSSHElastic: a host that is not there is told of with its reason and comes by itself
// when it is; a changed spec is applied and what changed is printed.
func TestSSHElastic(t *testing.T) {
	everySSH(t)
	l := testkit.SSHD(t)
	h := testkit.New(t)
	t.Cleanup(func() { h.Run("down", "boxes") })
	a := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{})
	b.Stop()
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q, %q", hostPort(a), hostPort(b)), "min = 1"))
	if out := up(t, h); !strings.Contains(out, "cluster boxes is up: 1 node") || !strings.Contains(out, hostPort(b)) || !strings.Contains(out, "nothing listens") {
		t.Errorf("up with a host that is away: %q", out)
	}
	if out := h.OK("status"); !strings.Contains(out, "1 failed") || !strings.Contains(out, hostPort(b)+" (box-1)") {
		t.Errorf("status: %s", out)
	}
	b.Restart()
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.OK("status"); !strings.Contains(out, "2 of 2 nodes up") {
			return "the host that is back has not joined: " + out
		}
		return ""
	})

	// One host more, and another environment.
	c := l.Start("c", testkit.ServerOptions{})
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q, %q, %q", hostPort(a), hostPort(b), hostPort(c)), "min = 3\nenv = { COLOUR = \"blue\" }"))
	out := up(t, h, "--yes")
	t.Log(out)
	if !strings.Contains(out, hostPort(c)) || !strings.Contains(out, "changed are env") || !strings.Contains(out, "3 nodes") {
		t.Errorf("up with a changed spec: %q", out)
	}
	if out := h.OK("run", "--", "sh", "-c", "echo $COLOUR"); out != "blue\n" {
		t.Errorf("the new environment: %q", out)
	}
	// The middle one less: the others keep their places, their nodes and their work.
	h.OK("run", "--detach", "--name", "stays", "--", "sh", "-c", "until [ -e "+h.Dir+"/go ]; do sleep 0.1; done; echo attempt $LAUNCHER_ATTEMPT")
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q, %q", hostPort(a), hostPort(c)), "env = { COLOUR = \"blue\" }"))
	out = up(t, h, "--yes")
	t.Log(out)
	if !strings.Contains(out, hostPort(b)) || !strings.Contains(out, "2 nodes") {
		t.Errorf("up with a host less: %q", out)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if left := leftOn(t, b); len(left) != 1 {
			return fmt.Sprintf("left on the host that is not in the spec: %q", left)
		}
		return ""
	})
	if out := h.OK("nodes"); !strings.Contains(out, "box-0") || !strings.Contains(out, "box-2") {
		t.Errorf("nodes: %s", out)
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.OK("wait", "2")
	if out := h.OK("logs", "2"); !strings.HasPrefix(out, "attempt ") {
		t.Errorf("work over the changes: %q", out)
	}
	h.OK("down", "boxes")
}

// up gives all that the command prints.
func up(t *testing.T, h *testkit.Home, more ...string) string {
	t.Helper()
	r := h.Run(append([]string{"up", "boxes.toml"}, more...)...)
	if r.Code != 0 {
		t.Fatalf("up: %s", r)
	}
	return r.Err + r.Out
}

// TestSSHProof: when all of a node dies its host, asked, says so, and what ran there runs
// elsewhere at once: the node is known to be gone, not only silent.
func TestSSHProof(t *testing.T) {
	everySSH(t)
	l := testkit.SSHD(t)
	h := testkit.New(t)
	t.Cleanup(func() { h.Run("down", "boxes") })
	a := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{})
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q, %q", hostPort(a), hostPort(b)), "min = 2"))
	h.OK("up", "boxes.toml")
	mark := filepath.Join(h.Dir, "where")
	h.OK("run", "--detach", "--cpus", "2", "--", "sh", "-c", "echo $HOME $LAUNCHER_ATTEMPT >>"+mark+"; sleep 300")
	var homes []string
	started := func(n int) {
		t.Helper()
		testkit.Eventually(t, testkit.Bound, func() string {
			x, _ := os.ReadFile(mark)
			if homes = strings.Split(strings.TrimSpace(string(x)), "\n"); len(homes) != n || homes[0] == "" {
				return fmt.Sprintf("started: %q\n%s", x, h.Run("why", "1").Out)
			}
			return ""
		})
	}
	started(1)
	first, other := a, b
	if strings.HasPrefix(homes[0], b.Home+" ") {
		first, other = b, a
	}
	began := time.Now()
	for _, pid := range below(first.Home + "/.launcher/bin/") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	started(2)
	t.Logf("it ran again after %s", time.Since(began))
	if homes[1] != other.Home+" 2" && homes[1] != first.Home+" 2" {
		t.Errorf("it ran again as %q", homes[1])
	}
	if out := h.OK("nodes", "--all"); strings.Contains(out, "lost") {
		t.Errorf("the node counts as lost, its end is known: %s", out)
	}
	if out := h.OK("logs", "1"); strings.Contains(out, "silent") {
		t.Errorf("logs: %s", out)
	}
	h.OK("cancel", "1")
	h.OK("down", "boxes")
}

// below are the processes of nodes whose program lies in a directory; the process that
// serves the broker is none of them.
func below(dir string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		b, err := os.ReadFile(p)
		args := strings.Split(string(b), "\x00")
		if err != nil || !strings.HasPrefix(args[0], dir) || len(args) < 2 || args[1] == "host" {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(p, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
