package secure

import (
	"crypto/rand"
	"crypto/subtle"
)

// JoinRequest is what an agent without a certificate sends, once, to the head whose CA it
// has pinned.
type JoinRequest struct {
	Key     []byte // the submission's join key
	Node    string
	Epoch   uint64
	Token   string // the submission
	CSR     []byte // PEM; the private key stays with the agent
	Version string // build version
	Clock   int64  // the agent's wall clock, unix ns
}

// JoinAnswer makes the agent a member.
type JoinAnswer struct {
	Cert  []byte // PEM
	Life  int64  // ns from now
	Clock int64  // the head's wall clock, unix ns
}

// RenewRequest asks, over a connection with a valid certificate, for another one for the
// same role and name. The answer is a JoinAnswer.
type RenewRequest struct {
	CSR   []byte
	Epoch uint64 // of an agent's node, whose name another may have by now
	Token string // its submission
}

// Joiner decides who joins. Admit must compare the key in constant time (SameKey), allow
// it once per node, and refuse it when the submission has ended. An error is sent to the
// agent, so it must not tell a stranger what a right key would have been.
type Joiner interface {
	Admit(JoinRequest) error
}

// NewKey makes a join key.
func NewKey() []byte {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return b
}

// SameKey compares two join keys without telling by its time where they differ. An empty
// key is the same as none.
func SameKey(a, b []byte) bool {
	return len(a) > 0 && subtle.ConstantTimeCompare(a, b) == 1
}
