package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

// sshSpec is a spec whose hosts are real sshds on this machine.
func sshSpec(l *testkit.Lab, hosts, more string) string {
	return fmt.Sprintf(`version = 1
name = "boxes"
[head]
where = "here"
[[pool]]
name = "box"
backend = "ssh"
hosts = [%s]
identity = %q
known_hosts = %q
ssh_config = %q
resources = { cpu = 2, slot = 2 }
%s
`, hosts, l.Key, l.KnownHosts, l.Config, more)
}

// leftOn lists the files of launcher's in the home of a server's user.
func leftOn(t *testing.T, s *testkit.Server) (out []string) {
	t.Helper()
	root := filepath.Join(s.Home, ".launcher")
	_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(p, root+"/"))
		}
		return nil
	})
	return out
}

func hostPort(s *testkit.Server) string { return fmt.Sprintf("%s:%d", s.IP, s.Port) }

func TestSSH(t *testing.T) {
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{NoSFTP: true, Lines: []string{"MaxSessions 1"}})
	dead := "127.9.9.9:1"
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q, %q, %q", hostPort(a), hostPort(b), dead), "min = 2"))
	out := h.OK("up", "boxes.toml")
	if !strings.Contains(out, "cluster boxes is up: 2 nodes") {
		t.Errorf("up: %q", out)
	}
	if out := h.OK("status"); !strings.Contains(out, "1 failed") || !strings.Contains(out, dead+" (box-2)") || !strings.Contains(out, "nothing listens") {
		t.Errorf("status does not say what is wrong with the third: %s", out)
	}
	if out := h.OK("why", "box"); !strings.Contains(out, dead) {
		t.Errorf("why: %s", out)
	}
	out = h.OK("run", "--array", "0-19", "--", "sh", "-c", "echo $LAUNCHER_TASK_INDEX")
	if n := len(strings.Fields(out)); n != 20 {
		t.Errorf("an array of 20 printed %d lines: %q", n, out)
	}
	if out := h.OK("run", "--nodes", "2", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE"); strings.Count(out, "of 2") != 2 {
		t.Errorf("a gang on two hosts: %q", out)
	}
	// A changed spec: one host less.
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q", hostPort(b)), ""))
	if out := h.OK("up", "--yes", "boxes.toml"); !strings.Contains(out, "1 node") {
		t.Errorf("up with one host: %q", out)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if left := leftOn(t, a); len(left) != 1 {
			return fmt.Sprintf("left on the host that the spec has no more: %q", left)
		}
		return ""
	})
	if out := h.OK("run", "--", "echo", "still"); out != "still\n" {
		t.Errorf("run after the change: %q", out)
	}
	h.OK("down", "boxes")
	for _, s := range []*testkit.Server{a, b} {
		if left := leftOn(t, s); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
			t.Errorf("left on %s after down: %q", s.Name, left)
		}
	}
}
