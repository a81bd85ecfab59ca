package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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

// noNetwork is the line of sshd_config that runs what a login runs where there is no
// network at all: nothing can be reached from there by TCP, not even the host itself.
func noNetwork(t *testing.T) string {
	t.Helper()
	how := "unshare --net"
	if os.Getuid() != 0 {
		how = "unshare --user --map-current-user --net"
	}
	words := strings.Fields(how)
	if out, err := exec.Command(words[0], append(words[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("SKIP: no network namespaces here: %s", out)
	}
	return `ForceCommand exec ` + how + ` /bin/sh -c "$SSH_ORIGINAL_COMMAND"`
}

// TestSSHRoute: a host from which nothing leads to the head takes part by way of its ssh
// connection, also after that was cut.
func TestSSHRoute(t *testing.T) {
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{Lines: []string{noNetwork(t), "AllowTcpForwarding no", "AllowStreamLocalForwarding no"}})
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q", hostPort(a)), ""))
	if out := h.OK("up", "boxes.toml"); !strings.Contains(out, "cluster boxes is up: 1 node") {
		t.Errorf("up: %q", out)
	}
	if out := h.OK("run", "--", "sh", "-c", "tail -n +2 /proc/net/route | wc -l"); out != "0\n" {
		t.Fatalf("the node has a network: %q", out)
	}
	// A task runs on while the connection is cut, and its output arrives.
	r := h.Start("run", "--", "sh", "-c", "echo begun; until [ -e "+h.Dir+"/go ]; do sleep 0.1; done; echo ended")
	testkit.Eventually(t, testkit.Bound, func() string {
		if !strings.Contains(r.Out(), "begun") {
			return "the task has not begun: " + r.Err()
		}
		return ""
	})
	a.Cut()
	if err := os.WriteFile(filepath.Join(h.Dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := r.Wait(); got.Code != 0 || got.Out != "begun\nended\n" {
		t.Errorf("the task: %s", got)
	}
	h.OK("down", "boxes")
	if left := leftOn(t, a); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
		t.Errorf("left on the host after down: %q", left)
	}
}

// headIn is sshSpec with the head on the pool's first host.
func headIn(l *testkit.Lab, hosts, more string) string {
	return strings.Replace(sshSpec(l, hosts, more), `where = "here"`, `where = "pool:box"`, 1)
}

// TestSSHHead: the head is on the first host; what runs there does not need the machine
// that brought it up, which finds everything again, and has the record when all is down.
func TestSSHHead(t *testing.T) {
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{Lines: []string{noNetwork(t)}}) // reaches the head by way of us and a
	h.Write("boxes.toml", headIn(l, fmt.Sprintf("%q, %q", hostPort(a), hostPort(b)), "min = 2"))
	if out := h.OK("up", "boxes.toml"); !strings.Contains(out, "cluster boxes is up: 2 nodes") {
		t.Errorf("up: %q", out)
	}
	if left := leftOn(t, a); !slices.ContainsFunc(left, func(p string) bool { return strings.HasSuffix(p, "/clusters/boxes/head.config") }) {
		t.Fatalf("the head is not on the host: %q", left)
	}
	copied(t, h, 1)
	out := h.OK("run", "--array", "0-19", "--", "sh", "-c", "echo $LAUNCHER_TASK_INDEX")
	if n := len(strings.Fields(out)); n != 20 {
		t.Errorf("an array of 20 printed %d lines: %q", n, out)
	}
	h.OK("down", "boxes")
	for _, s := range []*testkit.Server{a, b} {
		if left := leftOn(t, s); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
			t.Errorf("left on %s after down: %q", s.Name, left)
		}
	}
	if out := h.OK("logs", "1", "-c", "boxes"); len(strings.Fields(out)) != 20 {
		t.Errorf("the record does not have the array: %q", out)
	}
}

// TestSSHLaptop: with the head on a host, the machine that brought the cluster up may die:
// work goes on, the head says that it has no broker, and up finds everything again.
func TestSSHLaptop(t *testing.T) {
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{})
	h.Write("boxes.toml", headIn(l, fmt.Sprintf("%q", hostPort(a)), ""))
	h.OK("up", "boxes.toml")
	mark := filepath.Join(l.Dir, "mark")
	h.OK("run", "--detach", "--", "sh", "-c", "echo begun; touch "+mark+"1; until [ -e "+mark+"2 ]; do sleep 0.1; done; echo ended; touch "+mark+"3")
	appears := func(path string) {
		t.Helper()
		testkit.Eventually(t, testkit.Bound, func() string {
			if _, err := os.Stat(path); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	appears(mark + "1")
	for _, p := range h.Processes() {
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if n := len(h.Processes()); n > 0 {
			return fmt.Sprintf("%d processes are left", n)
		}
		return ""
	})
	if err := os.WriteFile(mark+"2", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	appears(mark + "3")
	// On the host the head answers, and says what it lacks.
	there, _ := filepath.Glob(filepath.Join(a.Home, ".launcher/hosts/*/*"))
	if len(there) != 1 {
		t.Fatalf("directories of clusters on the host: %q", there)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		c := h.Cmd(t.Context(), "status", "-c", "boxes")
		c.Env = append(c.Env, "LAUNCHER_HOME="+there[0])
		if r := testkit.Finish(c); r.Code != 0 || !strings.Contains(r.Out, "new nodes must wait for the broker (on ") {
			return "status on the host: " + r.String()
		}
		return ""
	})
	if out := h.OK("up", "boxes.toml"); !strings.Contains(out, "cluster boxes is up: 1 node") {
		t.Errorf("up again: %q", out)
	}
	if out := h.OK("logs", "1"); out != "begun\nended\n" {
		t.Errorf("the job's output: %q", out)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.OK("status"); strings.Contains(out, "broker") {
			return "status with the broker back: " + out
		}
		return ""
	})
	// The head dies: its supervisor has another one at once, and we find it.
	for _, p := range (&testkit.Home{Dir: there[0]}).PIDs("head") {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
	if out := h.OK("run", "--", "echo", "after"); out != "after\n" {
		t.Errorf("after the head's death: %q", out)
	}
	h.OK("down", "boxes")
	// The record came back, and goes there again.
	h.OK("up", "boxes.toml")
	if out := h.OK("jobs", "--all"); strings.Count(out, "done") != 2 {
		t.Errorf("jobs of the life before: %s", out)
	}
	h.OK("down", "boxes")
	if left := leftOn(t, a); len(left) != 1 || !strings.HasPrefix(left[0], "bin/") {
		t.Errorf("left on the host after down: %q", left)
	}
}

// TestSSHDoctor: doctor looks at the hosts of a spec and leaves nothing there.
func TestSSHDoctor(t *testing.T) {
	l := testkit.SSHD(t)
	h := testkit.New(t)
	a := l.Start("a", testkit.ServerOptions{})
	h.Write("boxes.toml", sshSpec(l, fmt.Sprintf("%q, %q", hostPort(a), "127.9.9.9:1"), ""))
	r := h.Run("doctor", "boxes.toml")
	if r.Code != 1 || !strings.Contains(r.Out, "ok       "+hostPort(a)+": ") || !strings.Contains(r.Out, "error    127.9.9.9: nothing listens") {
		t.Errorf("doctor: %s", r)
	}
	if left := leftOn(t, a); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}
