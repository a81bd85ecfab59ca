package main

import (
	"fmt"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

// TestSSHLeft: down while a host cannot be reached ends all else and says which; the next
// down ends what is there then.
func TestSSHLeft(t *testing.T) {
	gated(t)
	for _, where := range []string{"here", "pool:box"} {
		t.Run(where, func(t *testing.T) {
			l := testkit.SSHD(t)
			h := testkit.New(t)
			a := l.Start("a", testkit.ServerOptions{})
			b := l.Start("b", testkit.ServerOptions{})
			spec := sshSpec(l, fmt.Sprintf("%q, %q", hostPort(a), hostPort(b)), "min = 2")
			h.Write("boxes.toml", strings.Replace(spec, `where = "here"`, fmt.Sprintf("where = %q", where), 1))
			h.OK("up", "boxes.toml")
			out := h.OK("run", "--", "echo", "ran")
			b.Stop()
			r := h.Run("down", "boxes")
			if left := hostPort(b) + " (box-1)"; r.Code != 124 || !strings.Contains(r.Err, "nothing confirmed the end of "+left) || !strings.Contains(r.Err, "launcher down boxes") {
				t.Errorf("down with a host away: %s", r)
			}
			if left := leftOn(t, a); len(left) != 1 || len(processesOn(a)) > 0 {
				t.Errorf("left on the host that was reached: %q", left)
			}
			if n := len(h.Processes()); n > 0 {
				t.Errorf("%d processes are left here", n)
			}
			b.Restart()
			h.OK("down", "boxes")
			for _, s := range []*testkit.Server{a, b} {
				if left := leftOn(t, s); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
					t.Errorf("left on %s after the second down: %q", s.Name, left)
				}
			}
			h.OK("down", "boxes") // nothing to do is no error
			if got := h.OK("logs", "1", "-c", "boxes"); got != out {
				t.Errorf("the record: %q", got)
			}
		})
	}
}

// TestSSHHeadAway: down while the machine with the head cannot be reached says so, and the
// next down ends it.
func TestSSHHeadAway(t *testing.T) {
	gated(t)
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{})
	h.Write("boxes.toml", headIn(l, fmt.Sprintf("%q", hostPort(a)), ""))
	h.OK("up", "boxes.toml")
	a.Stop()
	if r := h.Run("down", "boxes"); r.Code != 124 || !strings.Contains(r.Err, "the head of cluster boxes, on "+hostPort(a)+", could not be told") {
		t.Errorf("down with the head's host away: %s", r)
	}
	if n := len(h.Processes()); n > 0 {
		t.Errorf("%d processes are left here", n)
	}
	a.Restart()
	h.OK("down", "boxes")
	if left := leftOn(t, a); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
		t.Errorf("left on the host after the second down: %q", left)
	}
}
