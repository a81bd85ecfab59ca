package agent

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

const (
	// linkBound bounds finding a node and connecting to it.
	linkBound = 10 * time.Second
	// bulkLanes is over how many connections the objects of one node come, so that
	// encryption takes more than one core. Tasks have a connection of their own: a frame
	// of theirs is not to wait behind objects.
	bulkLanes = 2
	taskLane  = bulkLanes
	relayLane = bulkLanes + 1 // connections that this node wants relayed
)

// peerLinks are the sessions that this node has opened to other agents, one per life of a
// node and lane.
type peerLinks struct {
	a      *agent
	dir    *directory
	number atomic.Uint32 // this node's own; 0 = the head has not greeted yet
	// serves are who takes streams of other agents, by kind; set in open.
	serves map[uint16]func(context.Context, *session.Stream, wire.PeerOpen) error

	mu   sync.Mutex
	open map[linkKey]*peerLink // guarded by mu
}

type linkKey struct {
	number uint32
	lane   int
}

// peerLink is one session, being opened or open.
type peerLink struct {
	ready chan struct{} // closed after s or err is set
	s     *session.Session
	peer  wire.Peer
	err   error
}

func newPeerLinks(a *agent, number uint32) *peerLinks {
	l := &peerLinks{a: a, dir: newDirectory(a.head), open: map[linkKey]*peerLink{},
		serves: map[uint16]func(context.Context, *session.Stream, wire.PeerOpen) error{}}
	l.number.Store(number)
	return l
}

// greeted: the head has said which number this node has.
func (l *peerLinks) greeted(c *headConn, m wire.Welcome) {
	if m.Number != 0 {
		l.number.Store(m.Number)
	}
	l.dir.welcomed(c)
}

// stream opens a stream to the life of a node with that number.
func (l *peerLinks) stream(ctx context.Context, number uint32, lane int, kind uint16) (*session.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, linkBound)
	defer cancel()
	for try := range 2 {
		x := l.link(ctx, linkKey{number, lane})
		select {
		case <-x.ready:
		case <-ctx.Done():
			return nil, errs.New(errs.Unavailable, "no connection to node number %d within %s", number, linkBound)
		}
		if x.err != nil {
			return nil, x.err
		}
		st, err := x.s.Open(ctx, kind)
		if err == nil {
			err = st.WriteMsg(wire.MsgPeerOpen, wire.PeerOpen{From: l.a.cfg.Node, Number: l.number.Load(), To: number})
		}
		switch {
		case err == nil:
			return st, nil
		case try == 1 || x.s.Err() == nil:
			return nil, errs.Wrap(errs.Unavailable, err, "node %s", x.peer.Node)
		}
		// The session had ended unnoticed: once more.
	}
	panic("unreachable")
}

// link gives the session of a key, opened if there is none.
func (l *peerLinks) link(ctx context.Context, key linkKey) *peerLink {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.open[key]; x != nil {
		select {
		case <-x.ready:
			if x.err == nil && x.s.Err() == nil {
				return x
			}
		default:
			return x
		}
	}
	x := &peerLink{ready: make(chan struct{})}
	l.open[key] = x
	ctx = context.WithoutCancel(ctx) // others wait for it too
	l.a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, linkBound)
		defer cancel()
		x.peer, x.s, x.err = l.dial(ctx, key)
		if x.err != nil {
			l.mu.Lock()
			if l.open[key] == x {
				delete(l.open, key)
			}
			l.mu.Unlock()
		}
		close(x.ready)
	})
	return x
}

func (l *peerLinks) dial(ctx context.Context, key linkKey) (wire.Peer, *session.Session, error) {
	p, err := l.dir.peer(ctx, key.number)
	if err != nil {
		return p, nil, err
	}
	s, err := l.a.routes.dial(ctx, p, key.lane != relayLane)
	return p, s, err
}

// close ends all sessions.
func (l *peerLinks) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.open {
		select {
		case <-x.ready:
			if x.s != nil {
				_ = x.s.Close()
			}
		default: // it ends by its bound
		}
	}
}

// opened takes the first message of a stream that another agent has opened here.
func (l *peerLinks) opened(s *session.Session, st *session.Stream) (wire.PeerOpen, error) {
	var m wire.PeerOpen
	_ = st.SetReadDeadline(time.Now().Add(openBound))
	typ, body, err := st.ReadMsg()
	_ = st.SetReadDeadline(time.Time{})
	switch {
	case err == io.EOF:
		return m, errs.New(errs.Corrupt, "the stream ended before it said what it is for")
	case err != nil:
		return m, err
	case typ != wire.MsgPeerOpen:
		return m, errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgPeerOpen)
	}
	if err := wire.Unmarshal(body, &m); err != nil {
		return m, err
	}
	switch {
	case string(m.From) != s.Peer().Name:
		return m, errs.New(errs.Permission, "node %s says that it is node %s", s.Peer().Name, m.From)
	case m.Number == 0 || m.To != l.number.Load():
		return m, errs.New(errs.Fenced, "node %s is number %d of the cluster, not %d", l.a.cfg.Node, l.number.Load(), m.To)
	}
	return m, nil
}

// dialObjects is transfer.Dial.
func (l *peerLinks) dialObjects(ctx context.Context, node uint32, lane int) (net.Conn, error) {
	return l.stream(ctx, node, lane%bulkLanes, wire.StreamObjects)
}

// serve answers the streams of another agent that are about tasks and objects.
func (l *peerLinks) serve(ctx context.Context, s *session.Session, st *session.Stream, kind uint16) {
	m, err := l.opened(s, st)
	if err == nil {
		err = l.serves[kind](ctx, st, m)
	}
	if err != nil && ctx.Err() == nil && s.Err() == nil {
		l.a.log.Debug("a stream of another agent ends", "peer", s.Peer().String(), "kind", kind, "err", err)
		_ = st.SetWriteDeadline(time.Now().Add(openBound))
		_ = st.WriteErr(err)
	}
	_ = st.CloseWith(err)
}
