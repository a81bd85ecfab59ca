package dial

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// bounded is the context of one test step.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Bound)
	t.Cleanup(cancel)
	return ctx
}

// newDialer makes a Dialer that is closed when the test ends.
// wantLogins waits for what a server's log says of logins: that comes after its answers.
func wantLogins(t *testing.T, s *testkit.Server, want int) {
	t.Helper()
	testkit.Eventually(t, testkit.Bound, func() string {
		if n := strings.Count(s.Log.String(), "Accepted publickey"); n != want {
			return fmt.Sprintf("%d logins at %s, not %d", n, s.Name, want)
		}
		return ""
	})
}

func newDialer(t *testing.T, o Options) *Dialer {
	t.Helper()
	d := New(o)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// to is a server of the Lab as a Target without ssh_config.
func to(l *testkit.Lab, s *testkit.Server) Target {
	return Target{Host: s.IP, Port: s.Port, Identity: l.Key, KnownHosts: l.KnownHosts, Config: "none"}
}

func dialOK(t *testing.T, d *Dialer, at Target) *Conn {
	t.Helper()
	c, err := d.Dial(bounded(t), at)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// output runs a command that must succeed.
func output(t *testing.T, c *Conn, command string) string {
	t.Helper()
	var out, errb bytes.Buffer
	exit, err := c.Run(bounded(t), command, nil, &out, &errb)
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: %v %+v\n%s", command, err, exit, errb.String())
	}
	return out.String()
}

func TestPlain(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{Keys: []string{"rsa", "ed25519"}})
	d := newDialer(t, Options{})
	c := dialOK(t, d, to(l, s))
	if got := output(t, c, "echo $HOME"); got != s.Home+"\n" {
		t.Errorf("home is %q, not %q", got, s.Home)
	}
	both(t, c)
	exit, err := c.Run(bounded(t), "kill -KILL $$", nil, nil, nil)
	if err != nil || exit != (Exit{137, "KILL"}) {
		t.Errorf("%v %+v", err, exit)
	}
}

// both is what either transport does.
func both(t *testing.T, c *Conn) {
	t.Helper()
	var out, errb bytes.Buffer
	exit, err := c.Run(bounded(t), "cat; echo no >&2; exit 7", strings.NewReader("in\n"), &out, &errb)
	if err != nil || exit != (Exit{Code: 7}) || out.String() != "in\n" || errb.String() != "no\n" {
		t.Errorf("%v %+v %q %q", err, exit, out.String(), errb.String())
	}
	st, err := c.Open(bounded(t), "cat; echo bye >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(st, "hello")
	_ = st.CloseWrite()
	if b, err := io.ReadAll(st); err != nil || string(b) != "hello" {
		t.Errorf("%q %v", b, err)
	}
	if exit, err := st.Wait(); err != nil || exit.Code != 3 || st.Stderr() != "bye\n" {
		t.Errorf("%+v %v %q", exit, err, st.Stderr())
	}
	f, err := c.SFTP(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat("/"); err != nil || !st.IsDir() {
		t.Error(err)
	}
}

func TestWhatEndsARun(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{})
	d := newDialer(t, Options{})
	c := dialOK(t, d, to(l, s))
	ctx, cancel := context.WithCancel(bounded(t))
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	go func() {
		_, _ = r.Read(make([]byte, 2))
		cancel()
		_, _ = io.Copy(io.Discard, r)
	}()
	if _, err := c.Run(ctx, "echo up; exec sleep 1000", nil, w, nil); err == nil || ctx.Err() == nil {
		t.Fatalf("the command ended by itself: %v", err)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		// The sshd of a root login signals nobody.
		if len(s.Sessions()) > 0 && os.Getuid() != 0 {
			return "it was not told to end"
		}
		return ""
	})
	// One that does not listen is left alone, and its place is free when it has ended.
	ctx, cancel = context.WithCancel(bounded(t))
	free := filepath.Join(l.Dir, "free")
	st, err := c.Open(ctx, "trap '' TERM; echo up; exec 1>&2; until [ -e '"+free+"' ]; do sleep 0.1; done")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(st, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	go func() { _ = st.Close() }()
	_, _ = io.Copy(io.Discard, st)
	if _, err := st.Wait(); err == nil || ctx.Err() != nil {
		t.Errorf("it was waited for: %v", err)
	}
	write(t, free, nil)
	cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.Run(bounded(t), "cat; sleep 100", nil, nil, nil)
		done <- err
	}()
	testkit.Eventually(t, testkit.Bound, func() string {
		if len(s.Sessions()) == 0 {
			return "no session"
		}
		return ""
	})
	s.Stop()
	if err := <-done; ReasonOf(err) != LinkDead {
		t.Errorf("a host that goes down: %v", err)
	}
	<-c.Done()
	if ReasonOf(c.Err()) != LinkDead {
		t.Error(c.Err())
	}
}

func TestShared(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{})
	d := newDialer(t, Options{})
	conns := make(chan *Conn, 8)
	for range cap(conns) {
		go func() {
			c, err := d.Dial(bounded(t), to(l, s))
			if err != nil {
				t.Error(err)
			}
			conns <- c
		}()
	}
	var all []*Conn
	for range cap(conns) {
		all = append(all, <-conns)
	}
	wantLogins(t, s, 1)
	for _, c := range all[1:] {
		_ = c.Close()
		_ = c.Close()
	}
	output(t, all[0], "true")
	_ = all[0].Close()
	<-all[0].Done()
	dialOK(t, d, to(l, s))
}

// TestCloseUnderWrite: a stream may be closed while somebody writes to it; the write ends.
func TestCloseUnderWrite(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	l.Start("a", testkit.ServerOptions{})
	for _, transport := range []string{"go", "system"} {
		at := named(l, "a")
		at.Transport = transport
		c := dialOK(t, newDialer(t, Options{}), at)
		st, err := c.Open(bounded(t), "exec sleep 1000")
		if err != nil {
			t.Fatal(transport, err)
		}
		ended := make(chan error, 1)
		started := make(chan struct{})
		go func() {
			close(started)
			_, err := st.Write(make([]byte, 64<<20)) // more than anybody holds for a command that reads nothing
			ended <- err
		}()
		<-started
		_ = st.Close()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s: all of it was written", transport)
			}
		case <-time.After(testkit.Bound):
			t.Fatalf("%s: the write does not end", transport)
		}
	}
}
