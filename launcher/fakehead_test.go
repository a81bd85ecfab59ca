package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/internal/testkit"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// fakeHead answers the requests of commands as a test says, over the real sessions, so
// that a command can be shown what a real head does only by chance: connections that
// break at every place.
type fakeHead struct {
	t       *testing.T
	name    string
	mu      sync.Mutex
	conns   []net.Conn
	answers map[uint16]func(st *session.Stream, body []byte) error
	seen    []uint16
}

// newFakeHead serves cluster name in a new LAUNCHER_HOME (or the one that is set).
func newFakeHead(t *testing.T, name string) *fakeHead {
	t.Helper()
	if h := os.Getenv("LAUNCHER_HOME"); h == "" || !strings.Contains(h, "fakehead") {
		dir, err := os.MkdirTemp("", "fakehead")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		t.Setenv("LAUNCHER_HOME", dir)
		t.Setenv("LAUNCHER_CLUSTER", "")
		t.Setenv("LAUNCHER_SOCKET", "")
	}
	f := &fakeHead{t: t, name: name, answers: map[uint16]func(*session.Stream, []byte) error{}}
	f.on(wire.MsgInfo, say(wire.ClusterInfo{Name: name})) // what is asked before a job is submitted
	dir := filepath.Join(os.Getenv("LAUNCHER_HOME"), "clusters", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := sockpath.Listen(filepath.Join(dir, "head.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = session.ServeUnix(ctx, &tracking{Listener: ln, f: f}, session.Config{Cluster: name, Role: secure.RoleHead, Name: "head"}, f.handle)
	})
	t.Cleanup(func() { cancel(); _ = ln.Close(); f.cut(); wg.Wait() })
	return f
}

// tracking remembers connections, to cut them.
type tracking struct {
	net.Listener
	f *fakeHead
}

func (l *tracking) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.f.mu.Lock()
		l.f.conns = append(l.f.conns, c)
		l.f.mu.Unlock()
	}
	return c, err
}

// cut breaks every connection, as the death of the head does.
func (f *fakeHead) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.conns = nil
}

func (f *fakeHead) on(typ uint16, answer func(st *session.Stream, body []byte) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[typ] = answer
}

func (f *fakeHead) count(typ uint16) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.seen {
		if s == typ {
			n++
		}
	}
	return n
}

func (f *fakeHead) handle(ctx context.Context, s *session.Session) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		_, st, err := s.Accept(ctx)
		if err != nil {
			return
		}
		wg.Go(func() {
			defer st.Close()
			typ, body, err := st.ReadMsg()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.seen = append(f.seen, typ)
			answer := f.answers[typ]
			f.mu.Unlock()
			if answer == nil {
				err = errs.New(errs.Internal, "the fake head has no answer to %#x", typ)
			} else {
				err = answer(st, body)
			}
			if err != nil {
				_ = st.WriteErr(err)
			}
		})
	}
}

// say answers with one value.
func say(v any) func(*session.Stream, []byte) error {
	return func(st *session.Stream, _ []byte) error { return st.WriteMsg(wire.MsgOK, v) }
}

// invoke runs a command line in this process.
func invoke(args ...string) testkit.Result {
	var out, errb bytes.Buffer
	t := time.Now()
	code := newApp(strings.NewReader(""), &out, &errb).main(args)
	return testkit.Result{Out: out.String(), Err: errb.String(), Code: code, Took: time.Since(t)}
}

// TestFollowThroughRestarts breaks the connection after every k-th chunk of a job's
// output: the command must print each byte once.
func TestFollowThroughRestarts(t *testing.T) {
	const chunks = 24
	var want strings.Builder
	for i := range chunks {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	for _, every := range []int{1, 3, 7, chunks} {
		t.Run(fmt.Sprint("every", every), func(t *testing.T) {
			f := newFakeHead(t, "lab")
			var mu sync.Mutex
			tokens := map[string]bool{}
			done := false
			f.on(wire.MsgSubmit, func(st *session.Stream, body []byte) error {
				var s wire.Submit
				if err := wire.Unmarshal(body, &s); err != nil {
					return err
				}
				mu.Lock()
				tokens[s.Token] = true
				first := len(tokens) == 1 && f.count(wire.MsgSubmit) == 1
				mu.Unlock()
				if first { // it was accepted, but the answer is lost
					f.cut()
					return nil
				}
				return st.WriteMsg(wire.MsgOK, wire.Submitted{Job: 7})
			})
			f.on(wire.MsgLogs, func(st *session.Stream, body []byte) error {
				var q wire.LogsRequest
				if err := wire.Unmarshal(body, &q); err != nil {
					return err
				}
				for i := int(q.Offset); i < chunks; i++ {
					if i > int(q.Offset) && (i-int(q.Offset))%every == 0 {
						f.cut()
						return nil
					}
					c := wire.LogChunk{Proc: wire.Proc{Try: wire.Try{Task: wire.Task{Job: 7}, Attempt: 1}}, Stream: 1, Offset: int64(i + 1), Data: fmt.Appendf(nil, "line %d\n", i)}
					if err := st.WriteMsg(wire.MsgOK, c); err != nil {
						return nil
					}
				}
				mu.Lock()
				done = true
				mu.Unlock()
				return nil
			})
			f.on(wire.MsgWatch, func(st *session.Stream, _ []byte) error {
				for v := uint64(1); ; v++ {
					mu.Lock()
					j := wire.JobInfo{ID: 7, Kind: wire.KindRun, State: wire.StateRunning, Tasks: 1, Running: 1, Version: v}
					if done {
						j.State, j.ExitCode, j.Failed = wire.StateFailed, 3, 1
					}
					mu.Unlock()
					if err := st.WriteMsg(wire.MsgOK, j); err != nil || j.State.Terminal() {
						return nil
					}
					select {
					case <-st.Unwanted():
						return nil
					case <-time.After(5 * time.Millisecond):
					}
				}
			})
			r := invoke("run", "--", "whatever")
			if r.Code != 3 {
				t.Fatalf("want the command's exit code 3: %s", r)
			}
			if r.Out != want.String() {
				t.Errorf("output lost or doubled: %s", r)
			}
			if len(tokens) != 1 {
				t.Errorf("%d tokens: a submission that was sent again became another job", len(tokens))
			}
		})
	}
}

func TestWhichCluster(t *testing.T) {
	one := newFakeHead(t, "one")
	one.on(wire.MsgNodes, say([]wire.NodeInfo{{ID: "one-0"}}))
	if r := invoke("nodes"); r.Code != 0 || !strings.Contains(r.Out, "one-0") {
		t.Fatalf("the only one up: %s", r)
	}
	two := newFakeHead(t, "two")
	two.on(wire.MsgNodes, say([]wire.NodeInfo{{ID: "two-0"}}))
	if r := invoke("nodes"); r.Code != 125 || !strings.Contains(r.Err, "several clusters are up: one, two") || !strings.Contains(r.Err, "hint: name one: -c one") {
		t.Errorf("two are up: %s", r)
	}
	if r := invoke("-c", "two", "nodes"); r.Code != 0 || !strings.Contains(r.Out, "two-0") {
		t.Errorf("-c two: %s", r)
	}
	t.Setenv("LAUNCHER_CLUSTER", "one")
	if r := invoke("nodes"); r.Code != 0 || !strings.Contains(r.Out, "one-0") {
		t.Errorf("$LAUNCHER_CLUSTER: %s", r)
	}
	if r := invoke("nodes", "-c", "two"); r.Code != 0 || !strings.Contains(r.Out, "two-0") {
		t.Errorf("-c beats $LAUNCHER_CLUSTER: %s", r)
	}
	if r := invoke("nodes", "-c", "three"); r.Code != 125 || !strings.Contains(r.Err, "there are: one, two") {
		t.Errorf("-c three: %s", r)
	}
	// Inside a run its own cluster, through the agent.
	t.Setenv("LAUNCHER_SOCKET", filepath.Join(os.Getenv("LAUNCHER_HOME"), "clusters", "two", "head.sock"))
	t.Setenv("LAUNCHER_CLUSTER", "two")
	if r := invoke("nodes"); r.Code != 0 || !strings.Contains(r.Out, "two-0") {
		t.Errorf("inside a run: %s", r)
	}
	t.Setenv("LAUNCHER_SOCKET", "/nowhere.sock")
	if r := invoke("nodes"); r.Code != 125 || !strings.Contains(r.Err, "LAUNCHER_SOCKET is /nowhere.sock") {
		t.Errorf("a run that is gone: %s", r)
	}
}

func TestDownAsksWhatItWouldStop(t *testing.T) {
	f := newFakeHead(t, "lab")
	f.on(wire.MsgJobs, say([]wire.JobInfo{{ID: 1, State: wire.StateRunning}}))
	if r := invoke("down"); r.Code != 125 || !strings.Contains(r.Err, "1 job waiting or running") || !strings.Contains(r.Err, "launcher down lab") {
		t.Errorf("down without a name over a running job: %s", r)
	}
	if f.count(wire.MsgDown) != 0 {
		t.Error("down was sent all the same")
	}
}

func TestHeadSaysNo(t *testing.T) {
	f := newFakeHead(t, "lab")
	f.on(wire.MsgSubmit, func(*session.Stream, []byte) error {
		return errs.New(errs.Exhausted, "the job asks for 64 cores, no node has more than 2").Hint("ask for less")
	})
	r := invoke("run", "--cpus", "64", "--", "true")
	if r.Code != 125 || r.Err != "error: the job asks for 64 cores, no node has more than 2\nhint: ask for less\n" {
		t.Errorf("%s", r)
	}
	r = invoke("run", "--json", "--cpus", "64", "--", "true")
	if r.Code != 125 || r.Err != "" || !strings.Contains(r.Out, `"kind":"exhausted"`) {
		t.Errorf("%s", r)
	}
}

// TestOtherVersion talks to a head of another protocol, and to something that is no head.
func TestOtherVersion(t *testing.T) {
	for _, c := range []struct {
		name   string
		hello  []byte
		expect []string
	}{
		{"newer", binary.LittleEndian.AppendUint16([]byte("LNCH"), 9), []string{"error: ", "protocol", "9"}},
		{"noise", []byte("HTTP/1.0 400 Bad Request\r\n\r\n"), []string{"error: ", "does not speak launcher's protocol"}},
		{"silent", nil, []string{"error: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			newFakeHead(t, "other") // for LAUNCHER_HOME
			sock := filepath.Join(os.Getenv("LAUNCHER_HOME"), "clusters", c.name, "head.sock")
			if err := os.MkdirAll(filepath.Dir(sock), 0o700); err != nil {
				t.Fatal(err)
			}
			ln, err := sockpath.Listen(sock)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					hello := c.hello
					if c.name == "newer" {
						hello = append(hello, make([]byte, 6)...)
					}
					_, _ = conn.Write(hello)
					_, _ = io.CopyN(io.Discard, conn, 12)
					_ = conn.Close()
				}
			})
			defer wg.Wait()
			defer ln.Close()
			r := invoke("-c", c.name, "run", "--", "true")
			if r.Code != 125 {
				t.Errorf("%s", r)
			}
			for _, w := range c.expect {
				if !strings.Contains(r.Err, w) {
					t.Errorf("%q is not said: %s", w, r)
				}
			}
		})
	}
}
