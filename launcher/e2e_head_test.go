package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
)

// gated skips what takes its time: accept/ssh.sh has it run.
func gated(t *testing.T) {
	t.Helper()
	if os.Getenv("LAUNCHER_TEST_SSH") != "all" {
		t.Skip("SKIP: only with LAUNCHER_TEST_SSH=all")
	}
}

// processesOn finds what runs of launcher's on a host, its users' processes included.
func processesOn(s *testkit.Server) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		exe, _ := os.Readlink(d + "/exe")
		env, _ := os.ReadFile(d + "/environ")
		if strings.HasPrefix(exe, s.Home+"/.launcher/") || bytes.Contains(env, []byte("="+s.Home+"/.launcher/")) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			pids = append(pids, pid)
		}
	}
	return pids
}

func signalAll(pids []int, sig syscall.Signal) {
	for _, p := range pids {
		_ = syscall.Kill(p, sig)
	}
}

// powerOff ends a host: its sshd and everything of launcher's, without a word to anybody.
func powerOff(t *testing.T, s *testkit.Server) {
	t.Helper()
	signalAll(processesOn(s), syscall.SIGSTOP)
	s.Stop()
	testkit.Eventually(t, testkit.Bound, func() string {
		pids := processesOn(s)
		signalAll(pids, syscall.SIGKILL)
		if len(pids) > 0 {
			return fmt.Sprintf("%d processes are left on %s", len(pids), s.Name)
		}
		return ""
	})
}

// lines counts those of a file that are not empty.
func lines(path string) []string {
	b, _ := os.ReadFile(path)
	return strings.Fields(string(b))
}

// headOn reports whether the state of a cluster's head is on a host.
func headOn(t *testing.T, s *testkit.Server) bool {
	t.Helper()
	return slices.ContainsFunc(leftOn(t, s), func(p string) bool { return strings.HasSuffix(p, "/clusters/boxes/head.config") })
}

// showHeads prints what the heads on hosts say when the test fails.
func showHeads(t *testing.T, hosts ...*testkit.Server) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, s := range hosts {
			for _, glob := range []string{"head.log", "nodes/*/agent.log"} {
				logs, _ := filepath.Glob(filepath.Join(s.Home, ".launcher/hosts/*/*/clusters/*", glob))
				for _, p := range logs {
					b, _ := os.ReadFile(p)
					t.Logf("%s: %s:\n%s", s.Name, p, b[max(0, len(b)-8000):])
				}
			}
		}
	})
}

func copied(t *testing.T, h *testkit.Home, n int) {
	t.Helper()
	testkit.Eventually(t, testkit.Bound, func() string {
		out := h.OK("status")
		for l := range strings.Lines(out) {
			if strings.HasPrefix(l, "journal ") && strings.Count(l, "box-") == n {
				return ""
			}
		}
		return "the journal is not copied: " + out
	})
}

// TestSSHHeadLost: everything on the head's host is killed while an array runs there and
// elsewhere. Another host has the head then, every element's end is in the record once, and
// what the lost host did not finish was run again.
func TestSSHHeadLost(t *testing.T) {
	gated(t)
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{})
	c := l.Start("c", testkit.ServerOptions{})
	h.Write("boxes.toml", headIn(l, fmt.Sprintf("%q, %q, %q", hostPort(a), hostPort(b), hostPort(c)), "min = 3"))
	h.OK("up", "boxes.toml")
	copied(t, h, 2)
	showHeads(t, a, b, c)
	ledger := filepath.Join(l.Dir, "ledger")
	if err := os.WriteFile(ledger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.Start("run", "--array", "0-59", "--", "sh", "-c", "sleep 0.3; echo $LAUNCHER_TASK_INDEX.$LAUNCHER_ATTEMPT >> "+ledger+"; echo $LAUNCHER_TASK_INDEX")
	testkit.Eventually(t, testkit.Bound, func() string {
		if n := len(lines(ledger)); n < 10 {
			return fmt.Sprintf("%d elements have run; %s", n, r.Err())
		}
		return ""
	})
	powerOff(t, a)
	testkit.Eventually(t, testkit.Bound, func() string {
		if !headOn(t, b) && !headOn(t, c) {
			return "no other host has the head"
		}
		if r := h.Run("status"); !strings.Contains(r.Out, "journal") {
			return r.String()
		}
		return ""
	})
	// The host is back: what is left of the head there goes, and a node comes.
	a.Restart()
	testkit.Eventually(t, testkit.Bound, func() string {
		if headOn(t, a) {
			return "the old head's state is still there"
		}
		if out := h.OK("status"); !strings.Contains(out, "3 of 3 nodes up") {
			return out
		}
		return ""
	})
	got := r.Wait()
	if got.Code != 0 {
		t.Fatalf("the array: %s", got)
	}
	// What a lost machine had of the output is lost with it; that the elements ran is not.
	ran := map[string]bool{}
	for _, l := range lines(ledger) {
		i, _, _ := strings.Cut(l, ".")
		ran[i] = true
	}
	if len(ran) != 60 {
		t.Errorf("%d of 60 elements have run", len(ran))
	}
	var done int
	for l := range strings.Lines(h.OK("tasks", "1")) {
		if strings.Contains(l, " done ") {
			done++
		}
	}
	if done != 60 {
		t.Errorf("%d of 60 elements are done", done)
	}
	if out := h.OK("jobs", "--all"); !strings.Contains(out, "done") || strings.Count(out, "\n") != 2 {
		t.Errorf("jobs: %s", out)
	}
	if out := h.OK("run", "--", "echo", "after"); out != "after\n" {
		t.Errorf("a job afterwards: %q", out)
	}
	copied(t, h, 2)
	h.OK("down", "boxes")
	for _, s := range []*testkit.Server{a, b, c} {
		if left := leftOn(t, s); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
			t.Errorf("left on %s after down: %q", s.Name, left)
		}
	}
}

// TestSSHHeadAuto: a spec that does not say where gets the head on its first host, or, where
// that does not answer, on another one, and up says so. What was begun there stays there.
func TestSSHHeadAuto(t *testing.T) {
	gated(t)
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{})
	c := l.Start("c", testkit.ServerOptions{})
	auto := func(hosts ...*testkit.Server) string {
		var names []string
		for _, s := range hosts {
			names = append(names, fmt.Sprintf("%q", hostPort(s)))
		}
		return strings.Replace(sshSpec(l, strings.Join(names, ", "), ""), `where = "here"`, "", 1)
	}
	h.Write("boxes.toml", auto(a, b))
	if r := h.Run("up", "boxes.toml"); r.Code != 0 || strings.Contains(r.Err, "the head is on") || !headOn(t, a) || headOn(t, b) {
		t.Fatalf("the head is not on the first host: %s", r)
	}
	h.OK("down", "boxes")
	a.Stop()
	h.Write("boxes.toml", auto(a, b, c))
	r := h.Run("up", "boxes.toml")
	if r.Code != 0 || !strings.Contains(r.Err, "the head is on "+hostPort(b)+": "+hostPort(a)+": ") || !strings.Contains(r.Err, "nothing listens") || !headOn(t, b) || headOn(t, c) {
		t.Errorf("up without the first host: %s", r)
	}
	if out := h.OK("run", "--", "echo", "ran"); out != "ran\n" {
		t.Errorf("run: %q", out)
	}
	a.Restart()
	h.OK("up", "boxes.toml")
	if headOn(t, a) || !headOn(t, b) {
		t.Error("the head has moved")
	}
	h.OK("down", "boxes")
	for _, s := range []*testkit.Server{a, b, c} {
		testkit.Eventually(t, testkit.Bound, func() string {
			if left := leftOn(t, s); len(left) > 1 || len(left) == 1 && !strings.HasPrefix(left[0], "bin/") {
				return fmt.Sprintf("left on %s after down: %q", s.Name, left)
			}
			return ""
		})
	}
	// None of them: that is the cluster's failure.
	a.Stop()
	b.Stop()
	h.Write("boxes.toml", auto(a, b))
	if r := h.Run("up", "--wait", "3s", "boxes.toml"); r.Code == 0 || !strings.Contains(r.Err, hostPort(a)+" (box-0)") || !strings.Contains(r.Err, hostPort(b)+" (box-1)") {
		t.Errorf("up without hosts: %s", r)
	}
	h.OK("down", "boxes")
}
