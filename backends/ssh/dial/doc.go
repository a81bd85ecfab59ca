// Package dial reaches hosts over SSH as their user's own ssh would: his ssh_config, keys,
// agent, certificates, known_hosts and jump hosts, with one connection per host that is
// shared by all who ask for it. Two transports stand behind the same Conn: this process
// speaks SSH itself ("go"), or the machine's ssh does ("system"), which also knows GSSAPI
// and hardware keys.
//
// Every wait has a bound and ends with its context. What goes wrong is an error of package
// errs with a Reason, so that a caller tells a wrong key from a host that is away.
package dial

import (
	"context"
	"log/slog"
	"time"
)

// Target says which host, as a pool or a command line does. What is left empty comes from
// ssh_config, then from ssh's own defaults.
type Target struct {
	Host       string // a name of ssh_config, of the resolver, or an address
	User       string
	Port       int
	Jump       string // [user@]host[:port], several with commas, the first one first; "none" = directly
	Identity   string // private key file, tried before those of ssh_config, on jump hosts too
	KnownHosts string // file in place of the user's and the system's
	Config     string // ssh_config in place of the user's and the system's
	Transport  string // "go" (default) or "system"
	depth      int    // of a jump host, how many are on the way to it
}

// Asker asks the person at the terminal.
type Asker interface {
	// Ask shows a prompt and reads one line; secret lines are not echoed.
	Ask(ctx context.Context, prompt string, secret bool) (string, error)
}

// Sitting is somebody's time at a terminal.
type Sitting struct {
	Number    uint64 // of the sitting: what was answered wrongly in one may be asked again in the next
	Terminal  bool   // what has to be asked can be asked
	AcceptNew bool   // keys of hosts never seen are taken
}

// Attended is an Asker that is not always there. Sitting is called before each connection is
// made, and may wait for somebody who is about to come.
type Attended interface {
	Asker
	Sitting(ctx context.Context) Sitting
}

// Options are a Dialer's. The zero value is usable: no terminal, the user's files.
type Options struct {
	Asker     Asker  // nil: there is no terminal, and what would have to be asked is an error
	AcceptNew bool   // keys of hosts never seen are taken and written to known_hosts
	RunDir    string // for control sockets, short; default: a private directory below the system's
	Parallel  int    // connections being made at once; default 32
	Log       *slog.Logger

	Timeout        time.Duration // for each step of connecting that says no other; default 10 s
	KeepAlive      time.Duration // how often an idle connection is tried; default 5 s
	KeepAliveCount int           // so many of them unanswered, and the connection is dead; default 3
	Retries        int           // of a handshake that the host drops (MaxStartups); default 8
}

// Exit is how a command ended. Signal is "" or a name without SIG; its Code is 128 + 15
// and the like, as a shell has it.
type Exit struct {
	Code   int
	Signal string
}
