package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
)

// directory knows the lives of nodes by their numbers, as far as this node has to do with
// them. The head tells what was asked for, and whatever changes.
type directory struct {
	head *headLink
	// news is told of every change, in the order in which the head tells it; set in open.
	news func(wire.Peer)

	mu    sync.Mutex
	conn  *headConn // welcomed by the head; guarded by mu
	known map[uint32]*known
}

// known is what is known of a number.
type known struct {
	peer  wire.Peer
	ready chan struct{} // closed once the head has said who it is; guarded by directory.mu
	told  bool          // ready is closed
	// helped is closed and made anew when the head says who may relay; guarded by directory.mu
	helped chan struct{}
}

func newDirectory(h *headLink) *directory {
	return &directory{head: h, news: func(wire.Peer) {}, known: map[uint32]*known{}}
}

// welcomed: a session with the head has begun, which knows of no questions before it.
func (d *directory) welcomed(c *headConn) {
	d.mu.Lock()
	d.conn = c
	var again []uint32
	for n, k := range d.known {
		if !k.peer.Gone || len(k.peer.Moved) > 0 {
			again = append(again, n)
		}
	}
	d.mu.Unlock()
	slices.Sort(again)
	d.ask(c, again...)
}

func (d *directory) ask(c *headConn, numbers ...uint32) {
	if c == nil || len(numbers) == 0 {
		return
	}
	d.head.send(c, core.ToHead{Type: wire.MsgPeerAsk, Msg: wire.PeerAsk{Numbers: numbers}})
	c.poke()
}

// told: the head says who a number is, or that it is no more.
func (d *directory) told(p wire.Peer) {
	if p.Gone {
		d.head.a.routes.forget(p.Number)
	}
	if p.Gone { // before conversations with it end: what it owned may have another owner
		d.news(p)
	}
	d.mu.Lock()
	k := d.follow(p.Number)
	k.peer = p
	if p.Far {
		close(k.helped)
		k.helped = make(chan struct{})
	}
	if !k.told && (p.Gone || p.Addr != "") {
		k.told = true
		close(k.ready)
	}
	d.mu.Unlock()
	if !p.Gone {
		d.news(p)
	}
}

// follow notes a number, and asks for it when it is new. mu must be held.
func (d *directory) follow(number uint32) *known {
	k := d.known[number]
	if k == nil {
		k = &known{peer: wire.Peer{Number: number}, ready: make(chan struct{}), helped: make(chan struct{})}
		d.known[number] = k
		d.ask(d.conn, number)
	}
	return k
}

// watch has news told of a number's life.
func (d *directory) watch(number uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.follow(number)
}

// name is the node behind a number, as far as that is known by now; else "".
func (d *directory) name(number uint32) wire.NodeID {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k := d.known[number]; k != nil {
		return k.peer.Node
	}
	return ""
}

// peer finds the life of a node behind a number; one that is over is an error of kind
// Lost.
func (d *directory) peer(ctx context.Context, number uint32) (wire.Peer, error) {
	d.mu.Lock()
	k := d.follow(number)
	d.mu.Unlock()
	select {
	case <-k.ready:
	case <-ctx.Done():
		return wire.Peer{}, errs.New(errs.Unavailable, "the head does not say who node number %d is", number).Hint("work goes on when the head is back")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if k.peer.Gone {
		return k.peer, errs.New(errs.Lost, "node %s is gone: %s", k.peer.Node, k.peer.Cause)
	}
	return k.peer, nil
}

// helpers are the nodes that may relay to a life which this node has said that it does not
// reach; the head is given a moment to name them.
func (d *directory) helpers(ctx context.Context, number uint32) []uint32 {
	late := time.NewTimer(viaWait)
	defer late.Stop()
	d.mu.Lock()
	k := d.follow(number)
	d.mu.Unlock()
	for {
		d.mu.Lock()
		via, far, more := k.peer.Via, k.peer.Far, k.helped
		d.mu.Unlock()
		if far {
			return via
		}
		select {
		case <-more:
		case <-late.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}
