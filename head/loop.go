package head

import (
	"context"
	"sync"
	"time"

	"launcher/head/core"
	"launcher/internal/errs"
)

// item is something for the loop: an event, perhaps of an agent's connection, or a
// function that looks at the core.
type item struct {
	ev   core.Event
	conn *agentConn
	fn   func(*core.Core)
	done chan struct{} // closed after fn
}

const (
	maxBatch       = 512      // events between two appends to the journal
	snapshotRecs   = 20_000   // records between two snapshots, at least
	snapshotBytes  = 8 << 20  // and bytes
	maxSnapshotGap = 64 << 20 // bytes, however large the state is
)

// loop owns the core: it takes items until ctx ends.
func (h *head) loop(ctx context.Context) error {
	defer close(h.over)
	timer := h.clock.Timer()
	defer timer.Stop()
	if err := h.step(core.Start{}, nil); err != nil {
		return err
	}
	for {
		if wake := h.core.Wake(); wake != 0 {
			timer.Reset(wake)
		} else {
			timer.Stop()
		}
		if err := h.flush(); err != nil {
			return err
		}
		if h.halted.Load() {
			close(h.still)
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C():
			if err := h.step(core.Tick{}, nil); err != nil {
				return err
			}
		case it := <-h.items:
			if err := h.take(it); err != nil {
				return err
			}
		}
		// What has come meanwhile shares one append.
	more:
		for range maxBatch {
			select {
			case it := <-h.items:
				if err := h.take(it); err != nil {
					return err
				}
			default:
				break more
			}
		}
	}
}

func (h *head) take(it item) error {
	if it.fn != nil {
		it.fn(h.core)
		close(it.done)
		return nil
	}
	return h.step(it.ev, it.conn)
}

// step gives the core an event. An agent's counts only while its connection is the
// node's current one.
func (h *head) step(ev core.Event, conn *agentConn) error {
	if conn != nil {
		if _, up := ev.(core.AgentUp); up {
			if old := h.current[conn.node]; old != nil {
				old.close(errs.New(errs.Fenced, "node %s has connected again", conn.node))
			}
			h.current[conn.node] = conn
		} else if h.current[conn.node] != conn {
			return nil
		}
		if _, down := ev.(core.AgentDown); down {
			delete(h.current, conn.node)
		}
	}
	h.now = max(h.now, h.clock.Now())
	h.keep(h.core.Step(h.now, ev))
	return nil
}

// keep takes what a step gave: it is for the next flush.
func (h *head) keep(out core.Output) {
	for _, r := range out.Records {
		b := core.EncodeRecord(r)
		h.records = append(h.records, b)
		h.sinceBytes += int64(len(b))
	}
	h.sinceRecs += len(out.Records)
	for _, e := range out.Effects {
		p := performed{effect: e}
		// Whom a message is for is decided now: the next connection gets its own.
		switch e := e.(type) {
		case core.SendAgent:
			p.conn = h.current[e.Node]
		case core.DropAgent:
			if p.conn = h.current[e.Node]; p.conn != nil {
				delete(h.current, e.Node)
			}
		}
		h.effects = append(h.effects, p)
	}
}

// flush hands the records of the steps so far to the journal and their effects to the
// releaser, which waits for the journal.
func (h *head) flush() error {
	if len(h.records) > 0 {
		seq, err := h.journal.Append(h.records...)
		if err != nil {
			return err
		}
		h.last = seq
		h.records = nil
	}
	if len(h.effects) > 0 {
		h.release.push(due{seq: h.last, effects: h.effects})
		h.effects = nil
	}
	h.maybeSnapshot()
	return nil
}

// maybeSnapshot makes a snapshot now and then: often enough that a new head replays
// little, seldom enough that writing the state costs less than writing the records.
func (h *head) maybeSnapshot() {
	enough := h.sinceRecs >= snapshotRecs || h.sinceBytes >= snapshotBytes
	worth := h.sinceBytes >= min(2*h.snapSize, maxSnapshotGap)
	if n := h.o.snapshotRecs; n > 0 {
		enough, worth = h.sinceRecs >= n, true
	}
	if !enough || !worth || !h.snapshotting.TryLock() {
		return
	}
	state, seq := h.core.Durable().Encode(), h.last
	h.sinceRecs, h.sinceBytes, h.snapSize = 0, 0, int64(len(state))
	h.wg.Go(func() {
		defer h.snapshotting.Unlock()
		err := h.journal.Wait(h.ctx, seq)
		if err == nil {
			err = h.journal.Snapshot(seq, state)
		}
		if err != nil && h.ctx.Err() == nil {
			h.log.Warn("no snapshot of the journal", "err", err)
		}
	})
}

// post gives the loop an item; false means that the head ends.
func (h *head) post(it item) bool {
	select {
	case h.items <- it:
		return true
	case <-h.ctx.Done():
		return false
	}
}

func (h *head) event(ev core.Event) { h.post(item{ev: ev}) }

// do runs fn in the loop and waits for it; false means that the head ends and that fn
// was not run and never will be.
func (h *head) do(fn func(*core.Core)) bool {
	done := make(chan struct{})
	if !h.post(item{fn: fn, done: done}) {
		return false
	}
	select {
	case <-done:
		return true
	case <-h.over: // not h.ctx: the loop may be at it
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// performed is an effect with the connection it is for.
type performed struct {
	effect core.Effect
	conn   *agentConn
}

// due are effects that may be performed once record seq is safe.
type due struct {
	seq     uint64
	effects []performed
}

// releaseQueue is what waits for the journal, in order.
type releaseQueue struct {
	mu    sync.Mutex
	queue []due
	more  chan struct{}
}

func (q *releaseQueue) push(d due) {
	q.mu.Lock()
	q.queue = append(q.queue, d)
	q.mu.Unlock()
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *releaseQueue) take() []due {
	q.mu.Lock()
	defer q.mu.Unlock()
	d := q.queue
	q.queue = nil
	return d
}

// releaser performs effects, each after the records before it are safe, here and with
// those who follow.
func (h *head) releaser(ctx context.Context) error {
	for {
		for _, d := range h.release.take() {
			err := h.journal.Wait(ctx, d.seq)
			if err == nil {
				err = h.follow.wait(ctx, d.seq)
			}
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			for _, p := range d.effects {
				h.perform(p)
			}
		}
		select {
		case <-h.release.more:
		case <-ctx.Done():
			return nil
		}
	}
}

// stallAfter is how long a client's request waits for a disk that takes no writes
// before it is answered with the reason.
const stallAfter = 2 * time.Second
