package supervisor_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/agent/supervisor"
	"launcher/agent/supervisor/supervisortest"
)

// headStandIn is a head that keeps its port: it answers each connection with its pid
// and restarts. "crash" in its directory makes it die at once and counts how often, "done" ends it.
func headStandIn() int {
	dir := os.Args[3]
	c, err := supervisor.Connect(context.Background())
	if err != nil {
		return 1
	}
	has := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	if f, err := os.OpenFile(filepath.Join(dir, "crash"), os.O_WRONLY|os.O_APPEND, 0); err == nil {
		_, _ = f.WriteString("x") // one more
		return 2
	}
	var l net.Listener
	if f := c.FDs()["tcp"]; f != nil {
		l, err = net.FileListener(f)
	} else if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
		f, _ := l.(*net.TCPListener).File()
		err = c.StoreFD(context.Background(), "tcp", f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.WriteFile(filepath.Join(dir, "addr.tmp"), []byte(l.Addr().String()), 0o600)
	os.Rename(filepath.Join(dir, "addr.tmp"), filepath.Join(dir, "addr"))
	for {
		conn, err := l.Accept()
		if err != nil {
			return 1
		}
		fmt.Fprintf(conn, "%d %d", os.Getpid(), c.Restarts())
		conn.Close()
		if has("done") {
			return supervisor.ExitDone
		}
	}
}

func askHead(t *testing.T, dir string) (pid, restarts int) {
	t.Helper()
	waitFor(t, "the head answers", func() bool {
		addr, err := os.ReadFile(filepath.Join(dir, "addr"))
		if err != nil {
			return false
		}
		c, err := net.DialTimeout("tcp", string(addr), time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(bound))
		b, err := io.ReadAll(c)
		n, _ := fmt.Sscan(string(b), &pid, &restarts)
		return err == nil && n == 2
	})
	return pid, restarts
}

func startHead(t *testing.T) (dir string, cmd *exec.Cmd) {
	t.Helper()
	dir = t.TempDir()
	cmd = supervisortest.Command("head-supervise", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "head.log"))
			t.Logf("head.log:\n%s", log)
		}
	})
	return dir, cmd
}

// A connection made while there is no head is answered by the next one.
func TestHeadKilled(t *testing.T) {
	dir, cmd := startHead(t)
	first, _ := askHead(t, dir)
	addr, _ := os.ReadFile(filepath.Join(dir, "addr"))
	for i := 1; i <= 3; i++ {
		pid, _ := askHead(t, dir)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", string(addr))
		if err != nil {
			t.Fatalf("while the head is away its port does not answer: %v", err)
		}
		conn.SetDeadline(time.Now().Add(bound))
		b, err := io.ReadAll(conn)
		conn.Close()
		if want := " " + strconv.Itoa(i); err != nil && !strings.Contains(err.Error(), "reset") || err == nil && !strings.HasSuffix(string(b), want) {
			t.Errorf("after death %d the answer is %q, %v", i, b, err)
		}
		if now, restarts := askHead(t, dir); now == first || restarts != i {
			t.Errorf("after death %d: pid %d, restarts %d", i, now, restarts)
		}
	}
	// A second supervisor is refused.
	b, err := supervisortest.Command("head-supervise", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(b), "in use by a running supervisor") {
		t.Errorf("a second supervisor: %v, %s", err, b)
	}
	if err := os.WriteFile(filepath.Join(dir, "done"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	waitFor(t, "the supervisor ends with its head", func() bool {
		if conn, err := net.Dial("tcp", string(addr)); err == nil { // it looks at each connection
			conn.Close()
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("after the head is done: %v", err)
			}
			return true
		default:
			return false
		}
	})
}

func TestHeadDiesWithItsSupervisor(t *testing.T) {
	dir, cmd := startHead(t)
	pid, _ := askHead(t, dir)
	head, err := proc.ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	began := time.Now()
	for len(alive([]proc.Stat{head})) > 0 {
		if time.Since(began) > goneBound {
			t.Fatalf("the head lives %v after its supervisor", goneBound)
		}
		time.Sleep(2 * time.Millisecond) // sleep: bounded poll
	}
	// And the lock went too.
	os.Remove(filepath.Join(dir, "addr"))
	again := supervisortest.Command("head-supervise", dir)
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Process.Kill(); again.Wait() })
	askHead(t, dir)
}

// One that dies at once is not started as fast as the machine can.
func TestBackOff(t *testing.T) {
	dir, cmd := startHead(t)
	pid, _ := askHead(t, dir)
	os.WriteFile(filepath.Join(dir, "crash"), nil, 0o600)
	began := time.Now()
	unix.Kill(pid, unix.SIGKILL)
	time.Sleep(500 * time.Millisecond) // sleep: time for restarts that the back-off must keep few
	for {
		if st, err := os.Stat(filepath.Join(dir, "crash")); err != nil || st.Size() >= 2 {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatal("not restarted again")
		}
		time.Sleep(2 * time.Millisecond) // sleep: bounded poll
	}
	os.Remove(filepath.Join(dir, "crash"))
	_, restarts := askHead(t, dir)
	if d := time.Since(began); restarts < 2 || restarts > 3+int(d/(50*time.Millisecond)) {
		t.Errorf("%d restarts in %v", restarts, d)
	}
	cmd.Process.Signal(unix.SIGTERM) // the head has no handler: it dies, and that is the end
	if err := cmd.Wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
}
