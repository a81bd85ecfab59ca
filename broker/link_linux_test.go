package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

const idleVar = "TEST_LINK_IDLE"

// idle is how soon links of tests end; a machine that stands still for less harms nothing.
const idle = 3 * time.Second

// The test binary is the launcher binary too.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "link" && os.Args[2] == "--dir" {
		idle, _ := time.ParseDuration(os.Getenv(idleVar))
		err := LinkMain(context.Background(), LinkOptions{Dir: os.Args[3], Ready: os.Stdout, Idle: idle, Version: "v-link"})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// cluster is a state directory and, while one is up, a head somewhere else.
type cluster struct {
	*testing.T
	dir  string
	ca   *secure.Authority
	file wire.ClusterFile
	seen atomic.Int32 // sessions that the head has had
	stop func()
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lnk")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := secure.NewAuthority("lab")
	if err == nil {
		err = ca.Save(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{T: t, dir: dir, ca: ca, file: wire.ClusterFile{Version: 1, Name: "lab", SpecPath: "/specs/lab.toml", Host: "elsewhere"}}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return c
}

func (c *cluster) write() {
	c.Helper()
	b, _ := json.Marshal(c.file)
	tmp := filepath.Join(c.dir, "tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		c.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(c.dir, clusterFile)); err != nil {
		c.Fatal(err)
	}
}

// up starts a head that answers each request with its own name and the request; a request
// of type 9 is answered for ever, one of type 8 with an error.
func (c *cluster) up(name string) {
	c.Helper()
	id, err := c.ca.IssueSelf(secure.RoleHead, name, 0)
	if err != nil {
		c.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- session.Serve(ctx, ln, session.Config{Identity: id, Version: "v-head"}, func(ctx context.Context, s *session.Session) {
			c.seen.Add(1)
			if p := s.Peer(); p.Role != secure.RoleClient || !strings.HasPrefix(p.Name, "link-") {
				c.Errorf("the head sees %+v", p)
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			for {
				_, st, err := s.Accept(ctx)
				if err != nil {
					return
				}
				wg.Go(func() { answer(name, st) })
			}
		})
	}()
	c.stop = sync.OnceFunc(func() { cancel(); <-done })
	c.Cleanup(c.stop)
	c.file.Addrs = []string{ln.Addr().String()}
	c.write()
}

func answer(name string, st *session.Stream) {
	defer st.Close()
	typ, body, err := st.ReadMsg()
	switch {
	case err != nil:
	case typ == 8:
		st.WriteErr(errs.New(errs.NotFound, "no such job"))
	case typ == 9:
		for st.WriteRaw(1, make([]byte, 1000)) == nil {
		}
	default:
		st.WriteMsg(wire.MsgOK, name+" "+string(body))
	}
}

func (c *cluster) ask(s *session.Session) (string, error) {
	st, err := s.Open(bounded(c.T), wire.StreamRequest)
	if err != nil {
		return "", err
	}
	defer st.Close()
	st.WriteRaw(7, []byte("hi"))
	_, body, err := st.ReadMsg()
	if err != nil {
		return "", err
	}
	var a string
	return a, wire.Unmarshal(body, &a)
}

// link runs a link in this process.
func (c *cluster) link(o LinkOptions) (done chan error) {
	c.Helper()
	o.Dir = c.dir
	r, w, err := os.Pipe()
	if err != nil {
		c.Fatal(err)
	}
	o.Ready = w
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done <- LinkMain(ctx, o)
	}()
	c.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(soon):
			c.Error("the link does not end with its context")
		}
	})
	if err := readReady(bounded(c.T), r); err != nil {
		c.Fatal(err)
	}
	r.Close()
	return done
}

func (c *cluster) connect() *session.Session {
	c.Helper()
	s, err := Connect(bounded(c.T), c.dir)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { s.Close() })
	return s
}

func (c *cluster) wantErr(err error, k errs.Kind, parts ...string) {
	c.Helper()
	if !errs.Is(err, k) {
		c.Fatalf("got %v of kind %s, wanted kind %s", err, errs.KindOf(err), k)
	}
	for _, p := range parts {
		if !strings.Contains(errs.Lines(err), p) {
			c.Errorf("%q is not in:\n%s", p, errs.Lines(err))
		}
	}
}

func TestLinkRelays(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	c.link(LinkOptions{})
	s := c.connect()
	if p := s.Peer(); p.Name != "link" || !p.Unix {
		t.Errorf("connected to %+v", p)
	}
	for range 3 {
		if a, err := c.ask(s); err != nil || a != "head-1 hi" {
			t.Errorf("answer %q, %v", a, err)
		}
	}
	if a, err := c.ask(c.connect()); err != nil || a != "head-1 hi" {
		t.Errorf("another command: %q, %v", a, err)
	}
	if n := c.seen.Load(); n != 1 {
		t.Errorf("the head has %d sessions, wanted one for all", n)
	}
	// An error of the head is an error here.
	st, _ := s.Open(bounded(t), wire.StreamRequest)
	st.WriteRaw(8, nil)
	if typ, body, err := st.ReadMsg(); err != nil || typ != wire.MsgError || !strings.Contains(string(body), "no such job") {
		t.Errorf("answer %#x %q %v", typ, body, err)
	}
	// Who stops reading ends an endless answer, and the session goes on.
	st, _ = s.Open(bounded(t), wire.StreamRequest)
	st.WriteRaw(9, nil)
	st.ReadMsg()
	st.Close()
	if a, err := c.ask(s); err != nil || a != "head-1 hi" {
		t.Errorf("answer %q, %v", a, err)
	}
	// Only requests are relayed.
	st, _ = s.Open(bounded(t), wire.StreamControl)
	_, _, err := st.ReadMsg()
	c.wantErr(err, errs.Invalid, "not streams of kind 1")
}

func TestHeadMoves(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	c.link(LinkOptions{})
	s := c.connect()
	if a, err := c.ask(s); err != nil || a != "head-1 hi" {
		t.Fatalf("answer %q, %v", a, err)
	}
	c.stop()
	c.up("head-2")
	if a, err := c.ask(s); err != nil || a != "head-2 hi" {
		t.Errorf("after the move: %q, %v", a, err)
	}
}

func TestLinkEndsWhenIdle(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	done := c.link(LinkOptions{Idle: idle})
	s := c.connect()
	select {
	case err := <-done:
		t.Fatalf("it ended while somebody was connected: %v", err)
	case <-time.After(idle + idle/4):
	}
	s.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(soon):
		t.Fatal("an idle link does not end")
	}
	if _, err := os.Lstat(filepath.Join(c.dir, linkSocket)); err == nil {
		t.Error("its socket is left")
	}
}

// When the cluster is down its links end, and nobody has to end them.
func TestLinkEndsWithItsCluster(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	done := c.link(LinkOptions{})
	s := c.connect()
	os.Remove(filepath.Join(c.dir, clusterFile))
	c.stop()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(soon):
		t.Fatal("the link outlives its cluster")
	}
	<-s.Done()
	c.wantErr(s.Err(), errs.Unavailable)
}

func TestSecondLink(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	c.link(LinkOptions{})
	if err := LinkMain(bounded(t), LinkOptions{Dir: c.dir}); err != nil {
		t.Errorf("the second: %v", err)
	}
	if a, err := c.ask(c.connect()); err != nil || a != "head-1 hi" {
		t.Errorf("the first serves no more: %q, %v", a, err)
	}
}

// Any number of commands may find that there is no link; one comes to be.
func TestStartLinkRace(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	t.Setenv(idleVar, idle.String())
	exe, _ := os.Executable()
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			path, err := StartLink(bounded(t), c.dir, exe)
			if err != nil || path != filepath.Join(c.dir, linkSocket) {
				t.Errorf("%q, %v", path, err)
			}
		})
	}
	wg.Wait()
	s := c.connect()
	pid := s.Peer().PID
	if pid == os.Getpid() || s.Peer().Version != "v-link" {
		t.Errorf("connected to %+v", s.Peer())
	}
	if a, err := c.ask(s); err != nil || a != "head-1 hi" {
		t.Errorf("answer %q, %v", a, err)
	}
	if n := c.seen.Load(); n != 1 {
		t.Errorf("%d links reached the head", n)
	}
	if sid, err := syscall.Getpgid(pid); err != nil || sid != pid {
		t.Errorf("the link is in process group %d, %v", sid, err)
	}
	s.Close()
	// The others have ended, and this one ends when idle. They are our children here.
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		for {
			var ws syscall.WaitStatus
			if _, err := syscall.Wait4(-1, &ws, 0, nil); err != nil && err != syscall.EINTR {
				return
			}
		}
	}()
	select {
	case <-reaped:
	case <-time.After(soon):
		t.Error("links are left")
	}
}

func TestConnectStartsALink(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	t.Setenv(idleVar, idle.String())
	s := c.connect()
	if a, err := c.ask(s); err != nil || a != "head-1 hi" {
		t.Errorf("answer %q, %v", a, err)
	}
	pid := s.Peer().PID
	s.Close()
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != 0 {
		t.Errorf("the link ended with %v, %v", ws, err)
	}
}

func TestConnectPrefersTheHead(t *testing.T) {
	c := newCluster(t)
	c.write()
	path := filepath.Join(c.dir, headSocket)
	ln, err := sockpath.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- session.ServeUnix(ctx, ln, session.Config{Cluster: "lab", Role: secure.RoleHead, Name: "head"}, func(ctx context.Context, s *session.Session) { <-ctx.Done() })
	}()
	defer func() { cancel(); <-done }()
	if p := c.connect().Peer(); p.Role != secure.RoleHead {
		t.Errorf("connected to %+v", p)
	}
}

func TestNobodyThere(t *testing.T) {
	c := newCluster(t)
	_, err := Connect(bounded(t), c.dir)
	c.wantErr(err, errs.NotFound, "is not up", "hint: `launcher up SPEC`")

	// The head was here, and is not any more.
	c.file.Host, _ = os.Hostname()
	c.file.PID = 12345
	c.write()
	_, err = Connect(bounded(t), c.dir)
	c.wantErr(err, errs.Unavailable, "the head of cluster lab does not run", "process 12345", "hint: `launcher up /specs/lab.toml`")

	// It was elsewhere, and does not answer.
	c.file.Host, c.file.Addrs = "elsewhere", []string{"127.0.0.1:1"}
	c.write()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = Connect(ctx, c.dir)
	if err == nil || errs.KindOf(err) == errs.Unknown {
		t.Errorf("a head that does not answer: %v", err)
	}

	// The file is damaged, or from the future.
	os.WriteFile(filepath.Join(c.dir, clusterFile), []byte("{"), 0o600)
	_, err = Connect(bounded(t), c.dir)
	c.wantErr(err, errs.Corrupt, clusterFile)
	os.WriteFile(filepath.Join(c.dir, clusterFile), []byte(`{"version": 2, "build": "v9"}`), 0o600)
	_, err = Connect(bounded(t), c.dir)
	c.wantErr(err, errs.Version, "launcher v9", "newer")
}

// A head of another cluster, or of another version, is told from one that is away, and
// the error crosses the process that found it.
func TestWrongHead(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	other, _ := secure.NewAuthority("lab")
	if err := other.Save(c.dir); err != nil {
		t.Fatal(err)
	}
	_, err := Connect(bounded(t), c.dir)
	c.wantErr(err, errs.Permission, "another authority signed it")
}

// Another version serves the link's socket: said at once, and no second link is started.
func TestOtherVersionOnTheSocket(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	ln, err := sockpath.Listen(filepath.Join(c.dir, linkSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("LNCH\x07\x00\x03\x00\x00\x00\x00\x00"))
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	_, err = Connect(bounded(t), c.dir)
	c.wantErr(err, errs.Version, "protocol 7.3", "hint:")
}

// A link that cannot start says why, and leaves nothing.
func TestLinkCannotStart(t *testing.T) {
	c := newCluster(t)
	c.up("head-1")
	os.Remove(filepath.Join(c.dir, secure.KeyFile))
	exe, _ := os.Executable()
	_, err := StartLink(bounded(t), c.dir, exe)
	c.wantErr(err, errs.NotFound, "the cluster's key")
	_, err = StartLink(bounded(t), c.dir, filepath.Join(c.dir, "no-binary"))
	c.wantErr(err, errs.Internal, "starting a link")
	truth, _ := exec.LookPath("true")
	_, err = StartLink(bounded(t), c.dir, truth)
	c.wantErr(err, errs.Internal, "ended without a word", linkLog)
	if answers(bounded(t), filepath.Join(c.dir, linkSocket)) {
		t.Error("a link serves")
	}
}
