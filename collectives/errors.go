package collectives

import (
	"fmt"
	"time"

	"launcher/internal/errs"
)

// PeerLost says that a rank of the group is gone. Every rank gets it, from the pending
// operation and from all later ones. The buffers of the pending operation are
// undefined; those of earlier ones are valid.
type PeerLost struct {
	Rank  int    // -1: a node's link, not one rank
	Cause string // for example "killed by SIGKILL"
}

func (e *PeerLost) Error() string {
	if e.Rank < 0 {
		return "the group is broken: " + e.Cause
	}
	return fmt.Sprintf("rank %d is lost: %s", e.Rank, e.Cause)
}

// Unwrap classifies the error as errs.Lost.
func (e *PeerLost) Unwrap() error { return &errs.Error{Kind: errs.Lost, Msg: e.Cause} }

// Mismatch says that ranks called different operations at the same point. Every rank
// gets it.
type Mismatch struct {
	Rank  int    // a rank that differs from the one that found it
	Cause string // names both calls
}

func (e *Mismatch) Error() string { return "the ranks do not agree: " + e.Cause }

// Unwrap classifies the error as errs.Invalid and says what to try.
func (e *Mismatch) Unwrap() error {
	return errs.New(errs.Invalid, "%s", e.Cause).
		Hint("every rank must call the same operations in the same order, with the same type, count and root")
}

// Timeout says that a rank did not call within the group's time limit. Every rank gets
// it.
type Timeout struct {
	Rank  int // -1: not known which
	After time.Duration
	Cause string
}

func (e *Timeout) Error() string { return e.Cause }

// Unwrap classifies the error as errs.Timeout and says what to try.
func (e *Timeout) Unwrap() error {
	return errs.New(errs.Timeout, "%s", e.Cause).
		Hint("see what that rank does (`launcher logs JOB --rank %d`), or give the group a longer one with SetTimeout", e.Rank)
}

// Kinds of the record that explains why a group ended; part of the shared-memory
// protocol.
const (
	kindLost     = 1
	kindMismatch = 2
	kindTimeout  = 3
)

func groupError(kind uint32, rank int, cause string, timeout time.Duration) error {
	switch kind {
	case kindMismatch:
		return &Mismatch{Rank: rank, Cause: cause}
	case kindTimeout:
		return &Timeout{Rank: rank, After: timeout, Cause: cause}
	}
	return &PeerLost{Rank: rank, Cause: cause}
}
