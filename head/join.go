package head

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"sync"

	"launcher/head/core"
	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/reclog"
	"launcher/wire/secure"
	"launcher/wire/session"
)

const joinsFile = "joins"

// joiner lets nodes join. The key of a submission is made of its token and a secret of
// the cluster, so that a head that is restarted knows it; which nodes have used theirs
// is in a small log of its own, written before the node gets its certificate.
type joiner struct {
	h      *head
	secret []byte

	mu   sync.Mutex
	f    *os.File           // guarded by mu
	log  *reclog.Log        // guarded by mu; nil until load
	used map[joinKey][]byte // by whom: the digest of a public key; guarded by mu
}

// joinKey is one use of a join key.
type joinKey struct {
	Token string
	Node  wire.NodeID
	Epoch wire.Epoch
}

// joinUse is a record of the log of joins.
type joinUse struct {
	Token string
	Node  wire.NodeID
	Epoch wire.Epoch
	Who   []byte // SHA-256 of the public key
}

func (k joinKey) use(who []byte) []byte {
	return wire.Marshal(joinUse{Token: k.Token, Node: k.Node, Epoch: k.Epoch, Who: who})
}

// newJoiner reads the cluster's secret, or makes it.
func newJoiner(h *head) (*joiner, error) {
	b, err := secure.JoinSecret(h.state)
	if err != nil {
		return nil, err
	}
	return &joiner{h: h, secret: b, used: map[joinKey][]byte{}}, nil
}

// key is the join key of a submission.
func (j *joiner) key(token string) []byte {
	m := hmac.New(sha256.New, j.secret)
	m.Write([]byte("launcher join key\x00"))
	m.Write([]byte(token))
	return m.Sum(nil)
}

// load reads which keys have been used, and forgets those that are void anyway. It is
// called before there is a loop, so it may look at the core.
func (j *joiner) load(c *core.Core) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	path := filepath.Join(j.h.state, joinsFile)
	var all []joinUse
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the log of joins")
	}
	_, err = reclog.Open(f, 0, 1, func(_ uint64, b []byte) error {
		var u joinUse
		if err := wire.Unmarshal(b, &u); err != nil {
			return err
		}
		all = append(all, u)
		return nil
	})
	_ = f.Close()
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "%s", path)
	}
	for _, u := range all {
		if c.Admit(u.Node, u.Epoch, u.Token) == nil {
			j.used[joinKey{u.Token, u.Node, u.Epoch}] = u.Who
		}
	}
	var b []byte
	n := uint64(0)
	for k, who := range j.used {
		n++
		b = reclog.AppendRecord(b, int64(len(b)), 0, n, k.use(who))
	}
	if err := record.WriteFile(path, b); err != nil {
		return err
	}
	if j.f, err = os.OpenFile(path, os.O_RDWR, 0o600); err == nil {
		j.log, err = reclog.Open(j.f, 0, 1, nil)
	}
	if err != nil {
		return errs.Wrap(errs.Unknown, err, "the log of joins")
	}
	return nil
}

func (j *joiner) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f != nil {
		_ = j.f.Close()
		j.f, j.log = nil, nil
	}
}

// Admit lets a node join, once: only who holds the same private key, because the answer
// was lost, may ask again. It is called by the session layer, which has checked that the
// CSR is signed with that key.
func (j *joiner) Admit(r secure.JoinRequest) error {
	// One answer for a wrong key and for a submission there never was.
	if !secure.SameKey(r.Key, j.key(r.Token)) {
		return errs.New(errs.Permission, "the join key is not right")
	}
	who, err := publicKey(r.CSR)
	if err != nil {
		return err
	}
	k := joinKey{Token: r.Token, Node: wire.NodeID(r.Node), Epoch: wire.Epoch(r.Epoch)}
	err = errEnding()
	j.h.do(func(c *core.Core) { err = c.Admit(k.Node, k.Epoch, k.Token) })
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	by, used := j.used[k]
	switch {
	case j.log == nil:
		return errs.New(errs.Unavailable, "the head is not ready yet")
	case used && len(by) > 0 && bytes.Equal(by, who):
		return nil
	case used:
		return errs.New(errs.Fenced, "node %s has joined already: a join key is for one use per node", r.Node)
	}
	end, next := j.log.End(), j.log.Next()
	if _, err := j.log.Append(k.use(who)); err != nil {
		return errs.Wrap(errs.Unavailable, err, "the head cannot write down that node %s joins", r.Node)
	}
	if err := j.f.Sync(); err != nil {
		_ = j.log.Undo(end, next)
		return errs.Wrap(errs.Unavailable, err, "the head cannot write down that node %s joins", r.Node)
	}
	j.used[k] = who
	return nil
}

// mayRenew is asked before a certificate is renewed.
func (h *head) mayRenew(p session.Peer, r secure.RenewRequest) error {
	if p.Role != secure.RoleAgent {
		return nil
	}
	err := errEnding()
	h.do(func(c *core.Core) { err = c.MayRenew(wire.NodeID(p.Name), wire.Epoch(r.Epoch), r.Token) })
	return err
}

// publicKey gives the digest of the public key that a CSR is for.
func publicKey(csr []byte) ([]byte, error) {
	b, _ := pem.Decode(csr)
	if b == nil {
		return nil, errs.New(errs.Corrupt, "the request to join holds no certificate request")
	}
	r, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "the request to join")
	}
	sum := sha256.Sum256(r.RawSubjectPublicKeyInfo)
	return sum[:], nil
}
