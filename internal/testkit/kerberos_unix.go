//go:build unix

package testkit

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Kerberos is an MIT KDC of the test's own, with tickets for the Lab's user.
type Kerberos struct {
	lab *Lab
	Env []string // of those who log in
}

// Kerberos starts one, or skips the test; servers that are started afterwards know it. It
// sets the test's environment.
func (l *Lab) Kerberos() *Kerberos {
	t := l.t
	t.Helper()
	for _, p := range []string{"krb5kdc", "kdb5_util", "kadmin.local", "kinit"} {
		if _, err := exec.LookPath(p); err != nil || os.Getuid() != 0 {
			t.Skipf("SKIP: needs root and %s (krb5-kdc, krb5-admin-server, krb5-user)", p)
		}
	}
	n, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := n.Addr().(*net.TCPAddr).Port
	_ = n.Close()
	k := &Kerberos{lab: l}
	in := func(name string) string { return filepath.Join(l.Dir, name) }
	l.write(in("krb5.conf"), fmt.Sprintf(`[libdefaults]
 default_realm = LAB.TEST
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
[realms]
 LAB.TEST = {
  kdc = 127.0.0.1:%d
 }
`, port))
	l.write(in("kdc.conf"), fmt.Sprintf(`[realms]
 LAB.TEST = {
  database_name = %s
  key_stash_file = %s
  kdc_listen = 127.0.0.1:%d
  kdc_tcp_listen = 127.0.0.1:%d
 }
[logging]
 kdc = FILE:%s
`, in("principal"), in("stash"), port, port, in("kdc.log")))
	for _, v := range []string{"KRB5_CONFIG=" + in("krb5.conf"), "KRB5_KDC_PROFILE=" + in("kdc.conf"), "KRB5CCNAME=FILE:" + in("tickets"), "KRB5_KTNAME=" + in("host.keytab")} {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
		k.Env = append(k.Env, v)
	}
	k.do("kdb5_util", "create", "-s", "-r", "LAB.TEST", "-P", "only of this test")
	for _, q := range []string{"addprinc -randkey host/localhost", "addprinc -randkey " + l.User, "ktadd -k " + in("host.keytab") + " host/localhost", "ktadd -k " + in("user.keytab") + " " + l.User} {
		k.do("kadmin.local", "-r", "LAB.TEST", "-q", q)
	}
	kdc := exec.CommandContext(t.Context(), "krb5kdc", "-n", "-r", "LAB.TEST", "-P", in("kdc.pid"))
	out := &Buffer{}
	kdc.Stdout, kdc.Stderr = out, out
	if err := kdc.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kdc.Process.Kill(); _ = kdc.Wait() })
	Eventually(t, Bound, func() string {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err != nil {
			return err.Error() + " " + out.String()
		}
		_ = c.Close()
		return ""
	})
	return k
}

func (k *Kerberos) do(name string, args ...string) {
	t := k.lab.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Bound)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Login gets the user a ticket.
func (k *Kerberos) Login() {
	k.do("kinit", "-k", "-t", filepath.Join(k.lab.Dir, "user.keytab"), k.lab.User)
}

// Start starts a server, NAME of the ssh_config, that takes tickets and nothing else.
func (k *Kerberos) Start(name string, o ServerOptions) *Server {
	l := k.lab
	l.t.Helper()
	o.Lines = append(o.Lines, "ListenAddress 127.0.0.1", "GSSAPIAuthentication yes", "PubkeyAuthentication no", "GSSAPIStrictAcceptorCheck no")
	o.Client = append(o.Client, "HostName localhost", "HostKeyAlias "+name, "GSSAPIAuthentication yes", "AddressFamily inet")
	s := l.Start(name, o)
	pub, err := os.ReadFile(s.HostKeys[0] + ".pub")
	if err != nil {
		l.t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(pub)
	if err != nil {
		l.t.Fatal(err)
	}
	l.Know(name+":22", key)
	return s
}
