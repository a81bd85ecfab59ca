package supervisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/agent/spool"
	"launcher/agent/supervisor/supervisortest"
	"launcher/internal/logx"
	"launcher/wire"
)

// users are who the kill tests run as: the tester and, when that is root, a plain user.
func users() map[string]*syscall.Credential {
	u := map[string]*syscall.Credential{"self": nil}
	if os.Getuid() == 0 {
		u["plain"] = &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: false}
	}
	return u
}

// node starts a node whose agent runs the four shapes, and waits until all of them count.
func node(t *testing.T, cred *syscall.Credential, labels ...string) (*supervisortest.Node, []proc.Stat) {
	t.Helper()
	dir, err := os.MkdirTemp("", "node")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
		// Python is found through root's own PATH, which others may not enter.
		t.Setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
		t.Setenv("HOME", "/nonexistent")
	}
	n := supervisortest.StartNode(t, supervisortest.Binary(t), wire.NodeConfig{Cluster: "test", Node: "local-0", Epoch: 3, Dir: dir,
		JoinKey: []byte("the-secret-key"), Labels: map[string]string{"deaf": strings.Join(labels, "")}}, cred)
	lives(t, dir, 0)
	for i := range 4 {
		waitFor(t, fmt.Sprintf("shape %d counts", i), func() bool {
			out := outputs(t, dir)
			return strings.Contains(out[i], "\n3\n")
		})
	}
	// guard → supervisor → agent and what the shapes are: 1 + 2 + 2 + 2 processes.
	below := proc.Descendants(n.Guard.Pid)
	if len(below) < 2+7 {
		t.Fatalf("only %d processes below the guard: %+v", len(below), below)
	}
	t.Cleanup(func() {
		for _, p := range alive(below) {
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
	})
	return n, below
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(bound); !ok(); time.Sleep(2 * time.Millisecond) { // sleep: bounded poll
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", bound, what)
		}
	}
}

// outputs reads what the shapes have written, out of the spool's files.
func outputs(t *testing.T, dir string) map[int]string {
	t.Helper()
	out := map[int]string{}
	files, _ := filepath.Glob(filepath.Join(dir, "spool", "7", "*.log"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for len(b) > 0 {
			h, data, n, err := wire.ParseLogFrame(b)
			if err != nil || n == 0 { // the spooler is at it
				break
			}
			out[int(h.Index)] += string(data)
			b = b[n:]
		}
	}
	return out
}

// alive gives those of the processes that still run, being the same.
func alive(ps []proc.Stat) (left []proc.Stat) {
	for _, p := range ps {
		if now, err := proc.ReadStat(p.PID); err == nil && now.Start == p.Start && now.State != 'Z' {
			left = append(left, now)
		}
	}
	return left
}

func forUsers(t *testing.T, f func(t *testing.T, cred *syscall.Credential)) {
	for name, cred := range users() {
		t.Run(name, func(t *testing.T) { f(t, cred) })
	}
}

// The agent is killed three times: all shapes run on with the same pids, not one line of
// their output is lost, and their exit codes are right.
func TestAgentKilled(t *testing.T) {
	forUsers(t, func(t *testing.T, cred *syscall.Credential) {
		n, below := node(t, cred)
		for life := range 3 {
			agent, _, restarts := lives(t, n.Dir, life)
			if restarts != life {
				t.Errorf("life %d of the agent counts %d restarts", life, restarts)
			}
			time.Sleep(10 * time.Millisecond) // sleep: into the flow of output
			if err := unix.Kill(agent, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		lives(t, n.Dir, 3)
		if left := alive(below); len(left) != len(below)-1 { // but for the first agent
			t.Errorf("%d of %d processes are the same after the agent's deaths", len(left), len(below))
		}
		if err := os.WriteFile(filepath.Join(n.Dir, "stop"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if status, err := n.Wait(bound); status != 0 || err != nil {
			t.Fatalf("the guard's status: %d, %v", status, err)
		}
		if left := alive(below); len(left) != 0 {
			t.Errorf("left over: %+v", left)
		}
		b, _ := os.ReadFile(filepath.Join(n.Dir, "exits"))
		for i := range 4 {
			if want := fmt.Sprintf("%d %d\n", i, 11+i); strings.Count(string(b), want) != 1 {
				t.Errorf("ends %q, want %q once", b, want)
			}
		}
		s, err := spool.Open(spool.Config{Dir: filepath.Join(n.Dir, "spool"), Log: logx.Discard(), Notify: func(spool.Event) {}})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		out := outputs(t, n.Dir)
		for i := range 4 {
			lines := strings.Split(strings.TrimSpace(out[i]), "\n")
			for k, l := range lines[1 : len(lines)-1] {
				if l != fmt.Sprint(k+1) {
					t.Fatalf("shape %d: line %d is %q", i, k+1, l)
				}
			}
			if lines[len(lines)-1] != "end" || !strings.HasPrefix(lines[0], "pid ") {
				t.Errorf("shape %d: first line %q, last line %q", i, lines[0], lines[len(lines)-1])
			}
		}
	})
}

// Whatever of ours is killed but the agent, everything is gone at once.
func TestKilledAbove(t *testing.T) {
	cases := []struct {
		name   string
		who    func(guard, super, agent int) []int
		status int // the guard's; -1 = it was killed
	}{
		{"supervisor", func(g, s, a int) []int { return []int{s} }, 125},
		{"supervisor and agent", func(g, s, a int) []int { return []int{s, a} }, 125},
		{"agent and supervisor", func(g, s, a int) []int { return []int{a, s} }, 125},
		{"guard", func(g, s, a int) []int { return []int{g} }, -1},
		{"guard and agent", func(g, s, a int) []int { return []int{g, a} }, -1},
		{"guard and supervisor", func(g, s, a int) []int { return []int{g, s} }, -1},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			forUsers(t, func(t *testing.T, cred *syscall.Credential) {
				n, below := node(t, cred, "deaf") // a closed pipe shall not do our work
				agent, super, _ := lives(t, n.Dir, 0)
				for i, pid := range tc.who(n.Guard.Pid, super, agent) {
					// The second may have been ended already because of the first.
					if err := unix.Kill(pid, unix.SIGKILL); err != nil && (i == 0 || err != unix.ESRCH) {
						t.Fatal(err)
					}
				}
				began := time.Now()
				left := alive(below)
				for len(left) > 0 && time.Since(began) < goneBound {
					time.Sleep(5 * time.Millisecond) // sleep: bounded poll
					left = alive(below)
				}
				if len(left) > 0 {
					t.Errorf("after %v there are still %+v", goneBound, left)
				}
				if status, err := n.Wait(bound); status != tc.status || err != nil {
					t.Errorf("the guard's status: %d, %v; want %d", status, err, tc.status)
				}
				if tc.name == "guard and supervisor" {
					return // nobody is left to remove it; the next start replaces it
				}
				if _, err := os.Stat(filepath.Join(n.Dir, "agent.sock")); !os.IsNotExist(err) {
					t.Errorf("the socket is still there: %v", err)
				}
			})
		})
	}
}

// All of ours are killed at once: the first processes go with their parent, and the next
// guard of the node finds the rest before it starts anything.
func TestAllKilled(t *testing.T) {
	forUsers(t, func(t *testing.T, cred *syscall.Credential) {
		n, below := node(t, cred, "deaf")
		agent, super, _ := lives(t, n.Dir, 0)
		users := slices.DeleteFunc(below, func(p proc.Stat) bool { return p.PID == agent || p.PID == super })
		first := slices.DeleteFunc(slices.Clone(users), func(p proc.Stat) bool { return p.Parent != super })
		if len(first) != 4 {
			t.Fatalf("below the supervisor are %+v", first)
		}
		for _, pid := range []int{n.Guard.Pid, super, agent} {
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil { // so that none can act for another
				t.Fatal(err)
			}
		}
		for _, pid := range []int{n.Guard.Pid, super, agent} {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		waitFor(t, "the first processes are gone", func() bool { return len(alive(first)) == 0 })
		if _, err := n.Wait(bound); err != nil {
			t.Fatal(err)
		}
		if len(alive(users)) == 0 {
			t.Error("nothing outlived everything of ours: this shows nothing")
		}
		again := supervisortest.StartNode(t, supervisortest.Binary(t), wire.NodeConfig{Cluster: "test", Node: "local-0", Epoch: 4, Dir: n.Dir}, cred)
		lives(t, n.Dir, 1)
		if left := alive(users); len(left) != 0 {
			t.Errorf("the next life of the node runs beside %+v", left)
		}
		if err := os.WriteFile(filepath.Join(n.Dir, "stop"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if status, err := again.Wait(bound); status != 0 || err != nil {
			t.Errorf("the next guard's status: %d, %v", status, err)
		}
	})
}

// SIGTERM to either ends the node in order.
func TestStop(t *testing.T) {
	for _, who := range []string{"guard", "supervisor"} {
		t.Run(who, func(t *testing.T) {
			n, below := node(t, nil)
			_, super, _ := lives(t, n.Dir, 0)
			pid := n.Guard.Pid
			if who == "supervisor" {
				pid = super
			}
			if err := unix.Kill(pid, unix.SIGHUP); err != nil { // means nothing
				t.Fatal(err)
			}
			if err := unix.Kill(pid, unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if status, err := n.Wait(bound); status != 0 || err != nil {
				t.Errorf("the guard's status: %d, %v", status, err)
			}
			if left := alive(below); len(left) != 0 {
				t.Errorf("left over: %+v", left)
			}
			if _, err := os.Stat(filepath.Join(n.Dir, "agent.sock")); !os.IsNotExist(err) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

// The secrets of the configuration are in nobody's environment or arguments, nor on disk.
func TestSecretsStayInMemory(t *testing.T) {
	n, below := node(t, nil)
	for _, p := range append(below, proc.Stat{PID: n.Guard.Pid}) {
		for _, f := range []string{"environ", "cmdline"} {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID, f))
			if strings.Contains(string(b), "the-secret-key") {
				t.Errorf("the join key is in the %s of %d", f, p.PID)
			}
		}
	}
	filepath.Walk(n.Dir, func(path string, st os.FileInfo, err error) error {
		if err == nil && st.Mode().IsRegular() {
			if b, _ := os.ReadFile(path); strings.Contains(string(b), "the-secret-key") {
				t.Errorf("the join key is in %s", path)
			}
			if st.Mode().Perm()&0o077 != 0 && filepath.Base(path) != "stop" {
				t.Errorf("%s has mode %v", path, st.Mode())
			}
		}
		return nil
	})
}
