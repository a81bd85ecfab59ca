package collectives

import (
	"context"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"launcher/collectives/plan"
	"launcher/internal/errs"
	"launcher/wire"
)

// DefaultTimeout is how long a rank may stay away from an operation that others wait in.
const DefaultTimeout = 30 * time.Minute

// DefaultArena bounds what one rank may take with Empty. It costs address space only.
const DefaultArena = 16 << 30

// NodeConfig describes a group as one of its nodes sees it. All nodes must have the same
// Group, Nodes and Timeout.
type NodeConfig struct {
	Group   wire.Try
	Nodes   []wire.GangNode // in rank order
	Self    wire.NodeID     // one of them
	CPUs    int             // cores that this node's ranks may use; 0 = those of this process
	Timeout time.Duration   // 0 = DefaultTimeout
	Arena   int64           // bytes a rank may take with Empty; 0 = DefaultArena
	Round   int             // bytes; 0 = by the numbers of ranks and nodes. For tests

	// Dial opens the connection for traffic to another node of the group: a stream of
	// kind wire.StreamRing, opened with wire.RingOpen, or a connection of its own. The
	// other side gives it to Accept with the same lane. It is called again, with pauses,
	// when it fails, for the other node may not know of the group yet; errors of kind
	// Invalid, Permission and Fenced end the group at once. Needed with several nodes.
	Dial func(ctx context.Context, to wire.GangNode, lane uint32) (net.Conn, error)
	// Ended, if set, is called once, from Run, when the group ended by anything but
	// Abort on this node: a rank found a mismatch or a time-out, a link broke, another
	// node said so. err is *PeerLost, *Mismatch or *Timeout.
	Ended func(err error)
	Log   *slog.Logger // nil = none
}

// Node is a node's part of a group, in the agent: it owns the memory, carries what goes
// between nodes and ends the group when a rank is gone.
type Node struct {
	cfg      NodeConfig
	m        *memory
	self     int
	aborted  atomic.Bool // by Abort on this node
	reported atomic.Bool
	done     chan struct{}
	ring     *ring // nil with one node

	mu     sync.RWMutex // held to read by whoever touches m, so that Close can unmap it
	closed bool
}

// NewNode makes the group's memory.
func NewNode(cfg NodeConfig) (*Node, error) {
	s, err := cfg.shape()
	if err != nil {
		return nil, err
	}
	m, err := create(s)
	if err != nil {
		return nil, err
	}
	return newNode(cfg, m), nil
}

// Restore takes up the memory of a group that an earlier agent of this node made. A group
// of one node goes on as if nothing had happened. One of several nodes has lost its
// links with the earlier agent, and with them what was in flight: it is ended, and its
// ranks get an error that says so.
func Restore(cfg NodeConfig, f *os.File) (*Node, error) {
	s, err := cfg.shape()
	if err != nil {
		return nil, err
	}
	m, err := open(f)
	if err != nil {
		return nil, err
	}
	if want := s.layout(); m.h.job != want.job || m.h.index != want.index || m.h.attempt != want.attempt || m.h.world != want.world || m.h.first != want.first {
		m.seg.Close()
		return nil, errs.New(errs.Corrupt, "the stored memory is that of another group than %s", cfg.Group)
	}
	n := newNode(cfg, m)
	if len(cfg.Nodes) > 1 {
		n.aborted.Store(true)
		m.end(m.n, kindLost, -1, "the agent of node "+string(cfg.Self)+" was restarted and lost what was in flight between nodes")
	}
	return n, nil
}

func newNode(cfg NodeConfig, m *memory) *Node {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n := &Node{cfg: cfg, m: m, self: int(m.h.node), done: make(chan struct{})}
	if m.nodes.Len() > 1 {
		n.ring = newRing(n)
	}
	return n
}

func (cfg *NodeConfig) shape() (shape, error) {
	s := shape{group: cfg.Group, node: -1, nodes: plan.Nodes{0}, timeout: cfg.Timeout, arena: cfg.Arena, round: cfg.Round}
	for i, g := range cfg.Nodes {
		if g.Count == 0 || int(g.First) != s.nodes.World() {
			return s, errs.New(errs.Invalid, "group %s: node %s has ranks %d to %d, the ranks before end at %d", cfg.Group, g.Node, g.First, int(g.First)+int(g.Count)-1, s.nodes.World())
		}
		s.nodes = append(s.nodes, int(g.First)+int(g.Count))
		if g.Node == cfg.Self {
			s.node = i
		}
	}
	switch {
	case s.node < 0:
		return s, errs.New(errs.Invalid, "group %s: node %q is none of its nodes", cfg.Group, cfg.Self)
	case s.nodes.World() > plan.MaxWorld:
		return s, errs.New(errs.Invalid, "group %s has %d ranks, at most %d are possible", cfg.Group, s.nodes.World(), plan.MaxWorld)
	case len(cfg.Nodes) > 1 && cfg.Dial == nil:
		return s, errs.New(errs.Invalid, "group %s has %d nodes and no way to dial them", cfg.Group, len(cfg.Nodes))
	}
	if s.timeout <= 0 {
		s.timeout = DefaultTimeout
	}
	if s.arena <= 0 {
		s.arena = DefaultArena
	}
	cpus := cfg.CPUs
	if cpus <= 0 {
		cpus = usableCPUs()
	}
	s.spin = s.nodes[s.node+1]-s.nodes[s.node] <= cpus
	return s, nil
}

// usableCPUs counts the cores that affinity and cgroups leave this process; the Go
// runtime has looked at both.
func usableCPUs() int { return min(runtime.NumCPU(), runtime.GOMAXPROCS(0)) }

// File is the group's memory, to be passed to the ranks and kept for a later agent. It
// belongs to the Node.
func (n *Node) File() *os.File { return n.m.seg.File() }

// hold keeps the memory mapped until free; false when it is not any more.
func (n *Node) hold() bool {
	n.mu.RLock()
	if n.closed {
		n.mu.RUnlock()
		return false
	}
	return true
}

func (n *Node) free() { n.mu.RUnlock() }

// Abort ends the group because a rank is gone: every pending and later operation of
// every rank of this node gives PeerLost, at once, and so do the other nodes' as far as
// they can be reached. Only the first call counts. A rank that exited well is no reason
// (see Leave).
func (n *Node) Abort(rank int, cause string) {
	if !n.hold() {
		return
	}
	defer n.free()
	n.aborted.Store(true)
	n.m.end(n.m.n, kindLost, rank, cause)
	if n.ring != nil {
		n.ring.spread()
	}
}

// Leave says that a rank of this node exited well. Operations that wait for it give
// PeerLost; those that it took part in to the end are not disturbed.
func (n *Node) Leave(rank int) {
	if !n.hold() {
		return
	}
	defer n.free()
	if local := rank - int(n.m.h.first); local >= 0 && local < n.m.n {
		c := n.m.controls[local]
		atomic.StoreUint32(&c.left, 1)
		n.m.wake(&c.step)
		n.m.wake(&c.bin)
	}
}

// Err is why the group ended; nil while it has not.
func (n *Node) Err() error {
	if !n.hold() {
		return nil
	}
	defer n.free()
	return n.m.ended()
}

// Sent is how many bytes this node has sent on each lane, headers included.
func (n *Node) Sent() []int64 {
	if n.ring == nil {
		return nil
	}
	out := make([]int64, len(n.ring.out))
	for i, l := range n.ring.out {
		out[i] = l.Sent()
	}
	return out
}

// Accept takes a connection that another node of the group dialled. It takes conn over,
// also when it gives an error.
func (n *Node) Accept(conn net.Conn, from wire.NodeID, lane uint32) error {
	if n.ring == nil {
		conn.Close()
		return errs.New(errs.Invalid, "group %s has only this node", n.cfg.Group)
	}
	return n.ring.accept(conn, from, lane)
}

// Run carries the traffic between nodes until ctx ends, Close is called, or the group
// has ended; it watches for that too. It returns why the group ended, nil when it has
// not.
func (n *Node) Run(ctx context.Context) error {
	if !n.hold() {
		return nil
	}
	defer n.free()
	if n.ring != nil {
		n.ring.run(ctx)
	} else {
		n.watch(ctx)
	}
	err := n.m.ended()
	if err != nil {
		n.report(err)
	}
	return err
}

// report calls Ended, if that is due, the first time.
func (n *Node) report(err error) {
	if n.reported.CompareAndSwap(false, true) && !n.aborted.Load() && n.cfg.Ended != nil {
		n.cfg.Ended(err)
	}
}

// watch waits until the group has ended.
func (n *Node) watch(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n.m.ended() == nil {
		select {
		case <-ctx.Done():
			return
		case <-n.done:
			return
		case <-tick.C:
		}
	}
}

// Close ends Run, waits for it, and unmaps the memory. The ranks' mappings stay.
func (n *Node) Close() error {
	select {
	case <-n.done:
		return nil
	default:
		close(n.done)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	return n.m.seg.Close()
}
