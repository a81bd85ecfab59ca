package dial

import (
	"testing"

	"launcher/internal/testkit"
)

// TestRootGSSAPI: transport = "system" logs in with a Kerberos ticket, against an MIT KDC of
// the test's own and an sshd that takes nothing else.
func TestRootGSSAPI(t *testing.T) {
	l := testkit.SSHD(t)
	k := l.Kerberos()
	k.Start("k", testkit.ServerOptions{})
	at := named(l, "k")
	fails(t, newDialer(t, Options{}), at, Denied, `transport = "system"`) // the Go transport has no Kerberos
	at.Transport = "system"
	fails(t, newDialer(t, Options{}), at, Denied)
	k.Login()
	both(t, dialOK(t, newDialer(t, Options{}), at))
}
