package workers

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/agent/supervisor/supervisortest"
)

const bound = time.Minute

func TestMain(m *testing.M) {
	supervisortest.Main(nil)
	os.Exit(m.Run())
}

// bench is a Pool whose news are kept.
type bench struct {
	t    *testing.T
	pool *Pool
	dir  string

	mu    sync.Mutex
	out   map[uint32]string
	ends  map[uint32]End
	pids  map[uint32]int
	fails map[uint32]error
	more  chan struct{}
}

// newBench is one life of an agent with a Pool.
func newBench(t *testing.T, sv *supervisortest.Server, dir string) (b *bench, die func()) {
	c := sv.Connect(t)
	b = &bench{t: t, dir: dir, out: map[uint32]string{}, ends: map[uint32]End{}, pids: map[uint32]int{}, fails: map[uint32]error{}, more: make(chan struct{}, 1)}
	note := func(f func()) {
		b.mu.Lock()
		f()
		b.mu.Unlock()
		select {
		case b.more <- struct{}{}:
		default:
		}
	}
	b.pool = New(Config{Super: c, Log: slog.New(slog.DiscardHandler), Node: "n-0", Dir: dir,
		Output: func(w Worker, stream uint8, text []byte) {
			note(func() { b.out[w.ID] += fmt.Sprintf("%d:%s", stream, text) })
		},
		Started: func(id uint32, pid int) { note(func() { b.pids[id] = pid }) },
		Failed:  func(id uint32, err error) { note(func() { b.fails[id] = err }) },
		Ended:   func(id uint32, end End) { note(func() { b.ends[id] = end }) },
	})
	for _, f := range b.pool.Take(c.FDs()) {
		f.Close()
	}
	for _, p := range c.List() {
		if !Ours(p.Proc) {
			t.Errorf("%s is not ours", p.Proc)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		exits, strays := c.Exits(), c.Strays()
		for exits != nil || strays != nil {
			select {
			case x, ok := <-exits:
				if !ok {
					exits = nil
				} else if Ours(x.Proc) {
					b.pool.Exited(x)
				}
			case x, ok := <-strays:
				if !ok {
					strays = nil
				} else {
					b.pool.Stray(x)
				}
			}
		}
	}()
	var once sync.Once
	die = func() {
		once.Do(func() {
			b.pool.Close()
			c.Close()
			<-done
		})
	}
	t.Cleanup(die)
	return b, die
}

func (b *bench) wait(what string, ok func() bool) {
	b.t.Helper()
	late := time.After(bound)
	for {
		b.mu.Lock()
		done := ok()
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-b.more:
		case <-late:
			b.t.Fatalf("waited in vain for %s: out %v ends %v fails %v", what, b.out, b.ends, b.fails)
		}
	}
}

// start starts a worker, and gives the agent's end of its socket.
func (b *bench) start(s Spec) *os.File {
	b.t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	ours := os.NewFile(uintptr(p[0]), "ours")
	b.t.Cleanup(func() { ours.Close() })
	s.Socket = os.NewFile(uintptr(p[1]), "theirs")
	b.pool.Start(s)
	return ours
}

func spec(t *testing.T, id uint32, name string) Spec {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	lib, err := filepath.Abs("testdata/lib")
	if err != nil {
		t.Fatal(err)
	}
	return Spec{ID: id, Job: "7", Name: name, Program: python, Python: true, Env: append(os.Environ(), "PYTHONPATH="+lib, "PYTHONDONTWRITEBYTECODE=1"), Set: map[string]string{"X": "1"}, Dir: "/"}
}

func say(t *testing.T, f *os.File, word string) string {
	t.Helper()
	if _, err := f.WriteString(word); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := f.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestForkedWorkers(t *testing.T) {
	b, _ := newBench(t, supervisortest.Start(t), t.TempDir())
	b.pool.Warm(spec(t, 0, "none"))
	b.pool.mu.Lock()
	for _, warm := range b.pool.templates {
		b.pool.mu.Unlock()
		select {
		case <-warm.ready:
		case <-time.After(bound):
			t.Fatal("no template before the first worker")
		}
		b.pool.mu.Lock()
	}
	b.pool.mu.Unlock()
	var socks []*os.File
	for i := range uint32(5) {
		socks = append(socks, b.start(spec(t, i, fmt.Sprint("w", i))))
	}
	for i := range uint32(5) {
		b.wait("output", func() bool { return strings.Contains(b.out[i], fmt.Sprintf("1:name w%d x 1 in /\n", i)) })
		b.wait("a line without an end", func() bool { return strings.Contains(b.out[i], "2:warning") })
		if got := say(t, socks[i], "hello"); got != "HELLO" {
			t.Errorf("worker %d answered %q", i, got)
		}
	}
	if len(b.pool.templates) != 1 {
		t.Errorf("%d templates", len(b.pool.templates))
	}
	b.pool.Signal(0, unix.SIGKILL)
	b.wait("a kill", func() bool { return b.ends[0] == End{true, 128 + 9, 9} })
	socks[1].Close()
	b.wait("an exit", func() bool { return b.ends[1] == End{true, 7, 0} })
	_, _ = socks[2].WriteString("loop")
	b.wait("much output", func() bool { return strings.HasSuffix(b.out[2], "line 99999\n") })
	log, err := os.ReadFile(filepath.Join(b.dir, "7.log"))
	if err != nil || strings.Count(string(log), "\n") < 100004 {
		t.Errorf("the log has %d lines, %v", strings.Count(string(log), "\n"), err)
	}
	b.pool.EndJob("7")
	b.wait("the end of the job", func() bool { return len(b.ends) == 5 })
}

func TestWorkersThatDoNotStart(t *testing.T) {
	b, _ := newBench(t, supervisortest.Start(t), t.TempDir())
	b.start(spec(t, 1, "refused"))
	b.wait("a refusal", func() bool { return b.fails[1] != nil && strings.Contains(b.fails[1].Error(), "no memory") })
	s := spec(t, 2, "w")
	s.Env = append(s.Env, "TEMPLATE=broken")
	b.start(s)
	b.wait("a broken template", func() bool {
		return b.fails[2] != nil && strings.Contains(b.fails[2].Error(), "this python is too old")
	})
	s.ID, s.Program = 3, "/no/such/python"
	b.start(s)
	b.wait("no interpreter", func() bool { return b.fails[3] != nil && strings.Contains(b.fails[3].Error(), "/no/such/python") })
	b.start(spec(t, 4, "unsafe"))
	b.wait("a fresh interpreter", func() bool { return b.out[4] == "1:fresh 1\n" })
	s = spec(t, 5, "go")
	s.Python, s.Program, s.Set["LAUNCHER_WORKER"] = false, "/bin/echo", "5"
	b.start(s)
	b.wait("a program", func() bool { return b.ends[5].Known })
}

// TestAgentRestart: workers, their output and their template outlive the agent.
func TestAgentRestart(t *testing.T) {
	sv, dir := supervisortest.Start(t), t.TempDir()
	b, die := newBench(t, sv, dir)
	s1, s2, s3 := b.start(spec(t, 1, "w1")), b.start(spec(t, 2, "w2")), b.start(spec(t, 3, "w3"))
	for i := uint32(1); i <= 3; i++ {
		b.wait("a start", func() bool { return b.pids[i] != 0 && b.out[i] != "" })
	}
	die()
	s1.Close() // it exits while nobody looks
	pid := b.pids[1]
	// sleep: the end of a process that is not a child tells nobody; bounded
	for end := time.Now().Add(bound); syscall.Kill(pid, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("worker 1 does not end")
		}
	}
	_, _ = s2.WriteString("loop")
	b, _ = newBench(t, sv, dir)
	b.wait("an end in between", func() bool { return b.ends[1] == End{} && len(b.ends) == 1 })
	b.wait("output in between", func() bool { return strings.HasSuffix(b.out[2], "line 99999\n") })
	if len(b.pool.templates) != 1 {
		t.Fatalf("%d templates", len(b.pool.templates))
	}
	s4 := b.start(spec(t, 4, "w4"))
	if got := say(t, s4, "again"); got != "AGAIN" {
		t.Errorf("answered %q", got)
	}
	b.wait("a start", func() bool { return b.pids[4] != 0 })
	s3.Close()
	b.wait("an end", func() bool { return b.ends[3] == End{true, 7, 0} })
	b.pool.EndJob("7")
	b.wait("the end of the job", func() bool { return len(b.ends) == 4 })
}
