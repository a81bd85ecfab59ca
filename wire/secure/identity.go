package secure

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"sync"
	"time"

	"launcher/internal/errs"
)

// Pending is a fresh key whose certificate has not been issued yet.
type Pending struct {
	CSR []byte // PEM
	key *ecdsa.PrivateKey
}

// NewPending makes a key and the request to have it certified.
func NewPending() (*Pending, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "making a key")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "making a certificate request")
	}
	return &Pending{CSR: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key: key}, nil
}

// Identity is a process's certificate and key, and the CA it believes. Connections take
// the newest certificate when they start. It is safe for concurrent use.
type Identity struct {
	subject Subject
	ca      []byte
	pool    *x509.CertPool

	mu   sync.Mutex
	cert *tls.Certificate // guarded by mu; replaced, never changed
	life time.Duration    // guarded by mu
	got  time.Time        // guarded by mu; by our clock, with its monotonic part
}

// Identity puts the issued certificate to its key. life is what the issuer said the
// certificate lives from now on; by it, not by dates, the time of renewal is told, so
// that a clock that is off does no harm.
func (p *Pending) Identity(ca, cert []byte, life time.Duration) (*Identity, error) {
	pair, err := keyPair(cert, p.key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errs.New(errs.Corrupt, "no certificate of the cluster")
	}
	id := &Identity{ca: bytes.Clone(ca), pool: pool}
	if len(pair.Leaf.URIs) != 1 {
		return nil, errs.New(errs.Corrupt, "the issued certificate names nobody")
	}
	if id.subject, err = parseSubject(pair.Leaf.URIs[0]); err != nil {
		return nil, err
	}
	id.set(pair, life)
	return id, nil
}

func (id *Identity) set(pair *tls.Certificate, life time.Duration) {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.cert, id.life, id.got = pair, life, time.Now()
}

// Subject is who this is.
func (id *Identity) Subject() Subject { return id.subject }

// CA is the cluster's certificate, PEM.
func (id *Identity) CA() []byte { return bytes.Clone(id.ca) }

// NotAfter is the end of the newest certificate.
func (id *Identity) NotAfter() time.Time { return id.current().Leaf.NotAfter }

func (id *Identity) current() *tls.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.cert
}

// Renewer has a key certified for the identity's own subject: Authority.Renewer, or
// session.Renewer over the network.
type Renewer func(ctx context.Context, csr []byte) (cert []byte, life time.Duration, err error)

// Renewer issues certificates to a process that holds the authority's key.
func (a *Authority) Renewer(s Subject, life time.Duration) Renewer {
	if life <= 0 {
		life = DefaultLife
	}
	return func(_ context.Context, csr []byte) ([]byte, time.Duration, error) {
		c, err := a.Sign(csr, s.Role, s.Name, life)
		return c, life, err
	}
}

// Renew makes a new key and has it certified at once.
func (id *Identity) Renew(ctx context.Context, by Renewer) error {
	p, err := NewPending()
	if err != nil {
		return err
	}
	cert, life, err := by(ctx, p.CSR)
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "renewing the certificate of %s", id.subject)
	}
	n, err := p.Identity(id.ca, cert, life)
	if err != nil {
		return err
	}
	if n.subject != id.subject {
		return errs.New(errs.Permission, "the renewed certificate is for %s, not for %s", n.subject, id.subject)
	}
	id.set(n.cert, life)
	return nil
}

// Keep renews the certificate at half its life, for as long as ctx lives. A renewal that
// fails is tried again after a tenth of the life, at most a minute later; the old
// certificate serves until its end. Keep is the owner of its own waiting: run it under
// whatever owns the identity.
func (id *Identity) Keep(ctx context.Context, by Renewer, log *slog.Logger) {
	for {
		id.mu.Lock()
		life, wait := id.life, time.Until(id.got.Add(id.life/2))
		id.mu.Unlock()
		if !sleep(ctx, wait) {
			return
		}
		for {
			try, cancel := context.WithTimeout(ctx, max(life/4, time.Second))
			err := id.Renew(try, by)
			cancel()
			if err == nil {
				log.Debug("certificate renewed", "subject", id.subject.String(), "until", id.NotAfter())
				break
			}
			if ctx.Err() != nil {
				return
			}
			log.Warn("certificate not renewed", "err", err, "until", id.NotAfter())
			if !sleep(ctx, min(life/10, time.Minute)) {
				return
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
