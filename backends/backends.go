// Package backends is the contract between the broker and whatever grants nodes: this
// machine, hosts over SSH, Slurm, YARN. It holds interfaces and value types only;
// implementations are leaves (local, fake, ...), and all.Backends lists them.
//
// The laws below are checked for every implementation by backendtest.Run.
package backends

import (
	"context"
	"io"
	"net"
	"time"

	"launcher/wire"
)

// Capabilities are facts about a backend, as data.
type Capabilities struct {
	Name        string
	Releasable  bool                                // nodes can be given back one by one
	SharedFS    bool                                // nodes see the submitter's file system
	MaxPerCall  int                                 // most nodes one Submit may ask for; 0 = any number
	Cancellable bool                                // Cancel ends what runs
	DefaultMin  func(o Options) int                 // min of a pool that names none
	Limit       func(o Options) (n int, why string) // most nodes there can ever be; 0 = unknown
	Parallel    int                                 // changes that may be under way at a time; 0 = 1
	Tries       int                                 // of a call that may succeed later, before the caller hears of it; 0 = the broker's own number
	Every       time.Duration                       // least time between two calls, for those who must not be asked often; 0 = any
}

// Options is a pool's table as the loader read it: the keys that all pools share are
// taken out, the rest belongs to the backend.
type Options map[string]any

// AllocState is ordered: pending < running < ended states.
type AllocState uint8

const (
	Pending AllocState = iota
	Running            // its agents start or run
	Done               // ended as asked or by itself, cleanly
	Failed             // could not start, or ended with an error
	Lost               // the backend knows it died, or has never heard of it though it was submitted
)

func (s AllocState) Ended() bool { return s >= Done }

// Request asks for nodes of a pool.
type Request struct {
	Token     string // the caller's, journalled before the call: Submit with a known token returns what it made
	Cluster   string
	Pool      string
	Options   Options
	Nodes     []wire.NodeID // names for the nodes asked for; len = how many
	Epochs    []wire.Epoch  // their epochs
	Places    []string      // where each is to be, of pools whose nodes are particular machines
	Join      Join
	Home      string // LAUNCHER_HOME on this machine
	Binary    string // the launcher binary on this machine
	Resources *wire.Resources
	Labels    map[string]string
	Share     string
	Grace     int64
	Memory    string // [objects] memory
	Spill     string
	Ports     string   // [network] ports
	Interface string   // [network] interface
	CertLife  int64    // of certificates, nanoseconds; 0 = the default
	Setup     []string // of the pool, as is what follows
	Env       []string
	Python    string
	Container string
	After     [][]byte // handles of allocations of this pool in whose place these nodes come
	Within    int64    // they are of no use for longer than that, nanoseconds; 0 = any time
}

// Join is how an agent gets into the cluster. Key is secret: it travels by stdin or a
// 0600 file, never on a command line, in an environment or in a script.
type Join struct {
	Addrs []string // where the head listens, best first
	CA    []byte   // PEM of the cluster's CA certificate
	Key   []byte
}

// Alloc is what a Submit made: one local agent, one job in a queue. Handle is opaque,
// serialisable and enough for another process to find it again.
type Alloc struct {
	Token  string
	Handle []byte
	Nodes  []wire.NodeID
}

// Status is the state of an allocation. Why is the backend's own reason, in a line.
type Status struct {
	State AllocState
	Why   string
	// DeadNodes lists nodes of a running allocation that the backend knows to be dead.
	DeadNodes []wire.NodeID
	Deadline  int64 // unix seconds when it ends; 0 = never or unknown
}

// Backend grants nodes. All methods may be called concurrently, honour ctx, and return
// errors of package errs whose Kind says whether to try again (errs.Retryable).
//
// Laws:
//   - Submit with a token that has been submitted before returns the same allocations
//     and starts nothing.
//   - Submit either returns allocations covering every node of the request, or an error
//     and leaves nothing running that Status by token would not find.
//   - Status of an unknown handle is Lost, never an error. States never go backwards.
//   - Cancel is idempotent; after it, Status reaches an ended state within its bound and
//     no process of the allocation is left.
//   - Allocs made by one process are found by another through Find and their handles.
type Backend interface {
	Capabilities() Capabilities
	// Check validates a pool's own keys without touching anything: every fault at once.
	Check(o Options) []Fault
	Submit(ctx context.Context, r Request) ([]Alloc, error)
	// Find looks submissions up by token, for a caller that died between Submit and
	// writing down what it returned. A token that is not there is absent in the answer.
	Find(ctx context.Context, cluster string, tokens []string) (map[string][]Alloc, error)
	// Status is one call for many allocations; the answer has one entry per handle, in order.
	Status(ctx context.Context, handles [][]byte) ([]Status, error)
	Cancel(ctx context.Context, handles [][]byte) error
	// DryRun writes exactly what Submit would send or start, secrets shown as their place.
	DryRun(r Request, w io.Writer) error
	Close() error
}

// Fault is one thing wrong with a pool's options: Key, what is wrong, what is allowed.
type Fault struct{ Key, Msg string }

// Watcher is implemented by backends that learn of ends without being asked. Watch sends
// a handle whenever its Status should be asked again, until ctx ends.
type Watcher interface {
	Watch(ctx context.Context, handles [][]byte, changed chan<- int) error
}

// Bounder is implemented by backends whose bound on nodes depends on what the pool says
// that each node has.
type Bounder interface {
	// Bound is Capabilities.Limit for nodes of a given size; nil = as detected.
	Bound(o Options, per *wire.Resources) (n int, why string)
}

// HeadAt says where the head of a cluster is to be that is not on the broker's machine.
type HeadAt struct {
	Request Request // for a node of its pool, at its place; without nodes
	Dir     string  // the cluster's state directory on this machine
	Config  wire.HeadConfig
	Copy    bool // it goes on with the copy of its journal that is there
}

// HeadSeen is what a machine knows of a cluster's head.
type HeadSeen struct {
	// Epoch is that of the head to which a node there has a connection; 0 = none has.
	Epoch wire.Epoch
	// The best copy of its journal there: of which head it is, and its last record.
	Copy bool
	Of   uint64
	Last uint64
}

// HeadHost is implemented by backends on whose machines a head can be. All may be repeated.
type HeadHost interface {
	// StartHead has the head run there; its state goes with it where there is none yet. down
	// says that it has ended the cluster and that its record waits.
	StartHead(ctx context.Context, h HeadAt) (down bool, err error)
	// JoinHead connects to its socket.
	JoinHead(ctx context.Context, h HeadAt) (net.Conn, error)
	// SeenHead says what is known of the head on a machine where it need not be.
	SeenHead(ctx context.Context, h HeadAt) (HeadSeen, error)
	// EndGhost ends a head of an older term than h's on a machine that it was moved from.
	EndGhost(ctx context.Context, h HeadAt) error
	// EndHead copies the record of a cluster that is down into h.Dir and removes it there.
	EndHead(ctx context.Context, h HeadAt) error
}

// Unasker is implemented by backends whose allocations wait before they begin. Unask gives
// back those that have not begun, and leaves one that begins meanwhile.
type Unasker interface {
	Unask(ctx context.Context, handles [][]byte) error
}

// As finds an optional ability of a backend, through the wrappers around it.
func As[T any](b Backend) (T, bool) {
	for {
		if t, ok := b.(T); ok {
			return t, true
		}
		w, ok := b.(interface{ Unwrap() Backend })
		if !ok {
			var none T
			return none, false
		}
		b = w.Unwrap()
	}
}

// Finding is one thing that doctor tells of a pool. Level is ok, note (worth knowing),
// warning (will hurt) or error (will not work).
type Finding struct{ Level, What, Fix string }
