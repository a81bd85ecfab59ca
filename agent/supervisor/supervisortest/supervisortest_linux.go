// Package supervisortest runs real supervisors in tests: the test binary plays the
// guard, the supervisor, and whatever agent or head the test gives.
package supervisortest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/supervisor"
	"launcher/internal/errs"
	"launcher/wire"
)

// Roles are further parts that the test binary plays, by its first argument: "agent"
// and "head" are started by the supervisors, other names by the test itself. A role
// gives its exit status.
type Roles map[string]func() int

// Main is to be called first in TestMain: it does not return when the test binary was
// started to play a part.
//
//	func TestMain(m *testing.M) {
//		supervisortest.Main(supervisortest.Roles{"agent": standIn})
//		os.Exit(m.Run())
//	}
func Main(roles Roles) {
	if len(os.Args) < 2 {
		return
	}
	var err error
	switch role := os.Args[1]; role {
	case "node":
		err = supervisor.GuardMain(context.Background(), os.Stdin)
	case "supervise":
		err = supervisor.Main(context.Background())
	case "head-supervise":
		err = supervisor.HeadMain(context.Background(), os.Args[2])
	case "process-server":
		err = supervisor.ServeProcesses(3, os.NewFile(4, "alive"), nil)
	default:
		if play := roles[role]; play != nil {
			os.Exit(play())
		}
		return
	}
	if err != nil {
		fmt.Fprint(os.Stderr, errs.Lines(err))
		os.Exit(125)
	}
	os.Exit(0)
}

// Server is a supervisor without an agent: the test itself is the agent.
type Server struct {
	path  string
	cmd   *exec.Cmd
	alive *os.File
	ended chan error
}

// Start starts a Server, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	// Not t.TempDir: a socket's path is short.
	dir, err := os.MkdirTemp("", "super")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{path: filepath.Join(dir, "s")}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := os.NewFile(uintptr(fd), "listener")
	defer l.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: s.path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 4); err != nil {
		t.Fatal(err)
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	s.cmd = Command("process-server")
	s.cmd.ExtraFiles = []*os.File{l, theirs}
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.alive, s.ended = ours, make(chan error, 1)
	go func() { s.ended <- s.cmd.Wait() }()
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("the process server ended with %v", err)
		}
	})
	return s
}

// Stop ends the supervisor and everything below it, and waits for that.
func (s *Server) Stop() error {
	s.alive.Close()
	kill := time.AfterFunc(20*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer kill.Stop()
	err := <-s.ended
	s.ended <- err // for the next caller
	return err
}

// PID is the supervisor's.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Connect is the start of an agent's life. Closing the client, which the end of the test
// does at the latest, is its end, and another may begin.
func (s *Server) Connect(t testing.TB) *supervisor.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := supervisor.Dial(ctx, s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Command is this test binary in another role.
func Command(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{role}, args...)...)
	cmd.Env = environ()
	return cmd
}

// environ is ours, without the second that a program built with the race detector sleeps
// before it exits.
func environ() []string {
	return append(os.Environ(), "GORACE="+strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
}

// Node is a guard with a supervisor and an agent, the role "agent".
type Node struct {
	Dir   string
	Guard *os.Process
	ended chan error
}

// Binary gives a path of this test binary that any user can run.
func Binary(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "launcher")
	if os.Link(exe, path) != nil {
		b, err := os.ReadFile(exe)
		if err == nil {
			err = os.WriteFile(path, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// StartNode starts a node with a binary that is this one (see Binary). cred is the user
// that it runs as, nil for our own; cfg.Dir must be accessible to it. Whatever is left
// of it at the end of the test is killed.
func StartNode(t testing.TB, binary string, cfg wire.NodeConfig, cred *syscall.Credential) *Node {
	t.Helper()
	cmd := exec.Command(binary, "node")
	cmd.Env = environ()
	cmd.Stdin = bytes.NewReader(wire.Marshal(cfg))
	cmd.Stderr = os.Stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: cred}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := &Node{Dir: cfg.Dir, Guard: cmd.Process, ended: make(chan error, 1)}
	go func() { n.ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = n.Guard.Signal(syscall.SIGTERM)
		if _, err := n.Wait(30 * time.Second); err != nil {
			t.Errorf("the guard does not end: %v", err)
			_ = n.Guard.Kill()
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(cfg.Dir, "agent.log"))
			t.Logf("agent.log:\n%s", log)
		}
	})
	return n
}

// Wait waits for the guard's end and gives its exit status (-1: killed).
func (n *Node) Wait(bound time.Duration) (status int, err error) {
	select {
	case e := <-n.ended:
		n.ended <- e // for the next caller
		if e == nil {
			return 0, nil
		}
		if x, ok := e.(*exec.ExitError); ok {
			return x.ExitCode(), nil
		}
		return -1, e
	case <-time.After(bound):
		return -1, fmt.Errorf("the guard still runs after %v", bound)
	}
}
