package head

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"launcher/head/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/follow"
	"launcher/wire/session"
)

const (
	// recentBytes of the journal stay in memory for followers that keep up.
	recentBytes = 4 << 20
	// followGap is between two messages to a follower: what comes meanwhile goes together.
	followGap = 2 * time.Millisecond
	// followBound is how long a follower may take for one message.
	followBound = 30 * time.Second
	// followLook is how often it is looked at who follows.
	followLook = 500 * time.Millisecond
	// followRest is how long a node that could not follow is left alone; one whose disk is full
	// or the like longer each time, up to followRestMost.
	followRest     = 5 * time.Second
	followRestMost = 5 * time.Minute
	// keepUp is how long effects wait for a follower. One that is too slow is left alone for
	// lateRest of these, since trying it again may hold everything up as long.
	keepUp   = time.Second
	lateRest = 30
	// compactAfter is how much is sent before a newer snapshot goes after it, at least.
	compactAfter = 16 << 20
)

// followers keeps copies of the journal on other machines, so that the cluster survives
// the loss of this one. What anybody is told waits until those who keep up have it: an end
// that was acknowledged is known to whichever head comes next.
type followers struct {
	h      *head
	want   int
	keepUp time.Duration
	gone   chan struct{} // one has left

	mu    sync.Mutex
	of    map[*agentConn]*follower // guarded by mu, as is what follows
	rest  map[wire.NodeID]rest
	moved chan struct{} // closed when a follower has more, or is gone
}

type follower struct {
	f       *followers
	conn    *agentConn
	machine string
	epoch   wire.Epoch

	// Guarded by f.mu.
	stop func()
	base uint64    // with this record it has all that there was when it began
	next uint64    // it has all before
	late bool      // it did not keep up
	good time.Time // since when its copy counts; 0 = it does not yet
	// trees is what keeps it from having the working directories.
	trees string
}

// rest is for how long a node is not asked to follow.
type rest struct {
	until time.Time
	late  bool
	wait  time.Duration // how long it was left alone, if it is there and could not
	why   string        // what it could not for
}

// longer is how long a node is left alone that could not again, the last time for last.
// It begins anew where all was good for longer than that.
func longer(last time.Duration, good time.Time) time.Duration {
	if !good.IsZero() && time.Since(good) > last {
		last = 0
	}
	return min(max(2*last, followRest), followRestMost)
}

func newFollowers(h *head) *followers {
	return &followers{h: h, want: h.o.Followers, keepUp: cmp.Or(h.o.keepUp, keepUp), gone: make(chan struct{}, 1),
		of: map[*agentConn]*follower{}, rest: map[wire.NodeID]rest{}, moved: make(chan struct{})}
}

// wait returns when all followers that keep up have the records up to seq. Whoever takes
// longer than keepUp does not, and is left. An error means that ctx has ended.
func (f *followers) wait(ctx context.Context, seq uint64) error {
	var late <-chan time.Time
	for {
		f.mu.Lock()
		var lack []*follower
		for _, n := range f.of {
			if n.counts() && n.next <= seq {
				lack = append(lack, n)
			}
		}
		moved := f.moved
		f.mu.Unlock()
		if len(lack) == 0 {
			return nil
		}
		if late == nil {
			t := time.NewTimer(f.keepUp)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-moved:
		case <-late:
			f.mu.Lock()
			for _, n := range lack {
				if n.next <= seq {
					n.late = true
					n.stop()
				}
			}
			f.mu.Unlock()
			late = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// counts says whether its copy is one to go on with; mu must be held.
func (n *follower) counts() bool { return n.next > n.base && !n.late }

// tell wakes those who wait; mu must be held.
func (f *followers) tell() {
	close(f.moved)
	f.moved = make(chan struct{})
}

// run has others follow until ctx ends. It returns an error when a follower knows of a
// newer head.
func (f *followers) run(ctx context.Context) error {
	if f.want == 0 {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	tick := time.NewTicker(followLook)
	defer tick.Stop()
	for {
		for _, n := range f.choose() {
			wg.Go(func() {
				err := f.serve(ctx, n)
				f.left(n, err)
				if errs.Is(err, errs.Fenced) {
					cancel(errs.Wrap(errs.Fenced, err, "node %s", n.conn.node))
				}
			})
		}
		select {
		case <-tick.C:
		case <-f.gone: // another one may follow in its place
		case <-ctx.Done():
			if err := context.Cause(ctx); errs.Is(err, errs.Fenced) {
				return err
			}
			return nil
		}
	}
}

// choose gives new followers: on machines of their own, none on ours.
func (f *followers) choose() []*follower {
	var conns []*agentConn
	var epoch wire.Epoch
	cfg := f.h.nowConfig()
	f.h.do(func(c *core.Core) {
		epoch = c.Epoch()
		for _, id := range c.Members() {
			if a := f.h.current[id]; a != nil {
				conns = append(conns, a)
			}
		}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	taken := []string{machineOf(cfg.Seat, cfg, f.h.host)}
	for a, x := range f.of {
		if !slices.Contains(conns, a) {
			x.stop()
		}
		taken = append(taken, x.machine)
	}
	var out []*follower
	for _, a := range conns {
		if len(f.of) >= f.want {
			break
		}
		m := machineOf(a.node, cfg, a.host)
		if f.of[a] != nil || slices.Contains(taken, m) || time.Now().Before(f.rest[a.node].until) {
			continue
		}
		taken = append(taken, m)
		x := &follower{f: f, conn: a, machine: m, epoch: epoch, stop: func() {}}
		f.of[a] = x
		out = append(out, x)
	}
	return out
}

// machineOf names the machine of a node. Where the pool is a list of machines that is its
// place, else what the kernel there says.
func machineOf(id wire.NodeID, c wire.HeadConfig, host string) string {
	for _, p := range c.Pools {
		if len(p.Places) == 0 {
			continue
		}
		for i, place := range p.Places {
			if place != "" && id == wire.PlaceNode(p.Name, i) {
				return "place " + place
			}
		}
	}
	return host
}

func (f *followers) left(n *follower, err error) {
	f.mu.Lock()
	delete(f.of, n.conn)
	r := rest{until: time.Now().Add(followRest), late: n.late}
	switch {
	case n.late:
		r.until = time.Now().Add(lateRest * f.keepUp)
	case err != nil && n.conn.s.Err() == nil:
		r.wait, r.why = longer(f.rest[n.conn.node].wait, n.good), err.Error()
		r.until = time.Now().Add(r.wait)
	}
	f.rest[n.conn.node] = r
	f.tell()
	f.mu.Unlock()
	select {
	case f.gone <- struct{}{}:
	default:
	}
	if f.h.ctx.Err() == nil {
		f.h.log.Info("a follower of the journal is gone", "node", n.conn.node, "late", r.late, "err", err)
	}
}

// serve sends the journal to one follower until it goes.
func (f *followers) serve(ctx context.Context, n *follower) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	n.stop = cancel
	f.mu.Unlock()
	ctxOpen, stop := context.WithTimeout(ctx, followBound)
	st, err := n.conn.s.Open(ctxOpen, wire.StreamFollow)
	stop()
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { _ = st.Close() })()
	j := f.h.journal
	last := j.Safe()
	next, err := tellFollower(st, follow.MsgBegin, follow.Begin{Epoch: uint64(n.epoch), Last: last})
	if err != nil {
		return err
	}
	f.mu.Lock()
	n.base = last
	f.mu.Unlock()
	n.have(next)
	f.h.log.Info("a node follows the journal", "node", n.conn.node, "machine", n.machine)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { f.trees(ctx, n) })
	size, snap := 0, uint64(0)
	for {
		changed := j.Changed()
		sent, err := f.some(st, n, &size, &snap)
		if err != nil {
			return err
		}
		if !sent {
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			case <-n.conn.s.Done():
				return n.conn.s.Err()
			}
		}
		select {
		case <-time.After(followGap):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// some sends what the follower lacks, about a message of it. Now and then a newer snapshot
// goes, too, so that the copy does not grow for ever: sent is how much went since the last
// look, snap the newest that went.
func (f *followers) some(st *session.Stream, n *follower, sent *int, snap *uint64) (some bool, err error) {
	f.mu.Lock()
	next := max(n.next, 1)
	f.mu.Unlock()
	records, err := f.records(next)
	lacks := errs.Is(err, errs.NotFound) // it is in a snapshot
	if err != nil && !lacks {
		return false, err
	}
	if lacks || *sent > compactAfter {
		*sent = 0
		state, seq, err := f.h.journal.Newest()
		if err != nil {
			return false, err
		}
		if lacks && seq < next {
			return false, errs.New(errs.NotFound, "journal record %d is neither in a segment nor in a snapshot", next)
		}
		if lacks || seq > *snap {
			*snap = seq
			return true, n.parts(st, follow.Part{Seq: seq, Snapshot: true}, state)
		}
	}
	if len(records) == 0 {
		return false, nil
	}
	for _, r := range records {
		*sent += len(r)
	}
	if len(records) == 1 && len(records[0]) > follow.MaxPart {
		return true, n.parts(st, follow.Part{Seq: next}, records[0])
	}
	if next, err = tellFollower(st, follow.MsgRecords, follow.Records{First: next, Records: records}); err == nil {
		n.have(next)
	}
	return true, err
}

// records are those from number next on, as many as go into a message; errs.NotFound when
// they are in a snapshot.
func (f *followers) records(next uint64) (records [][]byte, err error) {
	j := f.h.journal
	if records, ok := j.Recent(next, follow.MaxPart); ok {
		return records, nil
	}
	size := 0
	_, err = j.ReadFrom(next, func(_ uint64, b []byte) error {
		if size += len(b); size > follow.MaxPart && len(records) > 0 {
			return errEnough
		}
		records = append(records, slices.Clone(b))
		return nil
	})
	if len(records) > 0 {
		err = nil
	}
	return records, err
}

var errEnough = errs.New(errs.Exhausted, "enough for one message")

func (n *follower) have(next uint64) {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	n.next = next
	if n.counts() && n.good.IsZero() {
		n.good = time.Now()
	}
	n.f.tell()
}

// parts sends what is too long for one message.
func (n *follower) parts(st *session.Stream, p follow.Part, data []byte) error {
	for len(data) > follow.MaxPart {
		p.Data = data[:follow.MaxPart]
		data = data[follow.MaxPart:]
		_ = st.SetDeadline(time.Now().Add(followBound))
		if err := st.WriteMsg(follow.MsgPart, p); err != nil {
			return err
		}
	}
	p.Data, p.Final = data, true
	next, err := tellFollower(st, follow.MsgPart, p)
	if err == nil {
		n.have(next)
	}
	return err
}

// tellFollower sends a message and waits until the follower has it on disk.
func tellFollower(st *session.Stream, typ uint16, msg any) (next uint64, err error) {
	_ = st.SetDeadline(time.Now().Add(followBound))
	if err := st.WriteMsg(typ, msg); err != nil {
		return 0, err
	}
	got, body, err := st.ReadMsg()
	if err != nil {
		return 0, err
	}
	if got != follow.MsgHave {
		return 0, followerErr(got, body)
	}
	var h follow.Have
	err = wire.Unmarshal(body, &h)
	return h.Next, err
}

// info says who follows and how far behind each is.
func (f *followers) info() (out []wire.FollowerInfo) {
	if f.want == 0 {
		return nil
	}
	safe := f.h.journal.Safe()
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, r := range f.rest {
		if (r.late || r.why != "") && time.Now().Before(r.until) {
			out = append(out, wire.FollowerInfo{Node: id, Late: r.late, Why: r.why})
		}
	}
	for _, x := range f.of {
		switch {
		case x.late: // and being left
			out = append(out, wire.FollowerInfo{Node: x.conn.node, Late: true})
		case x.counts():
			i := wire.FollowerInfo{Node: x.conn.node, Host: x.conn.host, Trees: x.trees}
			if x.next <= safe {
				i.Behind = safe + 1 - max(x.next, 1)
			}
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b wire.FollowerInfo) int { return slices.Compare([]byte(a.Node), []byte(b.Node)) })
	return out
}
