package slurm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"launcher/internal/sockpath"
	"launcher/internal/testkit"
	"launcher/wire"
)

// gateWorld is a head that says what it hears, a job's record and a node of it.
type gateWorld struct {
	b    *Backend
	r    record
	cfg  wire.NodeConfig
	file string
	head string // where it listens
}

func newGateWorld(t *testing.T) *gateWorld {
	t.Helper()
	home := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	w := &gateWorld{b: New(home), head: l.Addr().String()}
	t.Cleanup(func() { _ = w.b.Close() })
	dir := filepath.Join(home, "clusters", "lab")
	w.r = record{V: 1, Dir: filepath.Join(dir, "slurm"), Name: "launcher-x", Nodes: []wire.NodeID{"n-0"}}
	w.file = w.r.path(wayExt + "0")
	data, _ := json.Marshal(wire.ClusterFile{Addrs: []string{w.head}})
	if err := os.MkdirAll(w.r.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cluster.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	w.cfg = wire.NodeConfig{Node: "n-0", Dir: filepath.Join(t.TempDir(), "node")}
	return w
}

func (w *gateWorld) open(t *testing.T, addr string, patience time.Duration) {
	t.Helper()
	w.cfg.Addrs = []string{addr}
	done, err := (&gate{cfg: &w.cfg, file: w.file, say: io.Discard, patience: patience}).open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
}

// ask is what an agent does that gets no answer from the head; "" = it is to try by itself.
func (w *gateWorld) ask(t *testing.T, word string) string {
	t.Helper()
	c, err := sockpath.Dial(context.Background(), filepath.Join(w.cfg.Dir, wire.RouteSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testkit.Bound))
	if _, err = io.WriteString(c, wire.RouteHead+"\n"+word); err == nil {
		_ = c.CloseWrite()
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

// nowhere is an address at which nobody listens.
func nowhere(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestGate(t *testing.T) {
	w := newGateWorld(t)
	far := nowhere(t)
	w.open(t, far, 0)
	stop := make(chan struct{})
	done := make(chan struct{})
	var why string
	go func() { // as the head asks how a job is
		defer close(done)
		for {
			if s := w.b.ways(w.r, (gateFiles{}).of(w.r)); s != "" {
				why = s
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	for range 3 {
		testkit.Eventually(t, testkit.Bound, func() string { // an agent asks again and again
			if got := w.ask(t, "hello"); got != "hello" {
				return "the head says " + got
			}
			return ""
		})
	}
	close(stop)
	<-done
	if !strings.Contains(why, "node n-0 on ") || !strings.Contains(why, "does not reach the head by TCP ("+far+": connection refused)") {
		t.Errorf("what is said meanwhile: %q", why)
	}
	if st, err := os.Stat(w.file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file with the secret: %v %v", st, err)
	}
	// A stranger gets nothing, and does not take the place of who belongs there.
	var at way
	if err := readWay(w.file, &at); err != nil {
		t.Fatal(err)
	}
	for range 2 * mostSpares {
		c, err := dialGate(context.Background(), at.Addrs[len(at.Addrs)-1], []byte("wrong"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(testkit.Bound))
		if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a stranger is let in: %v", err)
		}
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if got := w.ask(t, "again"); got != "again" {
			return "beside strangers the head says " + got
		}
		return ""
	})
	w.r.forgetWays()
	if len((gateFiles{}).of(w.r)) > 0 {
		t.Error("the file is left")
	}
}

// Where the head answers, or has only just ended, nothing is opened.
func TestGateNotNeeded(t *testing.T) {
	w := newGateWorld(t)
	w.open(t, w.head, 0)
	if got := w.ask(t, "x"); got != "" {
		t.Errorf("an agent that reaches the head by itself is served: %q", got)
	}
	w = newGateWorld(t)
	w.open(t, nowhere(t), refusedLong)
	if got := w.ask(t, "x"); got != "" || len((gateFiles{}).of(w.r)) > 0 {
		t.Errorf("a head that has just ended: %q, %q", got, (gateFiles{}).of(w.r))
	}
}

// The job of a longer name has other files.
func TestWaysOfAnother(t *testing.T) {
	w := newGateWorld(t)
	other := w.r
	other.Name += ".1"
	if err := os.WriteFile(other.path(wayExt+"0"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := (gateFiles{}).of(w.r); len(got) > 0 {
		t.Errorf("of another job: %q", got)
	}
}

// A gate that is not reached is said with both directions.
func TestWayBlocked(t *testing.T) {
	w := newGateWorld(t)
	data, _ := json.Marshal(way{Node: "n-0", Host: "far", Addrs: []string{nowhere(t)}, Why: "x: no answer"})
	if err := os.WriteFile(w.file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if why := w.b.ways(w.r, (gateFiles{}).of(w.r)); !strings.Contains(why, "nor does ") || !strings.Contains(why, "sbatch") {
			return "said: " + why
		}
		return ""
	})
	if err := os.Remove(w.file); err != nil {
		t.Fatal(err)
	}
	if why := w.b.ways(w.r, (gateFiles{}).of(w.r)); why != "" {
		t.Errorf("after the node has gone: %q", why)
	}
}

// A node that does not have the binary is known by what srun says of it.
func TestComplains(t *testing.T) {
	r := record{V: 1, Dir: t.TempDir(), Name: "launcher-x", Job: "7"}
	if got := r.complains(); got != "" {
		t.Errorf("without a word: %q", got)
	}
	said := "slurmstepd: error: execve(): /a b/launcher: No such file or directory\nsrun: error: h2: task 1: Exited with exit code 2\n"
	if err := os.WriteFile(r.path(logExt), []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := r.complains(); !strings.Contains(got, "Slurm job 7 says: ") || !strings.Contains(got, "/a b/launcher: No such file") || !strings.Contains(got, "shared_home = false") {
		t.Errorf("of a node without the binary: %q", got)
	}
	said = "srun: odd\nerror: node b-1 on h2: it is broken\nhint: mend it\nsrun: error: h2: task 1: Exited with exit code 125\n"
	if err := os.WriteFile(r.path(logExt), []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := r.complains(), "Slurm job 7 says: error: node b-1 on h2: it is broken; hint: mend it"; got != want {
		t.Errorf("%q, wanted %q", got, want)
	}
}

// Connections that show nothing are bounded in number, and do not keep others out.
func TestGateGreetsFew(t *testing.T) {
	g := &gate{spares: make(chan net.Conn, 1)}
	secret := []byte("secret")
	greet := func() (net.Conn, chan struct{}) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		over := make(chan struct{})
		go func() { defer close(over); g.greet(ours, secret) }()
		if _, err := io.ReadFull(theirs, make([]byte, 32)); err != nil { // it is being greeted
			t.Fatal(err)
		}
		return theirs, over
	}
	var overs []chan struct{}
	for range mostGreeted + 3 {
		_, over := greet()
		overs = append(overs, over)
	}
	for i := range 3 {
		<-overs[i]
	}
	g.greeted.mu.Lock()
	if n := len(g.greeted.conns); n > mostGreeted {
		t.Errorf("%d are greeted at a time", n)
	}
	g.greeted.mu.Unlock()
	ours, theirs := net.Pipe()
	go func() {
		nonce := make([]byte, 32)
		_, _ = io.ReadFull(theirs, nonce)
		_, _ = theirs.Write(proof(secret, nonce))
	}()
	g.greet(ours, secret)
	if len(g.spares) != 1 {
		t.Error("who has the secret is not let in beside them")
	}
	for _, c := range slices.Clone(g.greeted.conns) {
		_ = c.Close()
	}
	for _, over := range overs {
		<-over
	}
	_ = (<-g.spares).Close()
}
