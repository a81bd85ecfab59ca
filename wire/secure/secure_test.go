package secure

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"launcher/internal/errs"
)

func authority(t testing.TB, cluster string) *Authority {
	t.Helper()
	a, err := NewAuthority(cluster)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadAuthority(dir); !errs.Is(err, errs.NotFound) {
		t.Errorf("of an empty directory: %v", err)
	}
	a := authority(t, "my-lab.2")
	if err := a.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{CertFile, KeyFile} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	b, err := LoadAuthority(dir)
	if err != nil || b.Cluster != "my-lab.2" || b.Fingerprint() != a.Fingerprint() || !strings.HasPrefix(b.Fingerprint(), "sha256:") {
		t.Fatalf("loaded %+v, %v", b, err)
	}
	if f, err := Fingerprint(a.CA()); err != nil || f != a.Fingerprint() {
		t.Errorf("fingerprint %q, %v", f, err)
	}
	// What the loaded one signs, those who know the first one's certificate believe.
	handshake(t, issue(t, a, RoleHead, "head"), issue(t, b, RoleClient, "me"), RoleHead, nil)

	if err := os.Chmod(filepath.Join(dir, KeyFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(dir); !errs.Is(err, errs.Permission) || len(errs.HintsOf(err)) == 0 {
		t.Errorf("a key that others may read: %v", err)
	}
	os.Chmod(filepath.Join(dir, KeyFile), 0o600)
	if err := authority(t, "other").Save(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("saved into a directory that is not there")
	}
	os.WriteFile(filepath.Join(dir, CertFile), authority(t, "my-lab.2").CA(), 0o600)
	if _, err := LoadAuthority(dir); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a key and a certificate that do not belong together: %v", err)
	}
	os.WriteFile(filepath.Join(dir, KeyFile), []byte("junk"), 0o600)
	if _, err := LoadAuthority(dir); !errs.Is(err, errs.Corrupt) {
		t.Errorf("junk for a key: %v", err)
	}
}

func issue(t testing.TB, a *Authority, r Role, name string) *Identity {
	t.Helper()
	id, err := a.IssueSelf(r, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// handshake runs TLS between two identities; what either side's check says comes back.
func handshake(t testing.TB, server, client *Identity, want Role, check func(Subject)) (serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	a.SetDeadline(time.Now().Add(10 * time.Second))
	b.SetDeadline(time.Now().Add(10 * time.Second))
	done := make(chan error, 1)
	go func() {
		c := tls.Server(b, server.ServerTLS())
		err := c.Handshake()
		if err == nil {
			var s Subject
			if s, err = server.CheckPeer(c.ConnectionState()); err == nil && check != nil {
				check(s)
			}
			c.Write([]byte("x"))
		}
		done <- err
	}()
	c := tls.Client(a, client.ClientTLS(want))
	if clientErr = c.Handshake(); clientErr == nil {
		io.ReadFull(c, make([]byte, 1))
	} else {
		a.Close()
	}
	return <-done, clientErr
}

func TestSubjects(t *testing.T) {
	a := authority(t, "lab")
	sErr, cErr := handshake(t, issue(t, a, RoleHead, "head"), issue(t, a, RoleAgent, "gpu-17"), RoleHead, func(s Subject) {
		if s != (Subject{"lab", RoleAgent, "gpu-17"}) {
			t.Errorf("the server sees %v", s)
		}
	})
	if sErr != nil || cErr != nil {
		t.Errorf("%v, %v", sErr, cErr)
	}
	id := issue(t, a, RoleAgent, "gpu-17")
	leaf := id.current().Leaf
	if u := leaf.URIs[0].String(); u != "launcher://lab/agent/gpu-17" {
		t.Errorf("URI %q", u)
	}
	if back := time.Until(leaf.NotBefore); back > -Backdate+time.Minute {
		t.Errorf("valid from %s", leaf.NotBefore)
	}
	if left := time.Until(leaf.NotAfter); left > DefaultLife+time.Second || left < DefaultLife-time.Minute {
		t.Errorf("valid for %s", left)
	}
	for range 5 { // whatever the fraction of the second is now, a short life is not made shorter
		before := time.Now()
		if id, err := a.IssueSelf(RoleAgent, "short", time.Second); err != nil || id.NotAfter().Sub(before) < time.Second {
			t.Errorf("%v: valid for %s", err, id.NotAfter().Sub(before))
		}
	}
	if p, err := PeerSubject(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}); err != nil || p.Name != "gpu-17" {
		t.Errorf("%v, %v", p, err)
	}
	for _, bad := range []string{"", "a/b", "..", "a b", "-x", "x.", "ü", strings.Repeat("x", 300)} {
		if _, err := a.IssueSelf(RoleAgent, bad, 0); !errs.Is(err, errs.Invalid) {
			t.Errorf("name %q: %v", bad, err)
		}
		if _, err := NewAuthority(bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("cluster %q: %v", bad, err)
		}
		if n := CleanName(bad); !nameRE.MatchString(n) {
			t.Errorf("CleanName(%q) = %q", bad, n)
		}
	}
	if _, err := a.IssueSelf(RoleNone, "x", 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("no role: %v", err)
	}
}

// What a request says of itself counts for nothing.
func TestRequestsCannotAsk(t *testing.T) {
	a := authority(t, "lab")
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "head"}, URIs: []*url.URL{{Scheme: "launcher", Host: "lab", Path: "/head/head"}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), RoleClient, "me", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	id, err := (&Pending{key: key}).Identity(a.CA(), cert, time.Hour)
	if err != nil || id.Subject() != (Subject{"lab", RoleClient, "me"}) {
		t.Fatalf("%v, %v", id, err)
	}
	if leaf := id.current().Leaf; leaf.IsCA || len(leaf.URIs) != 1 || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Errorf("certificate %+v", leaf.URIs)
	}
	// A client is no authority and no server.
	if _, err := newAuthority(cert, key); err == nil {
		t.Error("a leaf became an authority")
	}
	_, err = handshake(t, id, issue(t, a, RoleClient, "you"), RoleClient, nil)
	if !errs.Is(err, errs.Permission) {
		t.Errorf("a client served: %v", err)
	}
}

func TestOnlyTLS13(t *testing.T) {
	a := authority(t, "lab")
	head := issue(t, a, RoleHead, "head")
	x, y := net.Pipe()
	defer x.Close()
	done := make(chan error, 1)
	go func() {
		done <- tls.Server(y, head.ServerTLS()).Handshake()
		y.Close()
	}()
	c := issue(t, a, RoleClient, "me").ClientTLS(RoleHead)
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := tls.Client(x, c).Handshake(); err == nil {
		t.Error("spoke TLS 1.2")
	}
	x.Close()
	if err := <-done; err == nil {
		t.Error("the server took TLS 1.2")
	}
}

func TestJoinTLS(t *testing.T) {
	a := authority(t, "lab")
	if _, err := JoinTLS([]byte("junk"), "lab"); !errs.Is(err, errs.Corrupt) {
		t.Errorf("junk for a CA: %v", err)
	}
	for _, c := range []struct {
		server  *Identity
		cluster string
		ok      bool
	}{
		{issue(t, a, RoleHead, "head"), "lab", true},
		{issue(t, a, RoleAgent, "local-0"), "lab", false},
		{issue(t, a, RoleHead, "head"), "other", false},
		{issue(t, authority(t, "lab"), RoleHead, "head"), "lab", false},
	} {
		x, y := net.Pipe()
		done := make(chan error, 1)
		go func() {
			s := tls.Server(y, c.server.ServerTLS())
			err := s.Handshake()
			if err == nil {
				var who Subject
				if who, err = c.server.CheckPeer(s.ConnectionState()); err == nil && who.Role != RoleNone {
					err = errors.New("a stranger has a role")
				}
				s.Write([]byte("x"))
			}
			done <- err
		}()
		cfg, err := JoinTLS(a.CA(), c.cluster)
		if err != nil {
			t.Fatal(err)
		}
		conn := tls.Client(x, cfg)
		err = conn.Handshake()
		if err == nil {
			io.ReadFull(conn, make([]byte, 1))
		}
		x.Close()
		if serr := <-done; c.ok && (err != nil || serr != nil) || !c.ok && err == nil {
			t.Errorf("%v as %s: %v, %v", c.server.Subject(), c.cluster, err, serr)
		}
	}
}

func TestRenew(t *testing.T) {
	a := authority(t, "lab")
	id := issue(t, a, RoleAgent, "n-0")
	old := id.current()
	if err := id.Renew(t.Context(), a.Renewer(id.Subject(), time.Hour)); err != nil {
		t.Fatal(err)
	}
	if id.current() == old || id.current().Leaf.PublicKey.(*ecdsa.PublicKey).Equal(old.Leaf.PublicKey) {
		t.Error("not a new certificate for a new key")
	}
	now := id.current()
	for name, by := range map[string]Renewer{
		"another's": a.Renewer(Subject{"lab", RoleHead, "head"}, time.Hour),
		"fails": func(context.Context, []byte) ([]byte, time.Duration, error) {
			return nil, 0, errs.New(errs.Unavailable, "away")
		},
		"junk": func(context.Context, []byte) ([]byte, time.Duration, error) { return []byte("junk"), time.Hour, nil },
		"stale": func(context.Context, []byte) ([]byte, time.Duration, error) {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: now.Certificate[0]}), time.Hour, nil
		},
	} {
		if err := id.Renew(t.Context(), by); err == nil || id.current() != now {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A renewal that fails is tried again well before the end.
func TestKeepTriesAgain(t *testing.T) {
	a := authority(t, "lab")
	id, err := a.IssueSelf(RoleAgent, "n-0", 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var calls atomic.Int32
	good := a.Renewer(id.Subject(), time.Hour)
	id.Keep(ctx, func(ctx context.Context, csr []byte) ([]byte, time.Duration, error) {
		switch calls.Add(1) {
		case 1, 2:
			return nil, 0, errs.New(errs.Unavailable, "the head is away")
		case 3:
			defer cancel() // Keep waits for half an hour after this
		}
		return good(ctx, csr)
	}, slog.New(slog.DiscardHandler))
	if calls.Load() != 3 || time.Until(id.NotAfter()) < 50*time.Minute {
		t.Errorf("%d calls, valid until %s", calls.Load(), id.NotAfter())
	}
}

func TestExport(t *testing.T) {
	a := authority(t, "lab")
	id := issue(t, a, RoleAgent, "n-0")
	b, err := id.Export()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Import(b)
	if err != nil || again.Subject() != id.Subject() || again.life != id.life || again.got.Sub(id.got).Abs() > time.Second {
		t.Fatalf("%+v, %v", again, err)
	}
	if s, c := handshake(t, issue(t, a, RoleHead, "head"), again, RoleHead, nil); s != nil || c != nil {
		t.Errorf("%v, %v", s, c)
	}
	for _, junk := range [][]byte{nil, []byte("junk"), b[:len(b)/2]} {
		if _, err := Import(junk); err == nil {
			t.Errorf("%q was imported", junk)
		}
	}
}

func TestSameKey(t *testing.T) {
	k := NewKey()
	if !SameKey(k, append([]byte(nil), k...)) || SameKey(k, NewKey()) || SameKey(nil, nil) || SameKey(k, nil) || SameKey(k, k[:31]) || len(k) != 32 {
		t.Error("join keys are compared wrongly")
	}
}

func TestRoles(t *testing.T) {
	for r := RoleHead; r <= RoleClient; r++ {
		if got, ok := ParseRole(r.String()); !ok || got != r {
			t.Errorf("%s became %s", r, got)
		}
	}
	if _, ok := ParseRole("none"); ok {
		t.Error("none is no role of a certificate")
	}
}

// A certificate request comes from a process that is not in the cluster yet.
func FuzzSign(f *testing.F) {
	a := authority(f, "lab")
	p, _ := NewPending()
	f.Add(p.CSR)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, csr []byte) {
		cert, err := a.Sign(csr, RoleAgent, "n-0", time.Hour)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("kind %s: %v", errs.KindOf(err), err)
			}
			return
		}
		c, err := parseCert(cert)
		if err != nil || c.IsCA || c.URIs[0].String() != "launcher://lab/agent/n-0" {
			t.Errorf("signed %v, %v", c, err)
		}
	})
}
