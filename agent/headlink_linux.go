package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

const (
	signalBound = 5 * time.Second
	firstPause  = 50 * time.Millisecond
	lastPause   = 2 * time.Second
	writeBound  = 30 * time.Second
	drainBound  = 2 * time.Second
	// maxUnsent bounds what waits for a head that does not read; then the session ends
	// and the next greeting tells what matters.
	maxUnsent = 64 << 20
	// firstGap is how long messages are collected after a write; the first never waits.
	// While they keep coming the gap becomes longGap: waking the head and its disk for
	// every short task costs more than the task.
	firstGap = time.Millisecond
	longGap  = 5 * time.Millisecond
	// longAfter is after how many writes without a pause of calm that is.
	longAfter = 8
	calm      = 25 * time.Millisecond
)

// headLink keeps one session with the head.
type headLink struct {
	a       *agent
	serving *headConn   // of the loop
	moves   atomic.Bool // the head is somewhere else in a moment

	mu   sync.Mutex
	conn *headConn     // nil = away; guarded by mu
	left time.Time     // since when; guarded by mu
	back chan struct{} // closed when conn is set; guarded by mu
}

// headConn is one session with the head and its control stream.
type headConn struct {
	s    *session.Session
	st   *session.Stream
	more chan struct{}
	idle chan struct{} // closed by drain's writer when all is sent

	mu    sync.Mutex
	queue []byte // guarded by mu
	over  bool   // nothing more is queued; guarded by mu
}

func newHeadLink(a *agent) *headLink { return &headLink{a: a, back: make(chan struct{})} }

// run connects again and again until ctx ends. It returns an error when the head will
// never have this node back.
func (h *headLink) run(ctx context.Context) error {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := h.connect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errs.Is(err, errs.Fenced) {
			return errs.Wrap(errs.Fenced, err, "the head does not take node %s back", h.a.cfg.Node)
		}
		if time.Since(began) > 5*time.Second || h.moves.Swap(false) {
			pause = firstPause
		}
		wait := pause/2 + rand.N(pause)
		h.a.log.Info("no session with the head; trying again", "in", wait.Round(time.Millisecond), "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		pause = min(2*pause, lastPause)
	}
	return nil
}

// headFile is, in the node's directory, where the head was that greeted last.
const headFile = "head.addrs"

// keepAddrs notes where the head is, for when the connection breaks: it may not be where
// it was when this node was started.
func (a *agent) keepAddrs(addrs []string) {
	path := filepath.Join(a.cfg.Dir, headFile)
	b, err := json.Marshal(addrs)
	if old, rerr := os.ReadFile(path); err != nil || len(addrs) == 0 || rerr == nil && bytes.Equal(old, b) {
		return
	}
	if err = os.WriteFile(path+".new", b, 0o600); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		a.log.Warn("cannot note where the head is", "err", err)
	}
}

// addrs are where the head may be: what this node was told when it was started, or by the
// head itself, and, on the machine of the cluster's state directory, what is written there
// now.
func (h *headLink) addrs() []string { return headAddrs(h.a.cfg) }

func headAddrs(cfg wire.NodeConfig) []string {
	out := slices.Clone(cfg.Addrs)
	var last []string
	if b, err := os.ReadFile(filepath.Join(cfg.Dir, headFile)); err == nil && json.Unmarshal(b, &last) == nil {
		out = first(out, last)
	}
	// A local node's directory is clusters/NAME/nodes/ID.
	path := filepath.Join(filepath.Dir(filepath.Dir(cfg.Dir)), "cluster.json")
	var c wire.ClusterFile
	if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &c) == nil && c.Name == cfg.Cluster {
		out = first(out, c.Addrs)
	}
	return out
}

// first puts addrs before the others.
func first(out, addrs []string) []string {
	out = slices.DeleteFunc(out, func(a string) bool { return slices.Contains(addrs, a) })
	return slices.Concat(addrs, out)
}

func (a *agent) sessionConfig() session.Config {
	return session.Config{Identity: a.id, Version: a.o.Version, Log: a.log, Epoch: uint64(a.cfg.Epoch), Token: a.cfg.Token, Meter: &a.routes.meter}
}

// connect makes a session and serves it until it ends.
func (h *headLink) connect(ctx context.Context) error {
	s, err := session.Dial(ctx, h.addrs(), h.a.sessionConfig(), secure.RoleHead)
	if err != nil {
		return err
	}
	defer s.Close()
	st, err := s.Open(ctx, wire.StreamControl)
	if err != nil {
		return err
	}
	c := &headConn{s: s, st: st, more: make(chan struct{}, 1), idle: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { c.write(ctx) })
	wg.Go(func() { h.a.ship.serve(ctx, s) })
	wg.Go(func() { h.accept(ctx, s) })
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	h.set(c)
	up := core.HeadUp{Route: cmp.Or(h.a.cfg.Route, "ssh")}
	if _, ok := st.LocalAddr().(*net.TCPAddr); ok {
		up.Route = "direct"
	}
	addrs := h.a.peers.addrsFor(st.LocalAddr())
	up.Addr, up.Addrs = addrs[0], addrs[1:]
	h.a.events.add(event{ev: up, conn: c})
	h.a.log.Info("session with the head", "addr", s.Peer().Addr, "version", s.Peer().Version)
	err = h.read(ctx, c)
	h.a.events.add(event{ev: core.HeadDown{Why: err.Error()}, conn: c})
	h.set(nil)
	_ = s.Close()
	return err
}

func (h *headLink) set(c *headConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.conn
	h.conn = c
	switch {
	case c != nil && was == nil:
		close(h.back)
	case c == nil && was != nil:
		h.left = time.Now()
		h.back = make(chan struct{})
	}
}

// away is since how long there has been no session; 0 = there is one.
func (h *headLink) away() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn != nil {
		return 0
	}
	return time.Since(h.left)
}

// session gives the session with the head, waiting for one.
func (h *headLink) session(ctx context.Context) (*session.Session, error) {
	for {
		h.mu.Lock()
		c, back := h.conn, h.back
		h.mu.Unlock()
		if c != nil {
			return c.s, nil
		}
		select {
		case <-back:
		case <-ctx.Done():
			return nil, errs.New(errs.Unavailable, "node %s has no connection to the head at the moment", h.a.cfg.Node).
				Hint("work goes on without it; ask again in a while")
		}
	}
}

// read gives the head's messages to the loop until the stream ends.
func (h *headLink) read(ctx context.Context, c *headConn) error {
	for {
		typ, body, err := c.st.ReadMsg()
		if err == io.EOF {
			return errs.New(errs.Unavailable, "the head closed the control stream")
		}
		if err != nil {
			return err
		}
		if typ == wire.MsgError {
			var w errs.Wire
			if err := wire.Unmarshal(body, &w); err != nil {
				return err
			}
			return w.FromWire()
		}
		msg, err := decodeHead(typ, body)
		if err != nil {
			return err
		}
		switch m := msg.(type) {
		case nil: // of a newer minor version
			continue
		case wire.Ask:
			h.asked(ctx, c, m)
			continue
		case wire.Peer:
			h.a.links.dir.told(m)
			continue
		case wire.Probe:
			h.a.wg.Go(func() { h.a.routes.probe(ctx, m) })
			continue
		case wire.HeadMoves:
			h.a.keepAddrs(m.Seat.Addrs)
			h.moves.Store(true)
			continue
		case wire.Welcome:
			h.a.copies.Heard(uint64(m.HeadEpoch))
			h.a.keepAddrs(m.Addrs)
			h.a.links.greeted(c, m)
		}
		h.a.events.add(event{ev: core.FromHead{Msg: msg}, conn: c})
	}
}

// accept takes the streams that the head opens: its journal, of which a copy is kept here,
// and processes that users have at their terminals.
func (h *headLink) accept(ctx context.Context, s *session.Session) {
	_ = s.Each(ctx, func(kind uint16, st *session.Stream) {
		defer st.Close()
		switch kind {
		case wire.StreamFollow:
			if err := h.a.copies.Serve(st); err != nil && s.Err() == nil {
				h.a.log.Warn("the head's journal is not followed here", "err", err)
				_ = st.WriteErr(err)
				_ = st.CloseWrite()
			}
		case wire.StreamProcess:
			h.a.serveProcess(ctx, st)
		case wire.StreamHead:
			h.a.seat.serve(context.WithoutCancel(ctx), st)
		case wire.StreamRelayed:
			h.a.routes.relayed(ctx, st)
		default:
			_ = st.CloseWith(errs.New(errs.Invalid, "an agent does not take streams of kind %d from the head", kind))
		}
	})
}

// decodeHead gives the struct of a message of the head, nil when the type is not known.
func decodeHead(typ uint16, body []byte) (any, error) {
	switch typ {
	case wire.MsgWelcome:
		return decode[wire.Welcome](body)
	case wire.MsgJob:
		return decode[wire.Job](body)
	case wire.MsgAssign:
		return decode[wire.Assign](body)
	case wire.MsgWithdraw:
		return decode[wire.Withdraw](body)
	case wire.MsgStop:
		return decode[wire.Stop](body)
	case wire.MsgReserve:
		return decode[wire.Reserve](body)
	case wire.MsgStart:
		return decode[wire.Start](body)
	case wire.MsgRelease:
		return decode[wire.Release](body)
	case wire.MsgAck:
		return decode[wire.Ack](body)
	case wire.MsgAdvice:
		return decode[wire.Advice](body)
	case wire.MsgNodeEnds:
		return decode[wire.NodeEnds](body)
	case wire.MsgCheckpoint:
		return decode[wire.Checkpoint](body)
	case wire.MsgForget:
		return decode[wire.Forget](body)
	case wire.MsgLeaseOffer:
		return decode[wire.LeaseOffer](body)
	case wire.MsgLeased:
		return decode[wire.Leased](body)
	case wire.MsgLeaseCut:
		return decode[wire.LeaseCut](body)
	case wire.MsgInfeasible:
		return decode[wire.Infeasible](body)
	case wire.MsgHold:
		return decode[wire.Hold](body)
	case wire.MsgBundleOrder:
		return decode[wire.BundleOrder](body)
	case wire.MsgGroupNews:
		return decode[wire.GroupNews](body)
	case wire.MsgActorTake:
		return decode[wire.ActorTake](body)
	case wire.MsgJobsOver:
		return decode[wire.JobsOver](body)
	case wire.MsgProbe:
		return decode[wire.Probe](body)
	case wire.MsgPeer:
		return decode[wire.Peer](body)
	case wire.MsgAsk:
		return decode[wire.Ask](body)
	case wire.MsgHeadMoves:
		return decode[wire.HeadMoves](body)
	case wire.MsgShutdown:
		return decode[wire.Shutdown](body)
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

// serves follows, in the order of the events, which session the core believes in, and
// reports whether an event is of that one: nothing of an old session comes after its end.
func (h *headLink) serves(e event) bool {
	switch e.ev.(type) {
	case core.HeadUp:
		h.serving = e.conn
		return true
	case core.HeadDown:
		if e.conn == h.serving {
			h.serving = nil
			return true
		}
		return false
	}
	return e.conn == h.serving
}

// send queues a message of the core.
func (h *headLink) send(c *headConn, e core.ToHead) {
	if c == nil {
		return
	}
	msg := e.Msg
	if r, ok := msg.(wire.Reserved); ok && r.OK {
		host, _, _ := net.SplitHostPort(h.a.peers.addrsFor(c.st.LocalAddr())[0])
		r.Addr, r.Port = host, freePort(host)
		msg = r
	}
	body := wire.Marshal(msg)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.over:
	case len(body)+4 > wire.MaxFrame, len(c.queue)+len(body) > maxUnsent:
		c.over = true
		h.a.log.Error("the head does not read, or a message is too large; beginning a new session", "type", e.Type, "bytes", len(body), "waiting", len(c.queue))
		cause := errs.New(errs.Exhausted, "%d bytes wait for the head", len(c.queue)+len(body))
		h.a.wg.Go(func() { _ = c.s.CloseWith(cause) })
	default:
		c.queue = wire.AppendFrame(c.queue, e.Type, body)
	}
}

// flush sends what is queued, with one write.
func (h *headLink) flush() {
	c := h.serving
	if c == nil {
		return
	}
	c.mu.Lock()
	some := len(c.queue) > 0
	c.mu.Unlock()
	if some {
		c.poke()
	}
}

func (c *headConn) poke() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// write sends what is queued until ctx ends or the session does.
func (c *headConn) write(ctx context.Context) {
	last, row := time.Time{}, 0
	for {
		select {
		case <-c.more:
		case <-ctx.Done():
			return
		case <-c.s.Done():
			return
		}
		gap, since := firstGap, time.Since(last)
		if row++; since >= calm {
			row = 0
		} else if row > longAfter {
			gap = longGap
		}
		if wait := gap - since; wait > 0 {
			time.Sleep(wait)
		}
		c.mu.Lock()
		b, over := c.queue, c.over
		c.queue = nil
		c.mu.Unlock()
		if len(b) > 0 {
			last = time.Now()
			_ = c.st.SetWriteDeadline(last.Add(writeBound))
			if _, err := c.st.Write(b); err != nil {
				_ = c.s.CloseWith(errs.Wrap(errs.Unknown, err, "sending to the head"))
				return
			}
		}
		if over {
			_ = c.st.CloseWrite()
			close(c.idle)
			return
		}
	}
}

// drain waits, for a bounded time, until the head has taken what is queued: it is the
// farewell.
func (h *headLink) drain() {
	c := h.serving
	if c == nil {
		return
	}
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.poke()
	late := time.NewTimer(drainBound)
	defer late.Stop()
	select {
	case <-c.idle:
		// The head closes the session when it has read the end of the stream.
		select {
		case <-c.s.Done():
		case <-late.C:
		}
	case <-c.s.Done():
	case <-late.C:
	}
}

// hangUp ends the session; a new one is tried.
func (h *headLink) hangUp(c *headConn, why string) {
	if c != nil {
		h.a.wg.Go(func() { _ = c.s.CloseWith(errs.New(errs.Unavailable, "%s", why)) })
	}
}

// freePort finds a port that nobody listens on now; it is rank 0's own from here on.
func freePort(host string) uint16 {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}
