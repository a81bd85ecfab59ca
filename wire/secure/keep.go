package secure

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// kept is an identity as Export writes it.
type kept struct {
	Key  []byte // PKCS #8
	Cert []byte // DER; of a Pending its CSR, PEM
	CA   []byte // PEM
	Life int64  // nanoseconds
	Got  int64  // unix nanoseconds
}

// Export gives all of an identity, its key included, for memory that only the same
// process or its successor reads (an agent's supervisor holds it): never for a disk.
func (id *Identity) Export() ([]byte, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	key, err := x509.MarshalPKCS8PrivateKey(id.cert.PrivateKey)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "keeping the identity of %s", id.subject)
	}
	return wire.Marshal(kept{Key: key, Cert: id.cert.Certificate[0], CA: id.ca, Life: int64(id.life), Got: id.got.UnixNano()}), nil
}

// Export gives the key of a request, as Identity.Export does: who was killed before the
// answer came asks again with it.
func (p *Pending) Export() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "keeping the key of a certificate request")
	}
	return wire.Marshal(kept{Key: key, Cert: p.CSR}), nil
}

// ImportPending is the inverse of Pending.Export.
func ImportPending(b []byte) (*Pending, error) {
	var k kept
	if err := wire.Unmarshal(b, &k); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "a kept certificate request")
	}
	key, err := parseKept(k.Key)
	if err != nil {
		return nil, err
	}
	return &Pending{CSR: k.Cert, key: key}, nil
}

func parseKept(b []byte) (*ecdsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(b)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "the key of a kept identity")
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errs.New(errs.Corrupt, "the key of a kept identity is a %T", key)
	}
	return ec, nil
}

// Import is the inverse of Export.
func Import(b []byte) (*Identity, error) {
	var k kept
	if err := wire.Unmarshal(b, &k); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "a kept identity")
	}
	ec, err := parseKept(k.Key)
	if err != nil {
		return nil, err
	}
	id, err := (&Pending{key: ec}).Identity(bytes.Clone(k.CA), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Cert}), time.Duration(k.Life))
	if err != nil {
		return nil, err
	}
	id.got = time.Unix(0, k.Got)
	return id, nil
}
