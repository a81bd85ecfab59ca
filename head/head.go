// Package head is the shell around the head's reactor (head/core): it listens, keeps the
// journal and the record, talks to agents and clients, and calls the broker. Decisions
// are the core's.
//
// One goroutine owns the core (loop.go). Events come to it from sessions, from the
// broker's answers and from the clock; the records a step makes are appended to the
// journal, and its effects are performed, in order, once those records are safe
// (release.go). What an effect does must not block: messages go into the queue of a
// connection, calls to the broker into goroutines of their own.
package head

import (
	"context"
	"log/slog"
	"os"
	"time"

	"launcher/backends"
	"launcher/head/core"
	"launcher/internal/clock"
	"launcher/wire"
	"launcher/wire/bundle"
	"launcher/wire/session"
)

// Broker gets nodes from backends. broker.Broker is one. Calls may be concurrent.
type Broker interface {
	Submit(ctx context.Context, p wire.Pool, r backends.Request) ([]backends.Alloc, error)
	Find(ctx context.Context, p wire.Pool, cluster string, tokens []string) (map[string][]backends.Alloc, error)
	Status(ctx context.Context, p wire.Pool, handles [][]byte) ([]backends.Status, error)
	Cancel(ctx context.Context, p wire.Pool, handles [][]byte, waiting bool) error
	// Watch sends the index of a handle whenever its Status should be asked again, until
	// ctx ends.
	Watch(ctx context.Context, p wire.Pool, handles [][]byte, changed chan<- int) error
}

// Remote is a Broker on another machine, that comes over a session of its own.
// *broker.Remote is one.
type Remote interface {
	Broker
	// Open opens a stream of kind wire.StreamHead to it.
	Open(ctx context.Context) (*session.Stream, error)
	// Addrs are where nodes reach it, and through it the head, when it is for that.
	Addrs() []string
	// Attach serves the stream on which it says that it is there, until it goes.
	Attach(ctx context.Context, s *session.Session, st *session.Stream, changed func(here bool))
	// Away says since when it is away; "" while it is there.
	Away() string
	// Bring brings what is below a directory here into one there.
	Bring(ctx context.Context, into wire.Into, from string) (bundle.Came, error)
}

// Desk asks a person what the broker cannot know, at the terminals of commands that
// attend. *broker.Desk is one.
type Desk interface {
	Attend(ctx context.Context, st *session.Stream, at wire.Attend, begun func()) error
}

// Keeper is the head's supervisor: it holds the listeners over the head's death.
// *supervisor.Client is one.
type Keeper interface {
	StoreFD(ctx context.Context, name string, f *os.File) error
	FDs() map[string]*os.File
	Restarts() uint32
	Done() <-chan struct{}
}

// Options of Main.
type Options struct {
	Dir      string // the cluster's state directory
	Broker   Broker
	Desk     Desk // nil = nothing is ever asked
	Machines map[wire.Kind]core.Maker
	Keeper   Keeper       // nil = no supervisor: the head does not come back
	Log      *slog.Logger // nil = discard
	Version  string       // build version; "" = the binary's own

	// Followers is how many nodes, on machines of their own, keep a copy of the journal.
	Followers int

	// Of a head that moves (HeadConfig.Roam): why it is where it is, which nodes are perhaps
	// lost, and what is closed when it has to leave its node.
	Why     string
	Doubted []wire.NodeID
	Leave   <-chan struct{}

	Clock   clock.Clock   // nil = the machine's
	Ready   func()        // called once the head answers; may be nil
	Suspect time.Duration // silence after which a node gets nothing new; 0 = 5 s
	Lost    time.Duration // silence after which its work is run elsewhere; 0 = 15 s

	// For tests.
	started      func(*head) // called with the head once it answers
	snapshotRecs int         // records between two snapshots; 0 = the constant
	journalRetry time.Duration
	checkEvery   time.Duration // between two looks for another head; 0 = the constant
	maxAnswer    int64         // bytes of all answers to a query; 0 = wire.MaxAnswer
	keepUp       time.Duration // how long effects wait for a follower; 0 = the constant
}

// Main runs the head of the cluster in o.Dir until the cluster is down; that is the only
// case of a nil error. ErrMoved: it goes on with another head. An error of kind errs.Fenced (another head has taken over),
// errs.Corrupt, errs.Version, errs.Permission or errs.Lost (nobody has come for the grace
// time, or the supervisor is gone) will not get better by starting again;
// after any other the supervisor starts the next head. head.config, ca.crt and ca.key
// must be in o.Dir.
func Main(ctx context.Context, o Options) error { return serveCluster(ctx, o) }
