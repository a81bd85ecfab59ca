package agent

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// routes are how this node reaches other agents: directly where one of their addresses
// answers, else through a node that reaches both, else through the head. The session is
// between both ends, with their own mTLS; whoever relays it sees bytes.
type routes struct {
	a     *agent
	meter atomic.Int64 // what this agent's sessions sent and received
	rates rates        // of the loop

	mu   sync.Mutex
	ways map[uint32]*way // by the number of the life; guarded by mu
}

// way is what is known of how to reach a life of a node.
type way struct {
	node  wire.NodeID
	addr  string // that answered last
	far   bool   // no address answered last; the head was told
	via   uint32 // with far: the node through which it was reached, 0 = the head
	until int64  // with far: addresses are tried again then
	open  int    // relayed sessions to it
}

const (
	// directBound is how long a node's addresses are tried, routeBound a relay.
	directBound = 3 * time.Second
	routeBound  = 2 * time.Second
	viaWait     = time.Second // for the head to say which nodes may help
	// farFor is for how long a node that could not be reached is not tried again.
	farFor = 30 * time.Second
	maxVia = 2
	// probeMost is how many nodes are tried at a time.
	probeMost = 16
)

func newRoutes(a *agent) *routes { return &routes{a: a, ways: map[uint32]*way{}} }

// way gives what is known of a life. mu must be held.
func (r *routes) way(p wire.Peer) *way {
	w := r.ways[p.Number]
	if w == nil {
		w = &way{node: p.Node}
		r.ways[p.Number] = w
	}
	return w
}

// forget drops what is known of a life that is over.
func (r *routes) forget(number uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.ways[number]; w != nil && w.open == 0 {
		delete(r.ways, number)
	}
}

// dial makes a session with another agent, relayed if that is allowed and needed.
func (r *routes) dial(ctx context.Context, p wire.Peer, relayed bool) (*session.Session, error) {
	now := r.a.clock.Now()
	r.mu.Lock()
	w := r.way(p)
	far, via, until := w.far, w.via, w.until
	r.mu.Unlock()
	if relayed && far && now < until {
		if s, err := r.relay(ctx, p, via); err == nil {
			return s, nil
		}
	}
	s, err := r.direct(ctx, p)
	if err == nil || !relayed || ctx.Err() != nil {
		return s, err
	}
	var failed error
	for _, via := range append(r.helpers(ctx, p), 0) {
		s, rerr := r.relay(ctx, p, via)
		if rerr == nil {
			r.mu.Lock()
			w.via = via
			r.mu.Unlock()
			r.a.log.Info("a node is reached through another", "node", p.Node, "via", r.name(via), "directly", err)
			return s, nil
		}
		if failed = rerr; ctx.Err() != nil {
			break
		}
		if via != 0 { // it may know better ones by now
			r.tell(wire.Reach{Number: p.Number, Why: err.Error()})
		}
	}
	return nil, errs.Wrap(errs.Unavailable, failed, "node %s (directly: %v)", p.Node, err)
}

// direct makes a session over one of a node's addresses, and tells the head when it learns
// that none answers, or that one does again.
func (r *routes) direct(ctx context.Context, p wire.Peer) (*session.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, directBound)
	defer cancel()
	r.mu.Lock()
	last := r.way(p).addr
	r.mu.Unlock()
	var addrs []string
	for _, x := range append([]string{last, p.Addr}, p.Addrs...) {
		if x != "" && !slices.Contains(addrs, x) {
			addrs = append(addrs, x)
		}
	}
	cfg := r.a.sessionConfig()
	cfg.PeerName = string(p.Node)
	s, err := session.Dial(ctx, addrs, cfg, secure.RoleAgent)
	r.mu.Lock()
	w := r.way(p)
	was := w.far
	w.far, w.until = err != nil, r.a.clock.Now()+int64(farFor)
	if err == nil {
		w.addr = s.Peer().Addr
	}
	r.mu.Unlock()
	if err != nil && !was {
		r.tell(wire.Reach{Number: p.Number, Why: err.Error()})
	} else if err == nil && was {
		r.tell(wire.Reach{Number: p.Number, OK: true, Addr: s.Peer().Addr})
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "node %s", p.Node)
	}
	return s, nil
}

// tell gives the head news of what this node reaches.
func (r *routes) tell(m wire.Reach) {
	d := r.a.links.dir
	d.mu.Lock()
	c := d.conn
	d.mu.Unlock()
	if c == nil || m.Number == 0 {
		return
	}
	r.a.head.send(c, core.ToHead{Type: wire.MsgReach, Msg: m})
	c.poke()
}

// helpers are the nodes that the head thinks may relay: it says so when it hears that a
// node is not reached.
func (r *routes) helpers(ctx context.Context, p wire.Peer) []uint32 {
	if p.Number == 0 {
		return nil
	}
	via := r.a.links.dir.helpers(ctx, p.Number)
	return via[:min(len(via), maxVia)]
}

func (r *routes) name(via uint32) string {
	if via == 0 {
		return "the head"
	}
	return string(r.a.links.dir.name(via))
}

// relay makes a session with a node through another one; 0 is the head.
func (r *routes) relay(ctx context.Context, p wire.Peer, via uint32) (*session.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, routeBound)
	defer cancel()
	var through *session.Session
	if via == 0 {
		var err error
		if through, err = r.a.head.session(ctx); err != nil {
			return nil, err
		}
	} else {
		x := r.a.links.link(ctx, linkKey{via, relayLane})
		select {
		case <-x.ready:
		case <-ctx.Done():
			return nil, errs.New(errs.Unavailable, "no connection to node number %d within %s", via, routeBound)
		}
		if x.err != nil {
			return nil, x.err
		}
		through = x.s
		through.Bear(ringBound)
	}
	st, err := through.Open(ctx, wire.StreamRelay)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })
	if err = st.WriteMsg(wire.MsgRelay, wire.Relay{Number: p.Number}); err == nil {
		err = answered(st)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = st.CloseWith(err)
		return nil, errs.Wrap(errs.Unavailable, err, "node %s through %s", p.Node, r.name(via))
	}
	cfg := r.a.sessionConfig()
	cfg.PeerName = string(p.Node)
	cfg.Meter = nil // the bytes are counted where they travel
	s, err := session.DialConn(ctx, st, cfg, secure.RoleAgent)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	w := r.way(p)
	w.open++
	r.mu.Unlock()
	context.AfterFunc(s.Context(), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		w.open--
	})
	return s, nil
}

// serve joins a stream of another agent with a connection to a third, which this node must
// reach itself: nothing goes over two relays.
func (r *routes) serve(ctx context.Context, st *session.Stream) {
	err := r.join(ctx, st)
	if err != nil && ctx.Err() == nil {
		r.a.log.Debug("a relay ends", "err", err)
	}
}

func (r *routes) join(ctx context.Context, st *session.Stream) error {
	m, err := relayFor(st)
	var conn net.Conn
	if err == nil {
		conn, err = r.plain(ctx, m.Number)
	}
	if err == nil {
		if err = st.WriteMsg(wire.MsgOK, struct{}{}); err != nil {
			conn.Close()
		}
	} else {
		_ = st.SetWriteDeadline(time.Now().Add(openBound))
		_ = st.WriteErr(err)
	}
	if err != nil {
		_ = st.CloseWith(err)
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close(); st.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.Copy(conn, st)
		if err != nil || conn.(*net.TCPConn).CloseWrite() != nil {
			conn.Close()
		}
	})
	_, err = io.Copy(st, conn)
	if err == nil {
		err = st.CloseWrite()
	} else {
		_ = st.CloseWith(errs.Wrap(errs.Unavailable, err, "the other end"))
	}
	wg.Wait()
	conn.Close()
	st.Close()
	return err
}

// plain connects to an address at which a node has answered this one.
func (r *routes) plain(ctx context.Context, number uint32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, routeBound)
	defer cancel()
	p, err := r.a.links.dir.peer(ctx, number)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	addr := r.way(p).addr
	r.mu.Unlock()
	if addr == "" {
		s, err := r.direct(ctx, p)
		if err != nil {
			return nil, err
		}
		addr = s.Peer().Addr
		_ = s.Close()
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		r.mu.Lock()
		r.way(p).addr = ""
		r.mu.Unlock()
		return nil, errs.Wrap(errs.Unavailable, err, "node %s", p.Node)
	}
	return conn, nil
}

// relayFor reads whom a stream is for.
func relayFor(st *session.Stream) (m wire.Relay, err error) {
	_ = st.SetReadDeadline(time.Now().Add(openBound))
	typ, body, err := st.ReadMsg()
	_ = st.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		return m, err
	case typ != wire.MsgRelay:
		return m, errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, wire.MsgRelay)
	}
	return m, wire.Unmarshal(body, &m)
}

// relayed serves a connection of another agent that the head has relayed to this node.
func (r *routes) relayed(ctx context.Context, st *session.Stream) {
	cfg := r.a.peers.config()
	cfg.Meter = nil
	if err := session.ServeRelayed(ctx, st, cfg, r.a.peers.session); err != nil && ctx.Err() == nil {
		r.a.log.Warn("a relayed connection is refused", "err", err)
	}
}

// probe tells the head which nodes this one reaches by itself.
func (r *routes) probe(ctx context.Context, m wire.Probe) {
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, probeMost)
	for _, number := range m.Numbers {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-room }()
			pctx, cancel := context.WithTimeout(ctx, linkBound)
			defer cancel()
			answer := wire.Reach{Number: number}
			p, err := r.a.links.dir.peer(pctx, number)
			if err == nil {
				var s *session.Session
				if s, err = r.direct(pctx, p); err == nil {
					answer.OK, answer.Addr = true, s.Peer().Addr
					_ = s.Close()
				}
			}
			if err != nil {
				answer.Why = err.Error()
			}
			r.tell(answer)
		})
	}
}

// relays says how nodes are reached that this one cannot reach itself.
func (r *routes) relays() (out []string) {
	r.mu.Lock()
	open := map[string]uint32{}
	for _, w := range r.ways {
		if w.open > 0 && w.far {
			open[string(w.node)] = w.via
		}
	}
	r.mu.Unlock()
	for node, via := range open {
		out = append(out, node+" via "+r.name(via))
	}
	slices.Sort(out)
	if len(out) > maxTold {
		out = out[:maxTold]
	}
	return out
}

// maxTold is how many relayed nodes a node tells of.
const maxTold = 16

// rates finds the busiest second of the last minute.
type rates struct {
	bytes, at int64
	slots     [12]int64 // the best of five seconds each
	turn      int64
}

const rateSlot = int64(5 * time.Second)

// sample takes what the counter says now.
func (r *rates) sample(now, bytes int64) int64 {
	if r.at == 0 {
		r.at, r.bytes, r.turn = now, bytes, now/rateSlot
	}
	for turn := now / rateSlot; r.turn < turn; r.turn++ {
		if turn-r.turn > int64(len(r.slots)) {
			r.turn = turn - int64(len(r.slots))
		}
		r.slots[(r.turn+1)%int64(len(r.slots))] = 0
	}
	if past := now - r.at; past >= int64(time.Second)/2 {
		k := r.turn % int64(len(r.slots))
		r.slots[k] = max(r.slots[k], int64(float64(bytes-r.bytes)/(float64(past)/1e9)))
		r.at, r.bytes = now, bytes
	}
	return slices.Max(r.slots[:])
}

// ownAddrs are the addresses of this machine at which others may reach it, best first: the
// one that ssh came to, then those of its interfaces, last those that lead to containers
// and virtual machines here.
func ownAddrs(port string) []string {
	var out, inside []string
	all, _ := net.Interfaces()
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 {
			continue
		}
		for _, x := range addrs {
			n, ok := x.(*net.IPNet)
			if !ok || !n.IP.IsGlobalUnicast() {
				continue
			}
			at := net.JoinHostPort(n.IP.String(), port)
			if slices.ContainsFunc(bridges, func(p string) bool { return strings.HasPrefix(i.Name, p) }) {
				inside = append(inside, at)
			} else {
				out = append(out, at)
			}
		}
	}
	out = append(out, inside...)
	// CLIENT PORT SERVER PORT, of the login by which this node was started.
	if f := strings.Fields(os.Getenv("SSH_CONNECTION")); len(f) == 4 {
		if i := slices.Index(out, net.JoinHostPort(f[2], port)); i > 0 {
			out = slices.Insert(slices.Delete(out, i, i+1), 0, net.JoinHostPort(f[2], port))
		}
	}
	return out
}

// bridges begin the names of interfaces behind which there are only this machine's own.
var bridges = []string{"docker", "br-", "virbr", "cni", "veth", "podman", "lxc", "lxd"}
