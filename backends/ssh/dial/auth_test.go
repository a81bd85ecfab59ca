package dial

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"launcher/internal/testkit"
)

func write(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeys(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	a := l.Start("a", testkit.ServerOptions{})
	b := l.Start("b", testkit.ServerOptions{})
	wrong := filepath.Join(l.Dir, "wrong")
	testkit.WriteKey(t, wrong, testkit.NewKey(t, "ed25519"))
	at := named(l, "a")
	only := func(s *testkit.Server, key string) Target { return only(l, s, key) }
	fails(t, newDialer(t, Options{}), only(a, wrong), Denied, wrong, "it takes publickey")
	fails(t, newDialer(t, Options{}), only(a, filepath.Join(l.Dir, "none")), Denied, "no key")
	at.Transport = "system"
	at.Config = write2(l, wrong)
	at.Host, at.Port, at.KnownHosts = a.IP, a.Port, l.KnownHosts
	fails(t, newDialer(t, Options{}), at, Denied)

	// An OpenSSH file, the old format with its public half beside it, and without.
	k := testkit.NewKey(t, "ed25519")
	block, err := ssh.MarshalPrivateKeyWithPassphrase(k, "", []byte("open"))
	if err != nil {
		t.Fatal(err)
	}
	signer, _ := ssh.NewSignerFromKey(k)
	ec := testkit.NewKey(t, "ecdsa").(*ecdsa.PrivateKey)
	der, _ := x509.MarshalECPrivateKey(ec)
	old, err := x509.EncryptPEMBlock(rand.Reader, "EC PRIVATE KEY", der, []byte("open"), x509.PEMCipherAES128) //nolint:staticcheck // the old format is what is tested
	if err != nil {
		t.Fatal(err)
	}
	ecSigner, _ := ssh.NewSignerFromKey(ec)
	for _, s := range []*testkit.Server{a, b} {
		s.Authorize(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
		s.Authorize(string(ssh.MarshalAuthorizedKey(ecSigner.PublicKey())))
	}
	write(t, filepath.Join(l.Dir, "old1.pub"), ssh.MarshalAuthorizedKey(ecSigner.PublicKey()))
	for name, file := range map[string][]byte{"new": pem.EncodeToMemory(block), "old1": pem.EncodeToMemory(old), "old2": pem.EncodeToMemory(old)} {
		path := write(t, filepath.Join(l.Dir, name), file)
		fails(t, newDialer(t, Options{}), only(a, path), NoTerminal, "ssh-add "+path)
		p := says("open")
		d := newDialer(t, Options{Asker: p})
		dialOK(t, d, only(a, path))
		dialOK(t, d, only(b, path))
		if len(p.asked) != 1 {
			t.Errorf("%s: asked %d times", name, len(p.asked))
		}
		if name != "new" { // its key derivation takes seconds under the race detector
			fails(t, newDialer(t, Options{Asker: says("wrong")}), only(a, path), Denied, "three times")
		}
		p = says("open")
		sys := only(a, path)
		sys.Transport = "system"
		dialOK(t, newDialer(t, Options{Asker: p}), sys)
		if len(p.asked) != 1 {
			t.Errorf("%s: ssh asked %q", name, p.asked)
		}
	}
}

// chair is an Asker that is there at times.
type chair struct {
	*person
	now Sitting
}

func (c *chair) Sitting(context.Context) Sitting { return c.now }

// TestSittings: what could not be asked, or was answered wrongly, is asked when somebody
// sits down again; the Dialer is the same.
func TestSittings(t *testing.T) {
	l := testkit.SSHD(t)
	a := l.Start("a", testkit.ServerOptions{Unknown: true})
	key := testkit.NewKey(t, "ed25519")
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("open"))
	if err != nil {
		t.Fatal(err)
	}
	signer, _ := ssh.NewSignerFromKey(key)
	a.Authorize(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	at := only(l, a, write(t, filepath.Join(l.Dir, "locked"), pem.EncodeToMemory(block)))
	c := &chair{person: says("yes")}
	d := newDialer(t, Options{Asker: c})
	fails(t, d, at, UnknownKey, "--accept-new-host-keys")
	c.now = Sitting{Number: 1, AcceptNew: true} // without a terminal
	fails(t, d, at, NoTerminal, "ssh-add")
	c.now = Sitting{Number: 2, Terminal: true}
	c.person = says("wrong")
	fails(t, d, at, Denied, "three times")
	n := len(c.asked)
	fails(t, d, at, Denied, "three times") // not again in the same sitting
	if len(c.asked) != n {
		t.Errorf("asked again: %q", c.asked)
	}
	c.now.Number, c.person = 3, says("open")
	dialOK(t, d, at)
}

// only is a server with one key and no agent.
func only(l *testkit.Lab, s *testkit.Server, key string) Target {
	t := to(l, s)
	t.Config = write2(l, key)
	t.Identity = ""
	return t
}

// TestSlowPerson: while a person thinks about one host's question, the logins to others
// that wait for the same answer are not late.
func TestSlowPerson(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	key := testkit.NewKey(t, "ed25519")
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("open"))
	if err != nil {
		t.Fatal(err)
	}
	signer, _ := ssh.NewSignerFromKey(key)
	path := write(t, filepath.Join(l.Dir, "locked"), pem.EncodeToMemory(block))
	const bound = 15 * time.Second
	d := newDialer(t, Options{Timeout: bound, Asker: &person{answer: func(string) string {
		time.Sleep(bound + 2*time.Second) // sleep: the person takes longer than a host may
		return "open"
	}}})
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		s := l.Start(name, testkit.ServerOptions{})
		s.Authorize(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
		wg.Go(func() {
			c, err := d.Dial(bounded(t), only(l, s, path))
			if err != nil {
				t.Error(err)
				return
			}
			_ = c.Close()
		})
	}
	wg.Wait()
}

// write2 makes an ssh_config with one key and no agent.
func write2(l *testkit.Lab, key string) string {
	path := key + ".config"
	_ = os.WriteFile(path, []byte("IdentityFile "+key+"\nIdentitiesOnly yes\nIdentityAgent none\n"), 0o600)
	return path
}

func TestAgent(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	s := l.Start("a", testkit.ServerOptions{})
	sock := filepath.Join(l.Dir, "agent")
	agent := exec.CommandContext(bounded(t), "ssh-agent", "-D", "-a", sock)
	if err := agent.Start(); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	t.Cleanup(func() { _ = agent.Process.Kill(); _ = agent.Wait() })
	testkit.Eventually(t, testkit.Bound, func() string {
		if _, err := os.Stat(sock); err != nil {
			return err.Error()
		}
		return ""
	})
	add := func(name, kind string) {
		path := filepath.Join(l.Dir, name)
		signer := testkit.WriteKey(t, path, testkit.NewKey(t, kind))
		if name == "rsa" {
			s.Authorize(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
		}
		c := exec.CommandContext(bounded(t), "ssh-add", path)
		c.Env = append(os.Environ(), "SSH_AUTH_SOCK="+sock)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	add("ecdsa", "ecdsa")
	add("rsa", "rsa") // which the server takes
	at := to(l, s)
	at.Identity = ""
	at.Config = write(t, filepath.Join(l.Dir, "c1"), []byte("IdentityAgent "+sock+"\nIdentityFile /nowhere\n"))
	dialOK(t, newDialer(t, Options{}), at)
	at.Config = write(t, filepath.Join(l.Dir, "c2"), []byte("IdentityAgent "+sock+"\nIdentityFile /nowhere\nIdentitiesOnly yes\n"))
	fails(t, newDialer(t, Options{}), at, Denied)
	// Only the public half is here: the agent signs.
	at.Config = write(t, filepath.Join(l.Dir, "c3"), []byte("IdentityAgent "+sock+"\nIdentityFile "+filepath.Join(l.Dir, "rsa.pub")+"\nIdentitiesOnly yes\n"))
	dialOK(t, newDialer(t, Options{}), at)
	at.Config = write(t, filepath.Join(l.Dir, "c4"), []byte("IdentityAgent "+sock+".gone\nIdentityFile /nowhere\n"))
	fails(t, newDialer(t, Options{}), at, Denied, "is not there")
	for i := range 8 {
		add(fmt.Sprint("many", i), "ecdsa")
	}
	strict := l.Start("strict", testkit.ServerOptions{Lines: []string{"MaxAuthTries 4"}})
	many := to(l, strict)
	many.Identity = ""
	many.Config = write(t, filepath.Join(l.Dir, "c5"), []byte("IdentityAgent "+sock+"\nIdentityFile /nowhere\n"))
	fails(t, newDialer(t, Options{}), many, Denied, "IdentitiesOnly")
}

// TestRootTwoFactors: a jump host that asks for a one-time password asks once, however
// many hosts lie behind it. Its sshd runs under a name of its own, and so does its PAM
// service.
func TestRootTwoFactors(t *testing.T) {
	if found, _ := filepath.Glob("/lib/*/security/pam_oath.so"); os.Getuid() != 0 || found == nil {
		t.Skip("SKIP: needs root and pam_oath (libpam-oath)")
	}
	l := testkit.SSHD(t)
	const name = "sshd-launcher-t"
	secret := []byte("0123456789abcdefghij")
	users := write(t, filepath.Join(l.Dir, "users.oath"), []byte(fmt.Sprintf("HOTP %s - %x\n", l.User, secret)))
	service := filepath.Join("/etc/pam.d", name)
	write(t, service, []byte("auth required pam_oath.so usersfile="+users+" window=20 digits=6\naccount required pam_permit.so\nsession required pam_permit.so\n"))
	t.Cleanup(func() { _ = os.Remove(service) })
	if err := os.Symlink("/usr/sbin/sshd", filepath.Join(l.Dir, name)); err != nil {
		t.Fatal(err)
	}
	l.Start("jump", testkit.ServerOptions{Program: filepath.Join(l.Dir, name), Lines: []string{"UsePAM yes", "KbdInteractiveAuthentication yes", "AuthenticationMethods publickey,keyboard-interactive"}})
	l.Start("a", testkit.ServerOptions{Client: []string{"ProxyJump jump"}})
	l.Start("b", testkit.ServerOptions{Client: []string{"ProxyJump jump"}})
	fails(t, newDialer(t, Options{}), named(l, "a"), NoTerminal, "jump", "there is no terminal")
	fails(t, newDialer(t, Options{Asker: says("000000")}), named(l, "a"), Denied)
	counter := uint64(5)
	phone := &person{answer: func(string) string { counter++; return testkit.OneTime(secret, counter) }}
	d := newDialer(t, Options{Asker: phone})
	for _, name := range []string{"a", "b", "jump"} {
		output(t, dialOK(t, d, named(l, name)), "true")
	}
	if len(phone.asked) != 1 || !strings.Contains(phone.heard(), "@jump") {
		t.Errorf("asked %q", phone.asked)
	}
	at := named(l, "a")
	at.Transport = "system"
	phone.asked = nil
	output(t, dialOK(t, newDialer(t, Options{Asker: phone}), at), "true")
	if len(phone.asked) != 1 {
		t.Errorf("asked %q", phone.asked)
	}
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	l := testkit.SSHD(t)
	ca := testkit.WriteKey(t, filepath.Join(l.Dir, "ca"), testkit.NewKey(t, "ed25519"))
	s := l.Start("a", testkit.ServerOptions{Lines: []string{"TrustedUserCAKeys " + filepath.Join(l.Dir, "ca.pub")}})
	for _, kind := range []string{"ed25519", "rsa"} {
		path := filepath.Join(l.Dir, kind)
		signer := testkit.WriteKey(t, path, testkit.NewKey(t, kind))
		at := to(l, s)
		at.Identity, at.Config = "", write2(l, path)
		fails(t, newDialer(t, Options{}), at, Denied)
		cert := ssh.MarshalAuthorizedKey(testkit.Certify(t, ca, signer.PublicKey(), ssh.UserCert, l.User))
		far := write(t, filepath.Join(l.Dir, "far."+kind), cert)
		at.Config = write(t, filepath.Join(l.Dir, "cc."+kind), []byte(strings.ReplaceAll("IdentityFile KEY\nIdentitiesOnly yes\nCertificateFile FAR\n", "KEY", path)))
		write(t, at.Config, []byte(strings.ReplaceAll(string(read(t, at.Config)), "FAR", far)))
		dialOK(t, newDialer(t, Options{}), at)
		write(t, path+"-cert.pub", cert)
		at.Config = write2(l, path)
		dialOK(t, newDialer(t, Options{}), at)
	}
}
