package secure

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"launcher/internal/errs"
)

// Files of an authority in a cluster's state directory.
const (
	CertFile = "ca.crt"
	KeyFile  = "ca.key"
)

// Authority is a cluster's certificate authority. It is safe for concurrent use.
type Authority struct {
	Cluster string
	cert    *x509.Certificate
	pem     []byte
	key     *ecdsa.PrivateKey
}

// NewAuthority makes an authority for a cluster; Save keeps it.
func NewAuthority(cluster string) (*Authority, error) {
	if err := checkName("the cluster's name", cluster); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "making the cluster's key")
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "launcher cluster " + cluster},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		URIs:                  []*url.URL{{Scheme: "launcher", Host: cluster}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "making the cluster's certificate")
	}
	return newAuthority(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key)
}

func newAuthority(certPEM []byte, key *ecdsa.PrivateKey) (*Authority, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].Scheme != "launcher" {
		return nil, errs.New(errs.Corrupt, "the certificate is not that of a cluster")
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errs.New(errs.Corrupt, "the key does not belong to the certificate")
	}
	return &Authority{Cluster: cert.URIs[0].Host, cert: cert, pem: certPEM, key: key}, nil
}

// LoadAuthority reads what Save wrote. A key that others may read is refused.
func LoadAuthority(dir string) (*Authority, error) {
	keyPath := filepath.Join(dir, KeyFile)
	st, err := os.Stat(keyPath)
	if err != nil {
		return nil, fileErr(err, "the cluster's key")
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, errs.New(errs.Permission, "%s may be read by others (mode %04o)", keyPath, st.Mode().Perm()).
			Hint("whoever has it can join and command the cluster: chmod 600 it, or make the cluster anew if others had access")
	}
	keyPEM, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, fileErr(err, "the cluster's key")
	}
	certPEM, err := os.ReadFile(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, fileErr(err, "the cluster's certificate")
	}
	b, _ := pem.Decode(keyPEM)
	if b == nil {
		return nil, errs.New(errs.Corrupt, "%s holds no key", keyPath)
	}
	k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "%s", keyPath)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errs.New(errs.Corrupt, "%s holds a key of another sort", keyPath)
	}
	a, err := newAuthority(certPEM, key)
	if err != nil {
		return nil, errs.Wrap(errs.Unknown, err, "%s", filepath.Join(dir, CertFile))
	}
	return a, nil
}

func fileErr(err error, what string) error {
	k := errs.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k = errs.NotFound
	case errors.Is(err, fs.ErrPermission):
		k = errs.Permission
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errs.Wrap(errs.Exhausted, err, "%s", what).Hint("make room on that file system, or set LAUNCHER_HOME to a place with more")
	}
	return errs.Wrap(k, err, "%s", what)
}

// Save writes the authority into dir, 0600, each file whole or not at all.
func (a *Authority) Save(dir string) error {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "encoding the cluster's key")
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	// The key first: a certificate without its key would look like an authority.
	if err := writeFile(filepath.Join(dir, KeyFile), keyPEM); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, CertFile), a.pem)
}

func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // 0600 by definition
	if err != nil {
		return fileErr(err, "writing "+path)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fileErr(err, "writing "+path)
	}
	return nil
}

// CA is the authority's certificate, PEM: what others pin.
func (a *Authority) CA() []byte { return bytes.Clone(a.pem) }

// Fingerprint names the authority in a line.
func (a *Authority) Fingerprint() string { return fingerprint(a.cert) }

// Fingerprint of a CA certificate in PEM.
func Fingerprint(caPEM []byte) (string, error) {
	c, err := parseCert(caPEM)
	if err != nil {
		return "", err
	}
	return fingerprint(c), nil
}

func fingerprint(c *x509.Certificate) string {
	h := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(h[:])
}

// Sign issues a certificate for the key in csr (PEM). What the request says of itself is
// ignored: role and name are the caller's decision. life <= 0 means DefaultLife.
func (a *Authority) Sign(csr []byte, role Role, name string, life time.Duration) ([]byte, error) {
	b, _ := pem.Decode(csr)
	if b == nil || b.Type != "CERTIFICATE REQUEST" {
		return nil, errs.New(errs.Invalid, "not a certificate request")
	}
	r, err := x509.ParseCertificateRequest(b.Bytes)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "bad certificate request")
	}
	return a.issue(r.PublicKey, role, name, life)
}

func (a *Authority) issue(public any, role Role, name string, life time.Duration) ([]byte, error) {
	if err := checkName("the name", name); err != nil {
		return nil, err
	}
	if role == RoleNone {
		return nil, errs.New(errs.Invalid, "a certificate needs a role")
	}
	if life <= 0 {
		life = DefaultLife
	}
	now := time.Now()
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	if role == RoleClient { // nobody dials a client
		usage = usage[:1]
	}
	t := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: role.String() + " " + name},
		NotBefore:    now.Add(-Backdate),
		NotAfter:     now.Add(life + time.Second - 1), // encoded in whole seconds, rounded down (RFC 5280, 4.1.2.5)
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  usage,
		URIs:         []*url.URL{Subject{a.Cluster, role, name}.URI()},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, public, a.key)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "signing a certificate for %s %s", role, name)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// IssueSelf makes an identity for a process that holds the authority's key: the head, and
// the commands on the machine with the state directory. It renews itself by Keep.
func (a *Authority) IssueSelf(role Role, name string, life time.Duration) (*Identity, error) {
	if life <= 0 {
		life = DefaultLife
	}
	p, err := NewPending()
	if err != nil {
		return nil, err
	}
	cert, err := a.Sign(p.CSR, role, name, life)
	if err != nil {
		return nil, err
	}
	return p.Identity(a.pem, cert, life)
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func parseCert(p []byte) (*x509.Certificate, error) {
	b, _ := pem.Decode(p)
	if b == nil || b.Type != "CERTIFICATE" {
		return nil, errs.New(errs.Corrupt, "no certificate")
	}
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "bad certificate")
	}
	return c, nil
}

func keyPair(certPEM []byte, key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	c, err := parseCert(certPEM)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(c.PublicKey) {
		return nil, errs.New(errs.Corrupt, "the certificate is for another key")
	}
	return &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}, nil
}
