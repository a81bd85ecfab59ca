// Package errs is the one error type of launcher: a kind that callers test and
// that crosses the wire, a sentence for the user, and hints that say what to try.
//
// Callers test KindOf(err), never the text. Everything else about errors is the
// standard library: wrap with %w or Wrap, unwrap with errors.Is and errors.AsType.
package errs

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Kind says what sort of failure an error is. The values cross the wire and are
// written to journals: append only, never renumber.
type Kind uint8

const (
	Unknown     Kind = iota // not classified
	Invalid                 // the input is wrong: a flag, a spec, a frame
	NotFound                // what was named is not there
	Exists                  // what was to be made is there already
	Unavailable             // the other side cannot be reached now; a later try may succeed
	Timeout                 // a bounded wait ran out
	Cancelled               // the user or the caller ended it
	Permission              // not allowed: file mode, peer credentials, certificate, role
	Exhausted               // memory, disk, quota, or more resources than there are
	Lost                    // a worker, rank, agent or node died under the work
	Version                 // the two sides speak different versions
	Corrupt                 // bytes that should be ours are not: checksum, magic, length
	Unbuilt                 // a part of the design that this version does not have
	Internal                // a bug of launcher's own
	Fenced                  // an attempt or epoch that has been replaced
	numKinds
)

var kindNames = [numKinds]string{"unknown", "invalid", "not-found", "exists", "unavailable", "timeout",
	"cancelled", "permission", "exhausted", "lost", "version", "corrupt", "unbuilt", "internal", "fenced"}

// String is the stable name used in --json output.
func (k Kind) String() string {
	if k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Error is a failure with a kind. Msg is a sentence without capital or full stop:
// what happened and where. Hints say what to try, one sentence each.
type Error struct {
	Kind  Kind
	Msg   string
	Hints []string
	Err   error // the cause, or nil
}

// Error gives "msg: cause".
func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.Msg
	case e.Msg == "":
		return e.Err.Error()
	}
	return e.Msg + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint adds a line that says what to try, and returns e.
func (e *Error) Hint(format string, args ...any) *Error {
	e.Hints = append(e.Hints, fmt.Sprintf(format, args...))
	return e
}

// New makes an error of a kind.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...)}
}

// Wrap puts what was being done in front of a cause and classifies it. With
// Unknown the cause's own kind is kept.
func Wrap(k Kind, err error, format string, args ...any) *Error {
	if k == Unknown {
		k = KindOf(err)
	}
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...), Err: err}
}

// KindOf finds the kind of the outermost classified error in err's tree.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Cancelled
	}
	return Unknown
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Retryable reports whether the same call may succeed later without any change.
func Retryable(err error) bool {
	k := KindOf(err)
	return k == Unavailable || k == Timeout || k == Lost
}

// HintsOf collects the hints of every classified error in the chain, outermost first.
func HintsOf(err error) []string {
	var out []string
	for err != nil {
		if e, ok := err.(*Error); ok {
			out = append(out, e.Hints...)
		}
		err = errors.Unwrap(err)
	}
	return out
}

// Wire is the form of an error on the wire and in --json output.
type Wire struct {
	Kind  Kind
	Msg   string
	Hints []string
}

// ToWire flattens err; a nil error gives nil.
func ToWire(err error) *Wire {
	if err == nil {
		return nil
	}
	return &Wire{Kind: KindOf(err), Msg: err.Error(), Hints: HintsOf(err)}
}

// FromWire is the inverse of ToWire.
func (w *Wire) FromWire() error {
	if w == nil {
		return nil
	}
	return &Error{Kind: w.Kind, Msg: w.Msg, Hints: w.Hints}
}

// Line is err and what to try in one line, where there is no room for more.
func Line(err error) string {
	s := err.Error()
	if hints := HintsOf(err); len(hints) > 0 {
		s += " (" + strings.Join(hints, "; ") + ")"
	}
	return s
}

// Lines renders err for a terminal: one "error:" line, then one "hint:" line each.
func Lines(err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "error: %s\n", err)
	for _, h := range HintsOf(err) {
		fmt.Fprintf(&b, "hint: %s\n", h)
	}
	return b.String()
}
