package ssh

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// lends is a lender's other end.
type lends struct{ gone atomic.Bool }

func (l *lends) Err() error {
	if l.gone.Load() {
		return errors.New("gone")
	}
	return nil
}

func (l *lends) Lend(context.Context, string, int64, int, int) (int, error) { return 1, nil }

// TestSpread: of sixteen hosts one is given the binary from here, and the others, in waves,
// by those that have it.
func TestSpread(t *testing.T) {
	s := newSpread(slowCopy)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i % 2), byte(i)}) }
	type turn struct {
		from    *lender
		release func(bool)
	}
	waiting := map[int]bool{}
	for i := range 16 {
		waiting[i] = true
	}
	wave := 0
	var here int
	for ; len(waiting) > 0; wave++ {
		got := map[int]turn{}
		for i := range waiting {
			s.mu.Lock()
			from, release := s.pick(addr(i), nil)
			s.mu.Unlock()
			if release != nil {
				got[i] = turn{from, release}
			}
		}
		for i, g := range got {
			if g.from == nil {
				here++
			}
			delete(waiting, i)
			s.add(&lender{client: &lends{}, addr: addr(i)})
			g.release(true)
		}
		if len(got) == 0 {
			t.Fatalf("%d hosts wait for ever", len(waiting))
		}
	}
	if here != 1 || wave != 4 { // 1, 3, 9, 16
		t.Errorf("%d copies from here in %d waves, wanted 1 in 4", here, wave)
	}
}

func TestSpreadTurns(t *testing.T) {
	near, far := netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("192.168.1.1")
	pick := func(s *spread, tried ...*lender) (*lender, func(bool)) {
		m := map[*lender]bool{}
		for _, l := range tried {
			m[l] = true
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.pick(netip.MustParseAddr("10.1.1.9"), m)
	}
	s := newSpread(slowCopy)
	a, b := &lender{client: &lends{}, addr: far}, &lender{client: &lends{}, addr: near}
	s.add(a)
	s.add(b)
	if l, _ := pick(s); l != b {
		t.Error("a host of another network is preferred")
	}
	if l, done := pick(s, b); l != a || done == nil {
		t.Error("one that could not be reached is tried again")
	}
	if l, done := pick(s, a, b); l != nil || done == nil {
		t.Error("after two that could not be reached it is not sent from here")
	}
	b.client.(*lends).gone.Store(true)
	if l, _ := pick(s); l != a {
		t.Error("one that is gone gives the binary")
	}
	if _, done := pick(s); done != nil {
		t.Error("one gives it to more than its turns")
	}
	s = newSpread(slowCopy)
	first, done := pick(s)
	if first != nil || done == nil {
		t.Fatal("the first is not sent from here")
	}
	if _, done := pick(s); done != nil {
		t.Error("the second does not wait for the first")
	}
	s.since = s.since.Add(-slowCopy)
	if _, done := pick(s); done == nil {
		t.Error("a slow host holds all others up")
	}
	done(false)
	s = newSpread(slowCopy)
	l := &lender{client: &lends{}, addr: near}
	s.add(l)
	for range vainTries {
		_, done := pick(s)
		done(false)
	}
	if l, done := pick(s); l != nil || done == nil {
		t.Error("hosts that do not reach each other go on trying")
	}
}

// tally counts what is written to hosts.
type tally struct {
	dialer
	n atomic.Int64
}

func (d *tally) Open(ctx context.Context, s site, line string) (channel, error) {
	ch, err := d.dialer.Open(ctx, s, line)
	return &tallied{ch, d}, err
}

type tallied struct {
	channel
	d *tally
}

func (c *tallied) Write(b []byte) (int, error) {
	n, err := c.channel.Write(b)
	c.d.n.Add(int64(n))
	return n, err
}

// spreading is hosts behind real sshds, and a backend that copies the test's binary there.
type spreading struct {
	*testing.T
	lab    *testkit.Lab
	b      *Backend
	sent   *tally
	binary string
	want   binary
}

func newSpreading(t *testing.T) *spreading {
	x := &spreading{T: t, lab: testkit.SSHD(t)}
	x.sent = &tally{dialer: sshDialer(t)}
	x.b = newBackend(t.TempDir(), x.sent)
	t.Cleanup(func() { _ = x.b.Close() })
	x.binary = copyOwn(t, t.TempDir(), "launcher", "to be spread")
	w, err := newShelf(x.binary, "/").get("amd64")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	x.want = w
	return x
}

// host starts one, whose home it gives.
func (x *spreading) host(name string, o testkit.ServerOptions) string {
	return x.lab.Start(name, o).Home
}

func (x *spreading) ready(names ...string) {
	x.Helper()
	var wg sync.WaitGroup
	for _, n := range names {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(x.Context(), time.Minute)
			defer cancel()
			if _, err := x.b.link(siteOf(x.lab, n, ""), x.binary).get(ctx, true); err != nil {
				x.Errorf("%s: %v", n, err)
			}
		})
	}
	wg.Wait()
}

// has checks what a host was given, and that nothing else is left.
func (x *spreading) has(home string) {
	x.Helper()
	all, _ := filepath.Glob(filepath.Join(home, ".launcher", "bin", "*"))
	parts, _ := filepath.Glob(filepath.Join(home, ".launcher", "bin", ".*"))
	got, err := os.ReadFile(filepath.Join(home, ".launcher", "bin", x.want.sum[:32], "launcher"))
	own, _ := os.ReadFile(x.binary)
	if err != nil || !bytes.Equal(got, own) || len(all) != 1 || len(parts) != 0 {
		x.Errorf("%s has %q, %q, %v; the right content: %t", home, all, parts, err, bytes.Equal(got, own))
	}
}

// copies is how many whole copies went out from here.
func (x *spreading) copies() float64 {
	data, done, err := newShelf(x.binary, "/").pack(x.want, "zstd", 0)
	if err != nil {
		x.Fatal(err)
	}
	defer done()
	return float64(x.sent.n.Load()) / float64(len(data))
}

// TestHostsFromHosts: one copy goes out from here, whatever a host has to call another
// with.
func TestHostsFromHosts(t *testing.T) {
	x := newSpreading(t)
	x.b.slow, x.b.patience = time.Hour, time.Hour
	names := []string{"h1", "h2", "h3", "h4", "h5"}
	var homes []string
	for _, n := range names {
		homes = append(homes, x.host(n, testkit.ServerOptions{}))
	}
	x.ready(names...)
	for _, h := range homes {
		x.has(h)
	}
	if c := x.copies(); c > 1.5 {
		t.Errorf("%.1f copies went out from here", c)
	}
	for _, caller := range []string{"bash", "python3"} {
		if _, err := exec.LookPath(caller); err != nil {
			continue
		}
		c, err := x.b.link(siteOf(x.lab, "h1", ""), x.binary).get(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		secret, got := "only for this once", filepath.Join(t.TempDir(), "got it")
		own, _ := os.ReadFile(x.binary)
		port, err := c.Lend(t.Context(), secret, 1000, 0, 0)
		if err != nil || os.WriteFile(got, own[:1000], 0o600) != nil {
			t.Fatal(err)
		}
		sh := exec.Command("/bin/sh", "-c", script+`M= W=60 had=1000 mine=$1 caller=$2; { fetch 127.0.0.1 "$3" "$4"; } 3>&1`, "sh", got, caller, strconv.Itoa(port), secret)
		if out, err := sh.CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", caller, err, out)
		}
		if b, _ := os.ReadFile(got); !bytes.Equal(b, own) {
			t.Errorf("with %s %d bytes of %d came", caller, len(b), len(own))
		}
	}
}

// TestFromHostsFails: what comes from a host is refused where it is not the binary, and a
// host that takes no calls, or breaks off, is none to wait for.
func TestFromHostsFails(t *testing.T) {
	for name, spoil := range map[string]func(x *spreading, home string){
		"poisoned": func(x *spreading, home string) {
			path := filepath.Join(home, ".launcher", "bin", x.want.sum[:32], "launcher")
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.Remove(path) // it runs: not written over
			}
			if err == nil {
				b[len(b)-1] ^= 1
				err = os.WriteFile(path, b, 0o700)
			}
			if err != nil {
				x.Fatal(err)
			}
		},
		"cut short": func(x *spreading, home string) {
			path := filepath.Join(home, ".launcher", "bin", x.want.sum[:32], "launcher")
			if err := errors.Join(os.Remove(path), os.WriteFile(path, make([]byte, 1<<20), 0o700)); err != nil {
				x.Fatal(err)
			}
		},
		"gone": func(x *spreading, home string) {
			if err := os.Remove(filepath.Join(home, ".launcher", "bin", x.want.sum[:32], "launcher")); err != nil {
				x.Fatal(err)
			}
		},
		"refuses": func(x *spreading, _ string) { x.elsewhere(1) },
		"silent":  func(x *spreading, _ string) { x.elsewhere(silent(x.T)) },
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			x := newSpreading(t)
			first, second := x.host("h1", testkit.ServerOptions{}), x.host("h2", testkit.ServerOptions{})
			x.ready("h1")
			x.has(first)
			spoil(x, first)
			x.ready("h2")
			x.has(second)
			if c := x.copies(); c < 1.9 {
				t.Errorf("%.1f copies went out from here, wanted 2", c)
			}
		})
	}
}

// elsewhere has the lenders be where they are not.
func (x *spreading) elsewhere(port int) {
	x.b.mu.Lock()
	defer x.b.mu.Unlock()
	for _, s := range x.b.spreads {
		s.mu.Lock()
		for _, l := range s.lenders {
			l.addr, l.client = netip.MustParseAddr("127.0.0.1"), &elsewhere{port}
		}
		s.mu.Unlock()
	}
}

// elsewhere is a host that says another's port.
type elsewhere struct{ port int }

func (*elsewhere) Err() error { return nil }
func (e *elsewhere) Lend(context.Context, string, int64, int, int) (int, error) {
	return e.port, nil
}

// silent is a port that takes calls and says nothing.
func silent(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// TestSumBeforeRun: what other hosts give is not run to see whether it is the binary.
func TestSumBeforeRun(t *testing.T) {
	path := t.TempDir()
	tool := func(name string) {
		at, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("SKIP: %v", err)
		}
		if err := os.Symlink(at, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	wants := func(want string) {
		t.Helper()
		sh := exec.CommandContext(t.Context(), "/bin/sh", "-c", script+"M=it R=$1 K=k U=u N=9 H=h bin=$1/none; copy", "sh", t.TempDir())
		sh.Env = []string{"PATH=" + path}
		if out, _ := sh.Output(); string(out) != "it want 0 none "+want+"\n" { // it ends: there is no answer
			t.Errorf("the script says %q, wanted %s", out, want)
		}
	}
	for _, name := range []string{"mkdir", "uname", "wc", "tr", "bash"} {
		tool(name)
	}
	wants("none")
	tool("sha256sum")
	wants("bash")
}

// TestSecretUnseen: who takes the binary from a host does not show the secret to all on its
// machine.
func TestSecretUnseen(t *testing.T) {
	for _, caller := range []string{"bash", "python3"} {
		if _, err := exec.LookPath(caller); err != nil {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		secret := rand.Text()
		seen := make(chan string, 1)
		go func() {
			defer l.Close()
			c, err := l.Accept()
			if err != nil {
				seen <- err.Error()
				return
			}
			defer c.Close()
			line, _ := bufio.NewReader(c).ReadString('\n')
			all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, p := range all {
				if b, _ := os.ReadFile(p); bytes.Contains(b, []byte(secret)) {
					line += " in " + string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
				}
			}
			_, _ = c.Write([]byte("the binary"))
			seen <- line
		}()
		got := filepath.Join(t.TempDir(), "got")
		_, port, _ := net.SplitHostPort(l.Addr().String())
		sh := exec.CommandContext(t.Context(), "/bin/sh", "-c", script+`M= W=60 had=0 mine=$1 caller=$2; { fetch 127.0.0.1 "$3" "$SECRET"; } 3>&1`, "sh", got, caller, port)
		sh.Env = append(os.Environ(), "SECRET="+secret)
		if out, err := sh.CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", caller, err, out)
		}
		_ = l.Close()
		if line := <-seen; line != secret+"\n" {
			t.Errorf("%s says %q", caller, line)
		}
		if b, _ := os.ReadFile(got); string(b) != "the binary" {
			t.Errorf("with %s %q came", caller, b)
		}
	}
}
