package dial

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"launcher/internal/testkit"
)

func TestUnknownKey(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{Unknown: true, Keys: []string{"rsa", "ed25519"}})
	l.Start("strict", testkit.ServerOptions{Unknown: true, Client: []string{"StrictHostKeyChecking yes"}})
	at := to(l, s)
	fresh := func(name string) string {
		at.KnownHosts = filepath.Join(l.Dir, "new", name)
		return at.KnownHosts
	}
	print := ssh.FingerprintSHA256(readPublic(filepath.Join(s.Dir, "host_ed25519.pub")))
	fresh("nobody")
	fails(t, newDialer(t, Options{}), at, UnknownKey, "in no known_hosts", "--accept-new-host-keys", print)
	fails(t, newDialer(t, Options{Asker: says("no")}), at, UnknownKey, "was not taken")
	if _, err := os.Stat(at.KnownHosts); err == nil {
		t.Error("a key that was refused has been written down")
	}
	p := says("yes")
	fails(t, newDialer(t, Options{Asker: p}), named(l, "strict"), UnknownKey, "StrictHostKeyChecking yes")
	if len(p.asked) > 0 {
		t.Errorf("asked %q", p.asked)
	}
	for _, p := range []*person{says("yes"), says(print)} {
		path := fresh(p.answer(""))
		d := newDialer(t, Options{Asker: p})
		dialOK(t, d, at)
		if !strings.Contains(p.heard(), print) || len(p.asked) != 1 {
			t.Errorf("asked %q", p.heard())
		}
		if b := read(t, path); !strings.HasPrefix(string(b), s.Addr()+" ssh-ed25519 ") {
			t.Errorf("%s", b)
		}
		dialOK(t, newDialer(t, Options{}), at)
	}
	path := fresh("accepted")
	dialOK(t, newDialer(t, Options{AcceptNew: true}), at)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	dialOK(t, newDialer(t, Options{}), at)
}

func TestChangedKey(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{Unknown: true, Client: []string{"StrictHostKeyChecking no"}})
	r := l.Start("r", testkit.ServerOptions{Unknown: true, Keys: []string{"rsa"}})
	other := testkit.WriteKey(t, filepath.Join(l.Dir, "other"), testkit.NewKey(t, "ed25519")).PublicKey()
	known := "# a line\n" + testkit.KnownLine(s.Addr(), other) + "\n" + testkit.KnownLine(r.Addr(), other) + "\n"
	if err := os.WriteFile(l.KnownHosts, []byte(known), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{}, {AcceptNew: true}, {Asker: says("yes")}} {
		fails(t, newDialer(t, o), to(l, s), ChangedKey, l.KnownHosts+":2", "ssh-keygen -R")
		fails(t, newDialer(t, o), named(l, "a"), ChangedKey, l.KnownHosts+":2") // its StrictHostKeyChecking is no
		fails(t, newDialer(t, o), to(l, r), ChangedKey, l.KnownHosts+":3")
		at := named(l, "a")
		at.Transport = "system"
		fails(t, newDialer(t, o), at, ChangedKey, l.KnownHosts+":2")
	}
	if string(read(t, l.KnownHosts)) != known {
		t.Error("known_hosts was changed")
	}
}

// TestKindsOfEntries: a host with several keys of which one is known, names that are
// hashed, aliases, authorities, revoked keys.
func TestKindsOfEntries(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{Unknown: true, Keys: []string{"rsa", "ecdsa", "ed25519"}})
	caKey := testkit.NewKey(t, "ed25519")
	ca := testkit.WriteKey(t, filepath.Join(l.Dir, "ca"), caKey)
	ed := readPublic(filepath.Join(s.Dir, "host_ed25519.pub"))
	ec := readPublic(filepath.Join(s.Dir, "host_ecdsa.pub"))
	rs := readPublic(filepath.Join(s.Dir, "host_rsa.pub"))
	certified := l.Start("c", testkit.ServerOptions{Unknown: true, Lines: []string{"HostCertificate " + filepath.Join(l.Dir, "c.cert")}, Client: []string{"HostKeyAlias name.lab"}})
	certKey := readPublic(filepath.Join(certified.Dir, "host_ed25519.pub"))
	cert := testkit.Certify(t, ca, certKey, ssh.HostCert, "name.lab", certified.IP)
	if err := os.WriteFile(filepath.Join(l.Dir, "c.cert"), ssh.MarshalAuthorizedKey(cert), 0o600); err != nil {
		t.Fatal(err)
	}
	certified.Stop()
	certified.Restart("HostCertificate " + filepath.Join(l.Dir, "c.cert"))
	at := to(l, s)
	cc := to(l, certified)
	for i, c := range []struct {
		known string
		at    Target
		want  Reason
	}{
		{testkit.KnownLine(s.Addr(), rs), at, ""},
		{testkit.KnownLine(s.Addr(), ec), at, ""},
		{knownhosts.HashHostname(s.Addr()) + " " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ec))), at, ""},
		{"other,[127.*]:" + strconv.Itoa(s.Port) + " " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ec))), at, ""},
		{"!" + s.Addr() + ",!" + s.IP + ",* " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ed))), at, UnknownKey},
		{testkit.KnownLine(s.IP, ed), at, ""}, // ssh takes the same key under the name without its port
		{testkit.KnownLine(s.Addr(), ed) + "\n@revoked * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ed))), at, ChangedKey},
		{"@cert-authority * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca.PublicKey()))), cc, ""},
		{"@cert-authority * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca.PublicKey()))) + "\n@revoked * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca.PublicKey()))), cc, ChangedKey},
		{"@cert-authority other " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca.PublicKey()))), cc, UnknownKey},
		{"@cert-authority * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca.PublicKey()))), at, UnknownKey},
		{"junk\n@odd x y\n" + testkit.KnownLine("name.lab", certKey), named(l, "c"), ""},
	} {
		path := filepath.Join(l.Dir, "known"+strconv.Itoa(i))
		if err := os.WriteFile(path, []byte(c.known+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.at.KnownHosts = path
		d := newDialer(t, Options{})
		if c.want == "" {
			if _, err := d.Dial(bounded(t), c.at); err != nil {
				t.Errorf("%s: %v", c.known, err)
			}
		} else {
			fails(t, d, c.at, c.want)
		}
	}
}

func TestManyNewKeysAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(path, []byte("# no end of line"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := testkit.WriteKey(t, filepath.Join(dir, "k"), testkit.NewKey(t, "ed25519")).PublicKey()
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			h := &hostKeys{name: "h" + strconv.Itoa(i%32), file: path, hash: i%2 == 0}
			if err := h.add(key); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := parseKnown(bytes.NewReader(read(t, path)), path)
	if err != nil || len(all) != 32 {
		t.Errorf("%d lines of 32, %v", len(all), err)
	}
}

// TestManyProcesses: several processes that meet the same new hosts write each key once.
func TestManyProcesses(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "known_hosts")
	testkit.WriteKey(t, path+".key", testkit.NewKey(t, "ed25519"))
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			c := exec.CommandContext(bounded(t), os.Args[0])
			c.Env = append(os.Environ(), "DIAL_TEST_ADD="+path)
			if out, err := c.CombinedOutput(); err != nil {
				t.Errorf("%v %s", err, out)
			}
		})
	}
	wg.Wait()
	all, err := parseKnown(bytes.NewReader(read(t, path)), path)
	if err != nil || len(all) != 200 {
		t.Errorf("%d lines of 200, %v", len(all), err)
	}
}

// addMany is one of its processes.
func addMany(path string) {
	for i := range 200 {
		if err := (&hostKeys{name: "h" + strconv.Itoa(i), file: path}).add(readPublic(path + ".key.pub")); err != nil {
			panic(err)
		}
	}
	os.Exit(0)
}

func FuzzParseKnown(f *testing.F) {
	f.Add("@revoked * ssh-ed25519 AAAA\n[h]:22,!x ssh-rsa AAAA\n|1|a|b ssh-ed25519 AAAA\n", "h")
	f.Add("@cert-authority *.lab ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl c\n", "a.lab")
	f.Fuzz(func(t *testing.T, text, name string) {
		all, err := parseKnown(strings.NewReader(text), "f")
		if err != nil {
			return
		}
		for _, k := range all {
			_ = k.names(name)
			if k.key == nil || k.line < 1 || len(k.hosts) == 0 {
				t.Errorf("%+v", k)
			}
		}
	})
}

func FuzzMatchPattern(f *testing.F) {
	f.Add("a*b?c*", "aXbYcZ")
	f.Fuzz(func(t *testing.T, p, s string) {
		if !strings.ContainsAny(p, "*?") && matchPattern(p, s) != (p == s) {
			t.Errorf("%q %q", p, s)
		}
		if !matchPattern("*"+strings.Repeat("?", len(s)), s) {
			t.Errorf("%q", s)
		}
	})
}
