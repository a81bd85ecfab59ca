package dial

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// TestRootGSSAPI: transport = "system" logs in with a Kerberos ticket, against an MIT KDC of
// the test's own and an sshd that takes nothing else.
func TestRootGSSAPI(t *testing.T) {
	for _, p := range []string{"krb5kdc", "kdb5_util", "kadmin.local", "kinit"} {
		if _, err := exec.LookPath(p); err != nil || os.Getuid() != 0 {
			t.Skipf("SKIP: needs root and %s (krb5-kdc, krb5-admin-server, krb5-user)", p)
		}
	}
	l := testkit.SSHD(t)
	port := freePort(t)
	in := func(name string) string { return filepath.Join(l.Dir, name) }
	write(t, in("krb5.conf"), []byte(fmt.Sprintf(`[libdefaults]
 default_realm = LAB.TEST
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
[realms]
 LAB.TEST = {
  kdc = 127.0.0.1:%d
 }
`, port)))
	write(t, in("kdc.conf"), []byte(fmt.Sprintf(`[realms]
 LAB.TEST = {
  database_name = %s
  key_stash_file = %s
  kdc_listen = 127.0.0.1:%d
  kdc_tcp_listen = 127.0.0.1:%d
 }
[logging]
 kdc = FILE:%s
`, in("principal"), in("stash"), port, port, in("kdc.log"))))
	for k, v := range map[string]string{"KRB5_CONFIG": in("krb5.conf"), "KRB5_KDC_PROFILE": in("kdc.conf"), "KRB5CCNAME": "FILE:" + in("tickets"), "KRB5_KTNAME": in("host.keytab")} {
		t.Setenv(k, v)
	}
	do := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(bounded(t), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	do("kdb5_util", "create", "-s", "-r", "LAB.TEST", "-P", "only of this test")
	for _, q := range []string{"addprinc -randkey host/localhost", "addprinc -randkey " + l.User, "ktadd -k " + in("host.keytab") + " host/localhost", "ktadd -k " + in("user.keytab") + " " + l.User} {
		do("kadmin.local", "-r", "LAB.TEST", "-q", q)
	}
	kdc := exec.CommandContext(t.Context(), "krb5kdc", "-n", "-r", "LAB.TEST", "-P", in("kdc.pid"))
	out := &testkit.Buffer{}
	kdc.Stdout, kdc.Stderr = out, out
	if err := kdc.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kdc.Process.Kill(); _ = kdc.Wait() })
	testkit.Eventually(t, testkit.Bound, func() string {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err != nil {
			return err.Error() + " " + out.String()
		}
		_ = c.Close()
		return ""
	})
	s := l.Start("k", testkit.ServerOptions{Lines: []string{"ListenAddress 127.0.0.1", "GSSAPIAuthentication yes", "PubkeyAuthentication no", "GSSAPIStrictAcceptorCheck no"},
		Client: []string{"HostName localhost", "HostKeyAlias k", "GSSAPIAuthentication yes", "AddressFamily inet"}})
	l.Know("k:22", readPublic(s.HostKeys[0]+".pub"))
	at := named(l, "k")
	fails(t, newDialer(t, Options{}), at, Denied, `transport = "system"`) // the Go transport has no Kerberos
	at.Transport = "system"
	fails(t, newDialer(t, Options{}), at, Denied)
	do("kinit", "-k", "-t", in("user.keytab"), l.User)
	both(t, dialOK(t, newDialer(t, Options{}), at))
}

// freePort is a TCP port of the loopback that was free just now.
func freePort(t *testing.T) int {
	t.Helper()
	n, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	return n.Addr().(*net.TCPAddr).Port
}
