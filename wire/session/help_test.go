package session

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire/secure"
)

// soon is how long anything in these tests may take.
const soon = time.Minute

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "dial-unix" {
		os.Exit(dialAsAnother(os.Args[2]))
	}
	code := m.Run()
	if code == 0 {
		code = leaks()
	}
	os.Exit(code)
}

// leaks reports goroutines of this package that nobody waited for.
func leaks() int {
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(soon); ; time.Sleep(20 * time.Millisecond) { // sleep: a bounded poll
		var left []string
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "launcher/wire/session.") && !strings.Contains(g, "TestMain") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "%d goroutines are left, such as\n%s\n", len(left), left[0])
			return 1
		}
	}
}

type lab struct {
	*testing.T
	ca   *secure.Authority
	head *secure.Identity
	log  *counter

	patient bool // the client of a pair never gives its peer up
}

func newLab(t *testing.T) *lab {
	t.Helper()
	ca, err := secure.NewAuthority("lab")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{T: t, ca: ca, log: &counter{}}
	l.head = l.identity(secure.RoleHead, "head")
	return l
}

func (l *lab) identity(r secure.Role, name string) *secure.Identity {
	l.Helper()
	id, err := l.ca.IssueSelf(r, name, 0)
	if err != nil {
		l.Fatal(err)
	}
	return id
}

func (l *lab) config(id *secure.Identity) Config {
	return Config{Identity: id, Version: "v1-test", Log: slog.New(l.log)}
}

// serve runs Serve until the test ends and checks that it ends well.
func (l *lab) serve(cfg Config, handle Handler) (addr string) {
	l.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.Fatal(err)
	}
	l.run(func(ctx context.Context) error { return Serve(ctx, ln, cfg, handle) })
	return ln.Addr().String()
}

func (l *lab) run(serve func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx) }()
	l.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				l.Errorf("serve: %v", err)
			}
		case <-time.After(soon):
			l.Error("serve does not end with its context")
		}
	})
}

func (l *lab) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	l.Cleanup(cancel)
	return ctx
}

// dial makes a client's session.
func (l *lab) dial(addr string) *Session {
	l.Helper()
	s, err := Dial(l.context(), []string{addr}, l.config(l.identity(secure.RoleClient, "me")), secure.RoleHead)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { s.Close() })
	return s
}

// pair gives both ends of a session over TLS.
func (l *lab) pair(keepAlive time.Duration, wrap func(net.Conn) net.Conn) (client, server *Session) {
	l.Helper()
	a, b := tcpPair(l.T)
	if wrap != nil {
		a = wrap(a)
	}
	got := make(chan *Session, 1)
	cfg := l.config(l.head)
	cfg.KeepAlive = keepAlive
	go func() {
		ctx := l.context()
		tc := l.head.ServerTLS()
		s, err := handshake(ctx, b, cfg.withDefaults(), func(ctx context.Context, conn net.Conn) (*Session, error) {
			return greetTLS(ctx, tlsServer(conn, tc), cfg.withDefaults())
		})
		if err != nil {
			l.Errorf("server: %v", err)
		}
		got <- s
	}()
	cc := l.config(l.identity(secure.RoleClient, "me"))
	cc.KeepAlive = keepAlive
	if l.patient {
		cc.KeepAlive = time.Hour
	}
	client, err := DialConn(l.context(), a, cc, secure.RoleHead)
	if err != nil {
		l.Fatal(err)
	}
	server = <-got
	l.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		got <- c
	}()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	b = <-got
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// streams opens a stream and gives both ends.
func (l *lab) streams(from, to *Session) (a, b *Stream) {
	l.Helper()
	a, err := from.Open(l.context(), 7)
	if err != nil {
		l.Fatal(err)
	}
	kind, b, err := to.Accept(l.context())
	if err != nil || kind != 7 {
		l.Fatalf("accepted kind %d, %v", kind, err)
	}
	return a, b
}

// eventually waits for a condition.
func (l *lab) eventually(what string, ok func() bool) {
	l.Helper()
	for deadline := time.Now().Add(soon); !ok(); time.Sleep(2 * time.Millisecond) { // sleep: a bounded poll
		if time.Now().After(deadline) {
			l.Fatalf("never: %s", what)
		}
	}
}

func (l *lab) wantErr(err error, k errs.Kind, parts ...string) {
	l.Helper()
	if !errs.Is(err, k) {
		l.Errorf("got %q of kind %s, wanted kind %s", err, errs.KindOf(err), k)
		return
	}
	for _, p := range parts {
		if !strings.Contains(errs.Lines(err), p) {
			l.Errorf("%q is not in:\n%s", p, errs.Lines(err))
		}
	}
}

// counter is a log that remembers its warnings.
type counter struct {
	mu    sync.Mutex
	lines []string
}

func (c *counter) Enabled(context.Context, slog.Level) bool { return true }
func (c *counter) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *counter) WithGroup(string) slog.Handler            { return c }
func (c *counter) Handle(_ context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return nil
	}
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, line)
	return nil
}

func (c *counter) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.lines...)
}

// shortDir is a directory whose sockets have short paths.
func shortDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("/tmp", "ses")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func join(dir, name string) string { return filepath.Join(dir, name) }

// dialAsAnother tries what the client would not do itself: it refuses a server of another
// user before it says a word.
func dialAsAnother(path string) int {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Println("cannot even connect:", err)
		return 1
	}
	c.SetDeadline(time.Now().Add(soon))
	_, err = greetDial(c, Config{Role: secure.RoleClient}.withDefaults(), purposeSession, path)
	fmt.Printf("the server: %s %v\n", errs.KindOf(err), err)
	_, err = DialUnix(ctx, path, Config{Role: secure.RoleClient})
	fmt.Printf("the client: %s %v\n", errs.KindOf(err), err)
	return 0
}
