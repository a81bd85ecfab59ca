package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
)

// killHere kills all of a home's processes on this machine, as its reboot does.
func killHere(t *testing.T, h *testkit.Home) {
	t.Helper()
	testkit.Eventually(t, testkit.Bound, func() string {
		ps := h.Processes()
		for _, p := range ps {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		if len(ps) > 0 {
			return fmt.Sprintf("%d processes are left", len(ps))
		}
		return ""
	})
}

// TestSSHAsleep: with the head on a host and nothing of the cluster left here, any command
// starts what it needs here, once, however many come at a time.
func TestSSHAsleep(t *testing.T) {
	gated(t)
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{})
	h.Write("boxes.toml", headIn(l, fmt.Sprintf("%q", hostPort(a)), ""))
	h.OK("up", "boxes.toml")
	h.OK("run", "--", "echo", "before")
	killHere(t, h)
	var all []*testkit.Running
	for _, word := range []string{"one", "two", "three"} {
		all = append(all, h.Start("run", "--", "echo", word))
	}
	for i, word := range []string{"one", "two", "three"} {
		if r := all[i].Wait(); r.Code != 0 || r.Out != word+"\n" {
			t.Errorf("wanted %q: %s", word, r)
		}
	}
	if out := h.OK("logs", "1"); out != "before\n" {
		t.Errorf("logs: %q", out)
	}
	if n := len(h.PIDs("head-supervise")); n != 1 {
		t.Errorf("%d supervisors run here", n)
	}
	killHere(t, h)
	h.OK("down", "boxes")
	if left := leftOn(t, a); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
		t.Errorf("left on the host after down: %q", left)
	}
}

// TestSSHAsleepAsks: where reaching the head takes a question, it is asked at the command's
// terminal; without one the command says what it lacks.
func TestSSHAsleepAsks(t *testing.T) {
	gated(t)
	l := testkit.SSHD(t)
	h := testkit.New(t)
	h.Env = append(h.Env, "SSH_AUTH_SOCK=")
	a := l.Start("a", testkit.ServerOptions{})
	h.Write("boxes.toml", askingSpec(l, "pool:box", lockedKey(t, l, a), a))
	up := h.StartTTY("up", "boxes.toml")
	up.Expect("Passphrase of ")
	up.Type("open sesame")
	up.Expect("cluster boxes is up: 1 node")
	up.Wait()
	killHere(t, h)
	h.Fails(125, []string{"needs a passphrase", "ssh-add"}, "run", "--", "echo", "never")
	r := h.StartTTY("run", "--", "echo", "asked")
	r.Expect("Passphrase of ")
	r.Type("open sesame")
	r.Expect("asked\r\n")
	r.Wait()
	h.OK("down", "boxes")
}
