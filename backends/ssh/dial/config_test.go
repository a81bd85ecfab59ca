package dial

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"launcher/internal/testkit"
)

// TestConfig holds our reader of ssh_config to what ssh itself says.
func TestConfig(t *testing.T) {
	t.Parallel()
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("SKIP: no ssh to compare with")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "more.conf"), []byte("Host gpu*\n  Port 2200\nHost *\n  HashKnownHosts yes\n"))
	conf := write(t, filepath.Join(dir, "config"), []byte(strings.ReplaceAll(`# a comment
Host gpu01 gpu02 !gpu03
  HostName %h.lab.example   # the long name
  User=alice
  IdentityFile ~/.ssh/"my key"
  IdentityFile DIR/%r@%n-%p
Host far
  ProxyJump alice@bastion:2222,second
  ProxyCommand nc %h %p
Host piped
  ProxyCommand ssh -W "%h:%p" bastion # not a comment
  ProxyJump never
Host inside
  Include DIR/more.conf
Match host *.lab.example,other user alice
  IdentitiesOnly yes
  CertificateFile ~/.ssh/id-cert.pub
Match originalhost gpu02
  HostKeyAlias the-box
Match !host gpu* user bob
  StrictHostKeyChecking accept-new
Match user al*,!alice
  ConnectTimeout 3
Include DIR/*.conf
Host *
  ConnectTimeout 7
  StrictHostKeyChecking no
  IdentityAgent none
  UserKnownHostsFile ~/.ssh/known_hosts DIR/kh
  GlobalKnownHostsFile none
Match all
  User late
  IdentityFile DIR/last
`, "DIR", dir)))
	for _, at := range []Target{{Host: "gpu01"}, {Host: "gpu02"}, {Host: "gpu03"}, {Host: "gpu01", User: "bob", Port: 7}, {Host: "far"}, {Host: "piped"}, {Host: "inside"}, {Host: "other", User: "alice"}, {Host: "x", User: "alex"}, {Host: "x", User: "bob"}, {Host: "10.0.0.1"}, {Host: "::1"}} {
		at.Config = conf
		theirs, err := askSSH(bounded(t), ssh, at)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := readConfig(at)
		if err != nil {
			t.Fatal(err)
		}
		complete := func(v values) *settings {
			s, err := New(Options{}).complete(at, v)
			if err != nil {
				t.Fatalf("%+v: %v", at, err)
			}
			return s
		}
		if a, b := complete(theirs), complete(ours); !reflect.DeepEqual(a, b) {
			t.Errorf("%s:\nssh:  %+v\nours: %+v", at.Host, *a, *b)
		}
	}
	for text, word := range map[string]string{"Match exec true\nUser x\n": "Match exec", "Host \"x\nUser y\n": "quote", "Match final\n": "Match final", "Port\n": "no value", "Include " + filepath.Join(dir, "loop") + "\n": "too deep"} {
		path := write(t, filepath.Join(dir, "loop"), []byte(text))
		_, err := readConfig(Target{Host: "h", Config: path})
		if ReasonOf(err) != BadConfig || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v", text, err)
		}
	}
	path := write(t, filepath.Join(dir, "never"), []byte("Host other\nMatch host other exec false\nUser x\nMatch exec true host h\n"))
	if _, err := askSSH(bounded(t), ssh, Target{Host: "h", Config: path}); err != nil {
		t.Error(err)
	}
	bad := write(t, filepath.Join(dir, "bad"), []byte("Nonsense yes\n"))
	if _, err := askSSH(bounded(t), ssh, Target{Host: "h", Config: bad}); ReasonOf(err) != BadConfig || !strings.Contains(err.Error(), "line 1") {
		t.Error(err)
	}
	if _, err := readConfig(Target{Host: "h", Config: filepath.Join(dir, "none")}); err == nil {
		t.Error("a file that is not there was read")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Target{
		"a": {Host: "a"}, "u@a": {Host: "a", User: "u"}, "u@a:22": {Host: "a", User: "u", Port: 22}, "[::1]:2222": {Host: "::1", Port: 2222}, "[::1]": {Host: "::1"}, "::1": {Host: "::1"}, "u@x@h": {Host: "h", User: "u@x"},
		"": {}, "@a": {}, "a:": {}, "a:0": {}, "a:99999": {}, "a:+1": {}, "[::1": {}, "[::1]x": {}, "-oX": {}, "a b": {}, "a;b": {}, "a:022": {},
	} {
		got, err := ParseTarget(text)
		if want.Host == "" != (err != nil) || got != want {
			t.Errorf("%q: %+v %v", text, got, err)
		}
	}
}

func FuzzReadConfig(f *testing.F) {
	f.Add("Host a !b\n User \"x y\"\nMatch host a user b\nIdentityFile=%d/x\n")
	f.Add("Match !exec x\\\\ ' #\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(strings.ToLower(text), "include") {
			return // reads files
		}
		r := &reading{t: Target{Host: "a"}, v: values{}}
		_ = r.text(text, "f", true, 0)
		s := &settings{alias: "a", host: "a"}
		_ = s.files(r.v)
		for k, v := range r.v {
			if k == "" || len(v) == 0 {
				t.Errorf("%q: %q", k, v)
			}
		}
	})
}

func FuzzParseTarget(f *testing.F) {
	f.Add("u@[::1]:22")
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := ParseTarget(s); err == nil && (got.Host == "" || got.Host[0] == '-' || got.Port < 0 || got.Port > 65535) {
			t.Errorf("%q: %+v", s, got)
		}
	})
}

func TestSystem(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{Client: []string{"ProxyJump a"}})
	u := l.Start("new", testkit.ServerOptions{Unknown: true})
	d := newDialer(t, Options{})
	at := named(l, "b")
	at.Transport = "system"
	c := dialOK(t, d, at)
	both(t, c)
	at = Target{Host: b.IP, Port: b.Port, User: l.User, Jump: l.User + "@" + s.HostPort(), Identity: l.Key, KnownHosts: l.KnownHosts, Config: "none", Transport: "system"}
	both(t, dialOK(t, d, at))
	at = to(l, s)
	at.Transport = "system"
	c = dialOK(t, d, at)
	both(t, c)
	st, err := c.Open(bounded(t), "cat; sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	s.Cut()
	if _, err := st.Wait(); ReasonOf(err) != LinkDead {
		t.Error(err)
	}
	<-c.Done()
	if _, err := c.Run(bounded(t), "true", nil, nil, nil); ReasonOf(err) != LinkDead {
		t.Error(err)
	}
	dialOK(t, d, at)
	fresh := to(l, u)
	fresh.Transport, fresh.KnownHosts = "system", filepath.Join(l.Dir, "new hosts")
	fails(t, d, fresh, UnknownKey)
	fails(t, newDialer(t, Options{Asker: says("no")}), fresh, UnknownKey)
	p := says("yes")
	dialOK(t, newDialer(t, Options{Asker: p}), fresh)
	if len(p.asked) != 1 || !strings.Contains(p.heard(), "SHA256:") {
		t.Errorf("asked %q", p.heard())
	}
	fresh.KnownHosts += "2"
	dialOK(t, newDialer(t, Options{AcceptNew: true}), fresh)
	gone := to(l, s)
	gone.Transport, gone.Port = "system", 1
	fails(t, d, gone, Refused)
	gone.Host = "no-such-host.invalid"
	fails(t, d, gone, Unresolved)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestBrokenOrFailed: ssh ends with 255 when the connection breaks and when the command ends
// with it; they are told apart, however late it is known that the connection is gone.
func TestBrokenOrFailed(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{})
	at := to(l, s)
	at.Transport = "system"
	c := dialOK(t, newDialer(t, Options{}), at)
	if exit, err := c.Run(bounded(t), "exit 255", nil, nil, nil); err != nil || exit.Code != 255 {
		t.Errorf("the command's own: %+v %v", exit, err)
	}
	st, err := c.Open(bounded(t), "cat; sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	held := c.h.legs[0].link.(*sysLink).cmd.Process // who would say that ssh has ended
	if err := held.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.Cut()
	if exit, err := st.Wait(); ReasonOf(err) != LinkDead {
		t.Errorf("a broken connection: %+v %v", exit, err)
	}
}

func BenchmarkUp(b *testing.B) {
	l := testkit.SSHD(b)
	for i := range 16 {
		l.Start(fmt.Sprintf("h%d", i), testkit.ServerOptions{})
	}
	all := func(b *testing.B, f func(name string) error) {
		for b.Loop() {
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					if err := f(fmt.Sprintf("h%d", i)); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
		}
	}
	b.Run("ssh", func(b *testing.B) {
		all(b, func(name string) error { return exec.Command("ssh", "-F", l.Config, name, "true").Run() })
	})
	for _, transport := range []string{"go", "system"} {
		b.Run(transport, func(b *testing.B) {
			all(b, func(name string) error {
				d := New(Options{})
				defer func() { _ = d.Close() }()
				at := named(l, name)
				at.Transport = transport
				c, err := d.Dial(b.Context(), at)
				if err == nil {
					_, err = c.Run(b.Context(), "true", nil, nil, nil)
				}
				return err
			})
		})
	}
}
