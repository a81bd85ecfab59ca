// Package testkit runs the real binary in tests: built once per test run, in a
// LAUNCHER_HOME of the test's own, every command bounded, and whatever the test started
// looked for and reported when it ends.
package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var build = sync.OnceValues(func() (string, error) {
	// `make` builds the binary once for all packages, and runs the tests as a user who
	// may not write the build cache.
	if b := os.Getenv("LAUNCHER_TEST_BINARY"); b != "" {
		if _, err := os.Stat(b); err == nil {
			return b, nil
		}
	}
	dir, err := os.MkdirTemp("", "launcher-testkit-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other test users run it too
		return "", err
	}
	bin := filepath.Join(dir, "launcher")
	c := exec.Command("go", "build", "-o", bin, "launcher/launcher")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building launcher: %w\n%s", err, out)
	}
	return bin, nil
})

// Main runs a package's tests and removes the binary that Binary built for them. Use it
// in TestMain of packages that call Binary.
func Main(m *testing.M) int {
	// A starter such as nohup leaves signals ignored, and commands would inherit that; a
	// signal that is caught here is back at its default in them.
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	code := m.Run()
	if b, err := build(); err == nil && b != os.Getenv("LAUNCHER_TEST_BINARY") {
		_ = os.RemoveAll(filepath.Dir(b))
	}
	return code
}

// Binary is the path of the launcher binary.
func Binary(t testing.TB) string {
	t.Helper()
	b, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Python is an interpreter that has these modules: that of .venv, or the system's. The test
// is skipped where there is none.
func Python(t testing.TB, modules ...string) string {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for root != "/" {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		root = filepath.Dir(root)
	}
	for _, py := range []string{filepath.Join(root, ".venv/bin/python"), "python3"} {
		if exec.Command(py, "-c", "import "+strings.Join(modules, ", ")).Run() == nil {
			return py
		}
	}
	t.Skipf("SKIP: no Python with %s (make setup)", strings.Join(modules, ", "))
	return ""
}

// Home is one user's launcher in a test: a state directory, a working directory, and
// commands run there.
type Home struct {
	t    testing.TB
	Dir  string // LAUNCHER_HOME
	Work string // where commands run
	User *User  // nil: ourselves
	Env  []string

	Enter []string // command that runs others elsewhere, as User
}

// Bound is how long one command may take unless it says otherwise: a machine may be slow.
const Bound = 3 * time.Minute

// New makes a Home. When the test ends, everything still running in it is killed and,
// unless the test has failed already, reported.
func New(t testing.TB) *Home { return newHome(t, nil) }

func newHome(t testing.TB, u *User) *Home {
	t.Helper()
	dir, err := os.MkdirTemp("", "lk") // short: socket paths have a limit
	if err != nil {
		t.Fatal(err)
	}
	h := &Home{t: t, Dir: filepath.Join(dir, "home"), Work: filepath.Join(dir, "work"), User: u}
	for _, d := range []string{dir, h.Dir, h.Work} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if u != nil {
			if err := os.Chown(d, u.UID, u.GID); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() {
		if left := h.Leaks(); len(left) > 0 {
			if !t.Failed() {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
			h.killAll()
		}
		if t.Failed() {
			h.dumpLogs()
		}
		_ = os.RemoveAll(dir)
	})
	return h
}

// Environ is what commands in the Home get.
func (h *Home) Environ() []string {
	var out []string
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(k, "LAUNCHER") || (h.User != nil && (k == "HOME" || k == "USER" || k == "LOGNAME" || k == "TMPDIR")) {
			continue
		}
		out = append(out, kv)
	}
	if h.User != nil {
		out = append(out, "HOME="+h.User.Home, "USER="+h.User.Name, "LOGNAME="+h.User.Name)
	}
	bin, _ := build()
	out = append(out, "LAUNCHER_HOME="+h.Dir, "PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH"))
	return append(out, h.Env...)
}

// Cmd prepares a launcher command in the Home.
func (h *Home) Cmd(ctx context.Context, args ...string) *exec.Cmd {
	h.t.Helper()
	return h.Program(ctx, Binary(h.t), args...)
}

// Program prepares any program in the Home.
func (h *Home) Program(ctx context.Context, name string, args ...string) *exec.Cmd {
	line := append(append(slices.Clone(h.Enter), name), args...)
	c := exec.CommandContext(ctx, line[0], line[1:]...)
	c.Dir, c.Env = h.Work, h.Environ()
	c.WaitDelay = 5 * time.Second
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if h.User != nil && h.Enter == nil {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(h.User.UID), Gid: uint32(h.User.GID), Groups: []uint32{uint32(h.User.GID)}}
	}
	return c
}

// Result is how a command ended.
type Result struct {
	Out, Err string
	Code     int
	Took     time.Duration
}

func (r Result) String() string {
	return fmt.Sprintf("exit code %d after %s\nstdout:\n%s\nstderr:\n%s", r.Code, r.Took.Round(time.Millisecond), r.Out, r.Err)
}

// Run runs a launcher command to its end.
func (h *Home) Run(args ...string) Result {
	h.t.Helper()
	return h.RunInput("", args...)
}

// RunInput runs a launcher command with text on its standard input.
func (h *Home) RunInput(input string, args ...string) Result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Bound)
	defer cancel()
	c := h.Cmd(ctx, args...)
	if input != "" {
		c.Stdin = strings.NewReader(input)
	}
	r := Finish(c)
	if ctx.Err() != nil {
		h.t.Fatalf("launcher %s: not done after %s\n%s", strings.Join(args, " "), Bound, r)
	}
	return r
}

// OK runs a launcher command that must end with code 0, and gives its standard output.
func (h *Home) OK(args ...string) string {
	h.t.Helper()
	r := h.Run(args...)
	if r.Code != 0 {
		h.t.Fatalf("launcher %s: %s", strings.Join(args, " "), r)
	}
	return r.Out
}

// Fails runs a launcher command that must end with a code and say every one of the given
// words on standard error or standard output.
func (h *Home) Fails(code int, words []string, args ...string) Result {
	h.t.Helper()
	r := h.Run(args...)
	if r.Code != code {
		h.t.Fatalf("launcher %s: want exit code %d, got %s", strings.Join(args, " "), code, r)
	}
	for _, w := range words {
		if !strings.Contains(r.Err+r.Out, w) {
			h.t.Errorf("launcher %s: %q is not said: %s", strings.Join(args, " "), w, r)
		}
	}
	return r
}

// Finish runs a prepared command and collects how it ended.
func Finish(c *exec.Cmd) Result {
	var out, errb bytes.Buffer
	c.Stdout, c.Stderr = &out, &errb
	t := time.Now()
	err := c.Run()
	r := Result{Out: out.String(), Err: errb.String(), Took: time.Since(t), Code: c.ProcessState.ExitCode()}
	if c.ProcessState == nil {
		r.Code, r.Err = -1, r.Err+err.Error()
	} else if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.Code = 128 + int(ws.Signal())
	}
	return r
}

// Running is a command in the background.
type Running struct {
	t    testing.TB
	Cmd  *exec.Cmd
	out  *Buffer
	err  *Buffer
	done chan struct{}
}

// Start starts a launcher command in the background; it is killed when the test ends.
func (h *Home) Start(args ...string) *Running {
	h.t.Helper()
	r := &Running{t: h.t, Cmd: h.Cmd(context.Background(), args...), out: &Buffer{}, err: &Buffer{}, done: make(chan struct{})}
	r.Cmd.Stdout, r.Cmd.Stderr = r.out, r.err
	if err := r.Cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { _ = r.Cmd.Wait(); close(r.done) }()
	h.t.Cleanup(func() { _ = r.Cmd.Process.Kill(); <-r.done })
	return r
}

// Out is what the command has written to standard output so far.
func (r *Running) Out() string { return r.out.String() }

// Err is what it has written to standard error.
func (r *Running) Err() string { return r.err.String() }

// Signal sends the command a signal.
func (r *Running) Signal(s os.Signal) {
	r.t.Helper()
	if err := r.Cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		r.t.Fatal(err)
	}
}

// Wait waits for the end of the command.
func (r *Running) Wait() Result {
	r.t.Helper()
	return r.Within(Bound)
}

// Within is Wait for what takes longer.
func (r *Running) Within(bound time.Duration) Result {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(bound):
		r.t.Fatalf("%s: not done after %s\nstdout:\n%s\nstderr:\n%s", r.Cmd, bound, r.Out(), r.Err())
	}
	code := r.Cmd.ProcessState.ExitCode()
	if ws, ok := r.Cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	return Result{Out: r.Out(), Err: r.Err(), Code: code}
}

// Buffer is a bytes.Buffer for one writer and any reader.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Eventually waits until cond gives "", looking often; the last text it gave is the
// failure after the bound.
func Eventually(t testing.TB, bound time.Duration, cond func() string) {
	t.Helper()
	end := time.Now().Add(bound)
	for {
		why := cond()
		if why == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not after %s: %s", bound, why)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Write makes a file in the working directory.
func (h *Home) Write(name, text string) string {
	h.t.Helper()
	p := filepath.Join(h.Work, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	if h.User != nil {
		_ = os.Chown(p, h.User.UID, h.User.GID)
	}
	return p
}

// Read gives a file of the working directory, "" when it is not there.
func (h *Home) Read(name string) string {
	b, err := os.ReadFile(filepath.Join(h.Work, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	return string(b)
}

// dumpLogs shows the ends of the logs of a failed test's clusters.
func (h *Home) dumpLogs() {
	logs, _ := filepath.Glob(filepath.Join(h.Dir, "clusters", "*", "*.log"))
	more, _ := filepath.Glob(filepath.Join(h.Dir, "clusters", "*", "nodes", "*", "*.log"))
	for _, p := range append(logs, more...) {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		if st, err := f.Stat(); err == nil && st.Size() > 4<<10 {
			_, _ = f.Seek(-4<<10, io.SeekEnd)
		}
		b, _ := io.ReadAll(f)
		_ = f.Close()
		h.t.Logf("%s:\n%s", p, b)
	}
}
