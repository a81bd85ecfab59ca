package secure

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"launcher/internal/errs"
)

// base is what all our TLS has in common. Host names are not part of anyone's identity,
// so the standard library's check of them is off and verify does the whole check instead.
// There is no resumption: a connection lives long, and each handshake is checked in full.
func base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		InsecureSkipVerify:     true, // verify below replaces it
		SessionTicketsDisabled: true,
		NextProtos:             []string{"launcher"},
	}
}

// ServerTLS accepts any client that speaks TLS 1.3; CheckPeer must then say who it is.
// The check comes after the handshake so that a refusal can be a sentence, not an alert.
func (id *Identity) ServerTLS() *tls.Config {
	c := base()
	c.ClientAuth = tls.RequestClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.current(), nil }
	return c
}

// ClientTLS connects to a process of the same cluster that has the role want, and tells
// nothing but its own certificate to anyone else.
func (id *Identity) ClientTLS(want Role) *tls.Config {
	c := base()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.current(), nil }
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := verify(cs, id.pool, id.subject.Cluster, want, x509.ExtKeyUsageServerAuth)
		return err
	}
	return c
}

// CheckPeer says who the client of an accepted connection is. One without a certificate
// is RoleNone, which may only join.
func (id *Identity) CheckPeer(cs tls.ConnectionState) (Subject, error) {
	if len(cs.PeerCertificates) == 0 {
		return Subject{Cluster: id.subject.Cluster}, nil
	}
	return verify(cs, id.pool, id.subject.Cluster, RoleNone, x509.ExtKeyUsageClientAuth)
}

// JoinTLS connects to the head of the cluster whose CA is pinned, showing no certificate.
func JoinTLS(ca []byte, cluster string) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errs.New(errs.Corrupt, "no certificate of the cluster to trust")
	}
	c := base()
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := verify(cs, pool, cluster, RoleHead, x509.ExtKeyUsageServerAuth)
		return err
	}
	return c, nil
}

// verify checks the other side's certificate: signed by the cluster's authority, valid
// now, for this use, of this cluster, of this role (RoleNone: any).
func verify(cs tls.ConnectionState, pool *x509.CertPool, cluster string, want Role, use x509.ExtKeyUsage) (Subject, error) {
	if len(cs.PeerCertificates) == 0 {
		return Subject{}, errs.New(errs.Permission, "the other side showed no certificate")
	}
	c, now := cs.PeerCertificates[0], time.Now()
	_, err := c.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
	if err != nil {
		return Subject{}, explain(err, c, now)
	}
	if len(c.URIs) != 1 {
		return Subject{}, errs.New(errs.Permission, "the other side's certificate names nobody")
	}
	s, err := parseSubject(c.URIs[0])
	if err != nil {
		return Subject{}, err
	}
	if s.Cluster != cluster {
		return Subject{}, errs.New(errs.Permission, "the other side is the %s, not of cluster %s", s, cluster)
	}
	if want != RoleNone && s.Role != want {
		return Subject{}, errs.New(errs.Permission, "the other side is the %s, not the %s", s, want)
	}
	return s, nil
}

func explain(err error, c *x509.Certificate, now time.Time) error {
	if inv, ok := errors.AsType[x509.CertificateInvalidError](err); ok && inv.Reason == x509.Expired {
		e := errs.New(errs.Permission, "the other side's certificate (%s) is valid from %s to %s, and here it is %s",
			c.Subject.CommonName, c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		return e.Hint("compare the clocks of both machines; a difference of up to an hour is allowed for")
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return errs.New(errs.Permission, "the other side's certificate is not of this cluster: another authority signed it").
			Hint("another cluster listens or dials there, or this one was made anew under the same name; `launcher status` shows the address")
	}
	return errs.Wrap(errs.Permission, err, "the other side's certificate is refused")
}

// PeerSubject is who the other side of a connection is whose certificate has been checked.
func PeerSubject(cs tls.ConnectionState) (Subject, error) {
	if len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].URIs) != 1 {
		return Subject{}, errs.New(errs.Permission, "the other side's certificate names nobody")
	}
	return parseSubject(cs.PeerCertificates[0].URIs[0])
}
