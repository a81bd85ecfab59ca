package head

import (
	"context"
	"io"
	"sync"
	"time"

	"launcher/head/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

const (
	helloBound = 10 * time.Second
	// maxQueue bounds what waits for an agent that does not read.
	maxQueue   = 64 << 20
	dropBound  = 2 * time.Second
	writeBound = 30 * time.Second
)

// agentConn is the control stream of a node.
type agentConn struct {
	node  wire.NodeID
	epoch wire.Epoch
	host  string
	s     *session.Session
	st    *session.Stream

	mu    sync.Mutex
	queue []byte // frames to be sent; guarded by mu
	over  bool   // nothing more is sent after queue; guarded by mu
	more  chan struct{}
}

// serveAgent serves the control stream st of an agent's session. said is closed once the
// loop has the agent's Hello, or there will be none.
func (h *head) serveAgent(ctx context.Context, s *session.Session, st *session.Stream, said chan<- struct{}) {
	tell := sync.OnceFunc(func() { close(said) })
	defer tell()
	defer st.Close()
	_ = st.SetReadDeadline(time.Now().Add(helloBound))
	typ, body, err := st.ReadMsg()
	_ = st.SetReadDeadline(time.Time{})
	var hello wire.Hello
	switch {
	case err != nil:
		return
	case typ != wire.MsgHello:
		err = errs.New(errs.Corrupt, "the first message is %#x, where a Hello is due", typ)
	default:
		err = wire.Unmarshal(body, &hello)
	}
	if err == nil && string(hello.Node) != s.Peer().Name {
		err = errs.New(errs.Permission, "node %s says that it is node %s", s.Peer().Name, hello.Node)
	}
	if err != nil {
		h.log.Warn("agent refused", "peer", s.Peer().String(), "err", err)
		_ = st.WriteErr(err)
		return
	}
	// Measured at the handshake: free of what the message waited for.
	hello.Clock = h.clock.Now() + int64(s.Peer().Clock)
	c := &agentConn{node: hello.Node, epoch: hello.Epoch, host: hello.Host, s: s, st: st, more: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { c.write(ctx) })
	if !h.post(item{ev: core.AgentUp{Node: c.node, Epoch: c.epoch, Hello: hello}, conn: c}) {
		return
	}
	tell()
	err = h.readAgent(c)
	cause := "its connection was lost"
	if err != nil {
		cause += ": " + err.Error()
	}
	h.post(item{ev: core.AgentDown{Node: c.node, Epoch: c.epoch, Cause: cause}, conn: c})
}

// member says whether a session is the one by which its node is part of the cluster. A
// certificate outlives its node by up to a day: by itself it gives no right to anything.
func (h *head) member(ctx context.Context, s *session.Session, said <-chan struct{}) error {
	bound := time.NewTimer(helloBound)
	defer bound.Stop()
	select {
	case <-said:
	case <-bound.C:
	case <-s.Done():
		return errEnding()
	case <-ctx.Done():
		return errEnding()
	}
	node, ok := wire.NodeID(s.Peer().Name), false
	if !h.do(func(*core.Core) { ok = h.current[node] != nil && h.current[node].s == s }) {
		return errEnding()
	}
	if !ok {
		return errs.New(errs.Fenced, "node %s is not part of cluster %s, or not by this connection", node, h.config.Name)
	}
	return nil
}

// relay joins a stream of one agent with one to another, which reach each other no better.
func (h *head) relay(ctx context.Context, s *session.Session, st *session.Stream, said <-chan struct{}) {
	to, err := h.relayed(ctx, s, st, said)
	if err == nil {
		err = st.WriteMsg(wire.MsgOK, struct{}{})
	} else {
		_ = st.SetWriteDeadline(time.Now().Add(writeBound))
		_ = st.WriteErr(err)
	}
	if err != nil {
		_ = st.CloseWith(err)
		if to != nil {
			_ = to.CloseWith(err)
		}
		return
	}
	_ = session.Relay(ctx, st, to)
}

// relayed opens the stream to the other agent.
func (h *head) relayed(ctx context.Context, s *session.Session, st *session.Stream, said <-chan struct{}) (*session.Stream, error) {
	if err := h.member(ctx, s, said); err != nil {
		return nil, err
	}
	_ = st.SetReadDeadline(time.Now().Add(helloBound))
	typ, body, err := st.ReadMsg()
	_ = st.SetReadDeadline(time.Time{})
	var m wire.Relay
	switch {
	case err != nil:
		return nil, err
	case typ != wire.MsgRelay:
		return nil, errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgRelay)
	}
	if err := wire.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	var conn *agentConn
	if !h.do(func(c *core.Core) { conn = h.current[c.NodeOf(m.Number)] }) {
		return nil, errEnding()
	}
	if conn == nil {
		return nil, errs.New(errs.Unavailable, "node number %d is not connected to the head", m.Number)
	}
	return conn.s.Open(ctx, wire.StreamRelayed)
}

// readAgent gives an agent's messages to the core until the stream ends.
func (h *head) readAgent(c *agentConn) error {
	for {
		typ, body, err := c.st.ReadMsg()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		msg, err := decodeAgent(typ, body)
		if err != nil {
			h.log.Warn("agent sent what cannot be read", "node", c.node, "err", err)
			c.drop(err)
			return err
		}
		if msg == nil {
			continue // of a newer minor version
		}
		if t, ok := msg.(wire.Told); ok {
			h.asks.told(c, t)
			continue
		}
		if !h.post(item{ev: core.AgentMsg{Node: c.node, Epoch: c.epoch, Msg: msg}, conn: c}) {
			return nil
		}
	}
}

// decodeAgent gives the struct of an agent's message, nil when the type is not known.
func decodeAgent(typ uint16, body []byte) (any, error) {
	switch typ {
	case wire.MsgDone:
		return decode[wire.Done](body)
	case wire.MsgRunning:
		return decode[wire.Running](body)
	case wire.MsgReturned:
		return decode[wire.Returned](body)
	case wire.MsgReserved:
		return decode[wire.Reserved](body)
	case wire.MsgReport:
		return decode[wire.Report](body)
	case wire.MsgBeat:
		return decode[wire.Beat](body)
	case wire.MsgGangGone:
		return decode[wire.GangGone](body)
	case wire.MsgLeaving:
		return decode[wire.Leaving](body)
	case wire.MsgGroupTell:
		return decode[wire.GroupTell](body)
	case wire.MsgActorTell:
		return decode[wire.ActorTell](body)
	case wire.MsgPrograms:
		return decode[wire.Programs](body)
	case wire.MsgBundleNews:
		return decode[wire.BundleNews](body)
	case wire.MsgDemand:
		return decode[wire.Demand](body)
	case wire.MsgLeaseGrant:
		return decode[wire.LeaseGrant](body)
	case wire.MsgLeaseBack:
		return decode[wire.LeaseBack](body)
	case wire.MsgReach:
		return decode[wire.Reach](body)
	case wire.MsgPeerAsk:
		return decode[wire.PeerAsk](body)
	case wire.MsgTold:
		return decode[wire.Told](body)
	case wire.MsgHello:
		return nil, errs.New(errs.Corrupt, "a second Hello on one connection")
	}
	return nil, nil
}

func decode[T any](body []byte) (any, error) {
	var v T
	if err := wire.Unmarshal(body, &v); err != nil {
		return nil, err
	}
	return v, nil
}

// send queues a message.
func (c *agentConn) send(typ uint16, msg any) {
	body := wire.Marshal(msg)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if len(body)+4 > wire.MaxFrame || len(c.queue)+len(body) > maxQueue {
		c.over, c.queue = true, nil // the writer gives up within its bound
		c.poke()
		return
	}
	c.queue = wire.AppendFrame(c.queue, typ, body)
	c.poke()
}

// drop sends an error and ends the session.
func (c *agentConn) drop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.queue = wire.AppendFrame(c.queue, wire.MsgError, wire.Marshal(errs.ToWire(err)))
		c.over = true
	}
	c.poke()
}

// close ends the session at once; the other side gets the cause.
func (c *agentConn) close(err error) { c.drop(err) }

func (c *agentConn) poke() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// write sends what is queued until ctx ends or the connection is dropped.
func (c *agentConn) write(ctx context.Context) {
	for {
		select {
		case <-c.more:
		case <-ctx.Done():
			return
		}
		c.mu.Lock()
		b, over := c.queue, c.over
		c.queue = nil
		c.mu.Unlock()
		bound := writeBound
		if over {
			bound = dropBound
		}
		if len(b) > 0 {
			_ = c.st.SetWriteDeadline(time.Now().Add(bound))
			if _, err := c.st.Write(b); err != nil {
				_ = c.s.CloseWith(errs.Wrap(errs.Unknown, err, "sending to node %s", c.node))
				return
			}
		}
		if over {
			// What was sent still arrives; the agent ends the session when it has read it.
			_ = c.st.CloseWrite()
			select {
			case <-c.s.Done():
			case <-time.After(dropBound):
				_ = c.s.Close()
			case <-ctx.Done():
			}
			return
		}
	}
}
