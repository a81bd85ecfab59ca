package dial

import (
	"errors"

	"launcher/internal/errs"
)

// Reason says why a host could not be reached or a connection ended; each is one thing
// that a person does something else about.
type Reason string

const (
	BadConfig   Reason = "bad-config"   // ssh_config or a key file cannot be read or understood
	Unresolved  Reason = "unresolved"   // the name is not known
	Refused     Reason = "refused"      // nothing listens on the port
	Unreachable Reason = "unreachable"  // no route, or the proxy command failed
	Silent      Reason = "silent"       // nothing answered in time
	Dropped     Reason = "dropped"      // it hung up during the handshake, again and again
	UnknownKey  Reason = "unknown-key"  // its key is in no known_hosts
	ChangedKey  Reason = "changed-key"  // its key is not the one in known_hosts, or is revoked
	Denied      Reason = "denied"       // it takes none of our keys and answers
	NoTerminal  Reason = "no-terminal"  // something has to be asked, and there is nobody to ask
	NoForward   Reason = "no-forward"   // the jump host does not forward
	NoSessions  Reason = "no-sessions"  // it lets us in but runs nothing for us
	NoSubsystem Reason = "no-subsystem" // it has no sftp
	LinkDead    Reason = "link-dead"    // the connection broke or fell silent
	Protocol    Reason = "protocol"     // what answers is no SSH server that we can talk to
)

// kinds are the Kinds of errs that the reasons have; those that may go away by themselves
// are retryable.
var kinds = map[Reason]errs.Kind{
	BadConfig: errs.Invalid, Unresolved: errs.NotFound, Refused: errs.Unavailable, Unreachable: errs.Unavailable, Silent: errs.Timeout,
	Dropped: errs.Unavailable, UnknownKey: errs.Permission, ChangedKey: errs.Permission, Denied: errs.Permission, NoTerminal: errs.Permission,
	NoForward: errs.Permission, NoSessions: errs.Permission, NoSubsystem: errs.NotFound, LinkDead: errs.Lost, Protocol: errs.Invalid,
}

// Failure is an error with its Reason and the host it is about, which may be a jump host.
type Failure struct {
	Reason Reason
	Host   string
	Err    *errs.Error
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap gives the classified error.
func (f *Failure) Unwrap() error { return f.Err }

// Hint adds a line that says what to try.
func (f *Failure) Hint(format string, args ...any) *Failure {
	_ = f.Err.Hint(format, args...)
	return f
}

// ReasonOf is the Reason of err, "" when it has none.
func ReasonOf(err error) Reason {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Reason
	}
	return ""
}

// fail makes a Failure; cause may be nil.
func fail(r Reason, host string, cause error, format string, args ...any) *Failure {
	e := errs.New(kinds[r], format, args...)
	e.Err = cause
	return &Failure{Reason: r, Host: host, Err: e}
}
