package dial

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"launcher/internal/errs"
	"launcher/internal/testkit"
)

// TestMain is also the program that a system ssh starts to ask something.
func TestMain(m *testing.M) {
	Askpass()
	if path := os.Getenv("DIAL_TEST_ADD"); path != "" {
		addMany(path)
	}
	code := m.Run()
	if code == 0 {
		code = leaks()
	}
	os.Exit(code)
}

// leaks looks for goroutines of ours that are left when all Dialers are closed.
func leaks() int {
	b := make([]byte, 1<<20)
	for end := time.Now().Add(testkit.Bound); ; {
		n := runtime.Stack(b, true)
		left := 0
		for _, g := range strings.Split(string(b[:n]), "\n\n") {
			if strings.Contains(g, "launcher/backends/ssh/dial.") && !strings.Contains(g, "dial.TestMain") {
				left++
			}
		}
		if left == 0 {
			return 0
		}
		if time.Now().After(end) {
			fmt.Printf("%d goroutines are left:\n%s\n", left, b[:n])
			return 1
		}
		time.Sleep(10 * time.Millisecond) // sleep: goroutines cannot be waited for
	}
}

// person answers what is asked.
type person struct {
	mu     sync.Mutex
	asked  []string
	answer func(prompt string) string
}

func (p *person) Ask(_ context.Context, prompt string, _ bool) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, prompt)
	if a := p.answer(prompt); a != "" {
		return a, nil
	}
	return "", errs.New(errs.Cancelled, "no answer")
}

func (p *person) heard() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.asked, "\n")
}

func says(answer string) *person { return &person{answer: func(string) string { return answer }} }

// fails dials a host that must not be reached, for a reason, and checks the words.
func fails(t *testing.T, d *Dialer, at Target, r Reason, words ...string) error {
	t.Helper()
	c, err := d.Dial(bounded(t), at)
	if err == nil {
		_ = c.Close()
		t.Fatalf("%s was reached", at.Host)
	}
	if ReasonOf(err) != r {
		t.Errorf("%s: reason %q, not %q: %v", at.Host, ReasonOf(err), r, err)
	}
	text := errs.Lines(err)
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not said: %s", w, text)
		}
	}
	return err
}

// named is a server of the Lab as ssh_config names it.
func named(l *testkit.Lab, name string) Target { return Target{Host: name, Config: l.Config} }

func TestJumps(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	a := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{Client: []string{"ProxyJump a"}})
	c := l.Start("c", testkit.ServerOptions{Client: []string{"ProxyJump b"}})
	p := l.Start("p", testkit.ServerOptions{Client: []string{"ProxyCommand ssh -F " + l.Config + " -W [%h]:%p a"}})
	d := newDialer(t, Options{})
	var wg sync.WaitGroup
	for _, at := range []Target{named(l, "b"), named(l, "c"), named(l, "p"), {Host: "c", Config: l.Config, Jump: "a,b"}, {Host: "c", Config: l.Config, Jump: "none"}} {
		wg.Go(func() {
			conn, err := d.Dial(bounded(t), at)
			if err != nil {
				t.Errorf("%+v: %v", at, err)
				return
			}
			from := strings.Fields(output(t, conn, "echo $SSH_CONNECTION"))
			if want := map[string]string{"b": b.IP, "c": c.IP, "p": p.IP}[at.Host]; len(from) != 4 || from[2] != want {
				t.Errorf("%+v: reached %v, not %s", at, from, want)
			}
		})
	}
	wg.Wait()
	wantLogins(t, a, 2) // one, and that of the ProxyCommand
}

func TestNoForwarding(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	l.Start("a", testkit.ServerOptions{Lines: []string{"AllowTcpForwarding no"}})
	l.Start("b", testkit.ServerOptions{Client: []string{"ProxyJump a"}})
	o := l.Start("open", testkit.ServerOptions{})
	d := newDialer(t, Options{})
	fails(t, d, named(l, "b"), NoForward, "jump host a does not forward", "AllowTcpForwarding")
	o2 := Target{Host: o.IP, Port: 1, Jump: "open", Config: l.Config}
	fails(t, d, o2, Refused, "says the jump host open")
	if out := output(t, dialOK(t, d, named(l, "a")), "echo hi"); out != "hi\n" {
		t.Error(out)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	silent := listener(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	web := listener(t, func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n"); _ = c.Close() })
	free := listener(t, nil)
	d := newDialer(t, Options{Retries: 1})
	short := newDialer(t, Options{Timeout: 500 * time.Millisecond, Retries: 1})
	at := func(addr string) Target {
		host, port, _ := net.SplitHostPort(addr)
		t := Target{Host: host, Config: "none"}
		_, _ = fmt.Sscan(port, &t.Port)
		return t
	}
	fails(t, short, at(silent), Silent, "says nothing")
	fails(t, d, at(free), Refused, "nothing listens")
	if err := fails(t, d, Target{Host: "no-such-host.invalid", Config: "none"}, Unresolved, "no-such-host.invalid"); errs.KindOf(err) != errs.NotFound && errs.KindOf(err) != errs.Unavailable {
		t.Error(errs.KindOf(err))
	}
	_, err := d.Dial(bounded(t), at(web))
	if r := ReasonOf(err); r != Protocol && r != Dropped {
		t.Errorf("a web server: %q %v", r, err)
	}
	ctx, cancel := context.WithCancel(bounded(t))
	cancel()
	if _, err := d.Dial(ctx, at(silent)); errs.KindOf(err) != errs.Cancelled {
		t.Error(err)
	}
	for _, bad := range []string{"", "-oProxyCommand=x", "a b", "a;b", "$(x)"} {
		if _, err := d.Dial(bounded(t), Target{Host: bad}); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// listener serves every connection with f until the test ends; f = nil: a port on which
// nothing listens.
func listener(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if f == nil {
		_ = l.Close()
		return l.Addr().String()
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f(c)
		}
	}()
	return l.Addr().String()
}

// TestClock: nothing that is waited for on our side is taken for a silent host.
func TestClock(t *testing.T) {
	rang := make(chan struct{})
	c := newClock(time.Hour, func() { close(rang) })
	a, b := c.pause(), c.pause()
	c.d = 20 * time.Millisecond // only now: it must not ring before the pause
	b()
	c.restart()
	select {
	case <-rang:
		t.Fatal("it rang in a pause")
	case <-time.After(200 * time.Millisecond):
	}
	a()
	select {
	case <-rang:
	case <-time.After(testkit.Bound):
		t.Fatal("it does not ring after the pause")
	}
	if !c.late() {
		t.Error("it rang, and is not late")
	}
}

// TestOneGivesUp: who waits for a connection that another asked for has it, though that
// one has gone; and when all have gone it is not made.
func TestOneGivesUp(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{})
	d := newDialer(t, Options{Timeout: 30 * time.Second})
	s.Freeze()
	ctx, cancel := context.WithCancel(bounded(t))
	first, second := make(chan error, 1), make(chan error, 1)
	waiting := func(n int) {
		testkit.Eventually(t, testkit.Bound, func() string {
			d.mu.Lock()
			defer d.mu.Unlock()
			for _, e := range d.hosts {
				if e.waiting == n {
					return ""
				}
			}
			return "nobody waits"
		})
	}
	go func() { _, err := d.Dial(ctx, to(l, s)); first <- err }()
	waiting(1)
	go func() { _, err := d.Dial(bounded(t), to(l, s)); second <- err }()
	waiting(2)
	cancel()
	if err := <-first; errs.KindOf(err) != errs.Cancelled {
		t.Error(err)
	}
	s.Thaw()
	if err := <-second; err != nil {
		t.Error(err)
	}
	wantLogins(t, s, 1)
	s.Freeze()
	ctx, cancel = context.WithCancel(bounded(t))
	lonely := newDialer(t, Options{Timeout: 30 * time.Second})
	d = lonely
	go func() { _, err := lonely.Dial(ctx, to(l, s)); first <- err }()
	waiting(1)
	cancel()
	<-first
	s.Thaw()
	lonely.mu.Lock()
	defer lonely.mu.Unlock()
	if len(lonely.hosts) != 0 {
		t.Error("a connection that nobody waits for is still being made")
	}
	wantLogins(t, s, 1)
}

func TestFewStartups(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{Lines: []string{"MaxStartups 2:100:2"}})
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			d := newDialer(t, Options{}) // nothing is shared
			if _, err := d.Dial(bounded(t), to(l, s)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestFewSessions(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	l.Start("one", testkit.ServerOptions{Lines: []string{"MaxSessions 1"}})
	l.Start("none", testkit.ServerOptions{Lines: []string{"MaxSessions 0"}})
	for _, transport := range []string{"go", "system"} {
		d := newDialer(t, Options{})
		at := named(l, "one")
		at.Transport = transport
		c := dialOK(t, d, at)
		st, err := c.Open(bounded(t), "cat")
		if err != nil {
			t.Fatal(transport, err)
		}
		var wg sync.WaitGroup
		for range 6 { // more than connections are made
			wg.Go(func() {
				if exit, err := c.Run(bounded(t), "exit 3", nil, nil, nil); err != nil || exit.Code != 3 {
					t.Errorf("%s: %+v %v", transport, exit, err)
				}
			})
		}
		wg.Wait()
		_ = st.Close()
	}
	d := newDialer(t, Options{})
	c := dialOK(t, d, named(l, "none"))
	if _, err := c.Run(bounded(t), "true", nil, nil, nil); ReasonOf(err) != NoSessions {
		t.Error(err)
	}
}

func TestNoSFTP(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	l.Start("a", testkit.ServerOptions{NoSFTP: true})
	l.Start("noisy", testkit.ServerOptions{NoSFTP: true, Lines: []string{"ForceCommand echo Welcome; cat"}})
	for _, transport := range []string{"go", "system"} {
		for _, name := range []string{"a", "noisy"} {
			d := newDialer(t, Options{Timeout: 10 * time.Second})
			at := named(l, name)
			at.Transport = transport
			if _, err := dialOK(t, d, at).SFTP(bounded(t)); ReasonOf(err) != NoSubsystem {
				t.Errorf("%s %s: %v", transport, name, err)
			}
		}
	}
}

func TestDeadLink(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{})
	d := newDialer(t, Options{KeepAlive: time.Second, KeepAliveCount: 4})
	c := dialOK(t, d, to(l, s))
	st, err := c.Open(bounded(t), "cat")
	if err != nil {
		t.Fatal(err)
	}
	s.Freeze()
	if _, err := st.Wait(); ReasonOf(err) != LinkDead || !strings.Contains(err.Error(), "no sign of life") { // its context would end it later, and say so
		t.Error(err)
	}
	if _, err := c.Run(bounded(t), "true", nil, nil, nil); ReasonOf(err) != LinkDead {
		t.Error(err)
	}
	s.Thaw()
	output(t, dialOK(t, d, to(l, s)), "true")
}

// TestTwoFactors: OpenSSH asks over PAM only, as root; so the asking is tried against a
// server of the library, and PAM's in accept/ssh.sh.
func TestTwoFactors(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	key, err := ssh.ParsePrivateKey(read(t, l.Key))
	if err != nil {
		t.Fatal(err)
	}
	hostKey := testkit.WriteKey(t, filepath.Join(l.Dir, "hk"), testkit.NewKey(t, "ed25519"))
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if !same(k, key.PublicKey()) {
			return nil, errs.New(errs.Permission, "another key")
		}
		return nil, &ssh.PartialSuccessError{Next: ssh.ServerAuthCallbacks{
			KeyboardInteractiveCallback: func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
				a, err := ask("", "Two factors", []string{"Code: "}, []bool{true})
				if err == nil && (len(a) != 1 || a[0] != "123456") {
					err = errs.New(errs.Permission, "wrong code")
				}
				return nil, err
			}}}
	}}
	cfg.AddHostKey(hostKey)
	addr := listener(t, func(c net.Conn) {
		conn, chans, reqs, err := ssh.NewServerConn(c, cfg)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(reqs)
		for n := range chans {
			_ = n.Reject(ssh.Prohibited, "nothing here")
		}
		_ = conn.Close()
	})
	host, port, _ := net.SplitHostPort(addr)
	at := Target{Host: host, Identity: l.Key, KnownHosts: l.KnownHosts, Config: "none"}
	_, _ = fmt.Sscan(port, &at.Port)
	l.Know("["+host+"]:"+port, hostKey.PublicKey())
	p := says("123456")
	d := newDialer(t, Options{Asker: p})
	first := dialOK(t, d, at)
	dialOK(t, d, at)
	if !strings.Contains(p.heard(), "Two factors") || strings.Count(p.heard(), "Code:") != 1 {
		t.Errorf("asked: %s", p.heard())
	}
	if _, err := first.Run(bounded(t), "true", nil, nil, nil); ReasonOf(err) != NoSessions {
		t.Error(err)
	}
	fails(t, newDialer(t, Options{}), at, NoTerminal, "there is no terminal", "keyboard-interactive")
	fails(t, newDialer(t, Options{Asker: says("7")}), at, Denied)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
