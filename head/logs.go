package head

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"launcher/head/core"
	"launcher/head/record"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

const (
	// ackEvery is how long output waits to be made safe together with other output. A
	// lost node loses at most what was not acknowledged, 2 s of it.
	ackEvery = 300 * time.Millisecond
	// ackBytes is how much output is acknowledged without waiting for that.
	ackBytes = 2 << 20
	// endEvery is the same when a job has ended and somebody may wait for the last of it.
	endEvery = 3 * time.Millisecond
	// fullRetry is how often output is tried again on a full or failing disk.
	fullRetry = time.Second
	ackBound  = 2 * time.Second
)

// logKeeper takes output from agents into the record and acknowledges it once it is
// safe.
type logKeeper struct {
	h      *head
	w      *record.Writer
	kick   chan struct{}
	urgent chan struct{} // a job has ended, or much is not safe yet
	unsafe atomic.Int64  // about how much was taken since the last sync

	mu     sync.Mutex
	acks   []ackDue                      // guarded by mu
	wanted map[wire.JobID][]core.LogPart // guarded by mu
	known  map[wire.JobID]bool           // jobs that exist; guarded by mu
	stuck  map[*session.Stream]error     // why output cannot be written; guarded by mu
}

// trouble says that output cannot be written, and why; "" = it can.
func (l *logKeeper) trouble() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, err := range l.stuck {
		return "output cannot be written and waits on the nodes: " + errs.Line(err)
	}
	return ""
}

// ackDue is an acknowledgement of what is safe at the next sync.
type ackDue struct {
	st    *session.Stream
	job   wire.JobID
	node  wire.NodeID
	epoch wire.Epoch
	to    int64
	gone  bool // the job was forgotten
}

func newLogKeeper(h *head) *logKeeper {
	return &logKeeper{h: h, w: h.record, kick: make(chan struct{}, 1), urgent: make(chan struct{}, 1), wanted: map[wire.JobID][]core.LogPart{}, known: map[wire.JobID]bool{}, stuck: map[*session.Stream]error{}}
}

// hurry makes what was taken safe now, not at the usual pace.
func (l *logKeeper) hurry() {
	select {
	case l.urgent <- struct{}{}:
	default:
	}
}

func (l *logKeeper) poke() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *logKeeper) reader() (*record.Reader, error) { return record.Open(l.h.state) }

// grown gives a channel that is closed when the job's output has grown.
func (l *logKeeper) grown(job wire.JobID) (<-chan struct{}, error) {
	_, more, err := l.w.End(job)
	return more, err
}

// exists says whether there is such a job; an error means that the head ends.
func (l *logKeeper) exists(job wire.JobID) (bool, error) {
	l.mu.Lock()
	ok := l.known[job]
	l.mu.Unlock()
	if ok {
		return true, nil
	}
	_, ok, err := l.h.job(job)
	if ok {
		l.mu.Lock()
		l.known[job] = true
		l.mu.Unlock()
	}
	return ok, err
}

// serve takes the batches of one agent's log stream. A batch that begins behind what the
// record has is answered with where to begin again.
func (l *logKeeper) serve(ctx context.Context, s *session.Session, st *session.Stream) {
	defer st.Close()
	for {
		typ, body, err := st.ReadMsg()
		if err == io.EOF {
			return
		}
		if err != nil {
			return
		}
		if typ != wire.MsgLogBatch {
			continue
		}
		var b wire.LogBatch
		err = wire.Unmarshal(body, &b)
		if err == nil && string(b.Node) != s.Peer().Name {
			err = errs.New(errs.Permission, "node %s sends output of node %s", s.Peer().Name, b.Node)
		}
		known, have := false, int64(0)
		if err == nil {
			known, err = l.exists(b.Job)
		}
		switch {
		case err == nil && known:
			have, err = l.take(ctx, st, b)
			// An agent sends a bounded amount ahead of its acknowledgement: do not let it wait.
			if l.unsafe.Add(b.To-b.From) > ackBytes {
				l.hurry()
			}
		case err == nil:
			have = b.To // of a job that was forgotten: the agent may forget it too
		}
		if errs.Is(err, errs.Invalid) {
			// A gap. The agent learns what is safe and begins there on another stream.
			if safe, err2 := l.w.Safe(b.Job, b.Node, b.Epoch); err2 == nil && l.h.journal.Check() == nil {
				_ = st.SetWriteDeadline(time.Now().Add(ackBound))
				_ = st.WriteMsg(wire.MsgLogAck, wire.LogAck{Job: b.Job, To: safe})
			}
		}
		if err != nil {
			if l.h.ctx.Err() == nil {
				l.h.log.Warn("output refused", "node", s.Peer().Name, "job", b.Job, "err", err)
			}
			_ = st.WriteErr(err)
			return
		}
		l.ack(ackDue{st: st, job: b.Job, node: b.Node, epoch: b.Epoch, to: have, gone: !known})
	}
}

// take appends a batch, trying again for as long as the disk is at fault: the agent
// keeps its output meanwhile, and is held up by not being read.
func (l *logKeeper) take(ctx context.Context, st *session.Stream, b wire.LogBatch) (int64, error) {
	defer func() {
		l.mu.Lock()
		delete(l.stuck, st)
		l.mu.Unlock()
	}()
	for said := false; ; {
		have, err := l.w.Append(b)
		if err == nil || errs.Is(err, errs.Invalid) || errs.Is(err, errs.Corrupt) {
			return have, err
		}
		if !said {
			l.h.log.Error("output cannot be written, trying again", "job", b.Job, "node", b.Node, "err", err)
			said = true
			l.mu.Lock()
			l.stuck[st] = err
			l.mu.Unlock()
		}
		select {
		case <-time.After(fullRetry):
		case <-ctx.Done():
			return have, errEnding()
		}
	}
}

func (l *logKeeper) ack(a ackDue) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.acks {
		if b := &l.acks[i]; b.st == a.st && b.job == a.job && b.epoch == a.epoch {
			b.to = a.to
			return
		}
	}
	l.acks = append(l.acks, a)
	l.poke()
}

// want notes that a job is over once the record has all parts.
func (l *logKeeper) want(job wire.JobID, parts []core.LogPart) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted[job] = parts
	l.poke()
	l.hurry()
}

// run makes output safe and acknowledges it until ctx ends.
func (l *logKeeper) run(ctx context.Context) {
	pause := time.NewTimer(0)
	<-pause.C
	for {
		select {
		case <-l.kick:
		case <-ctx.Done():
			return
		}
		wait := ackEvery
		for {
			pause.Reset(wait)
			select {
			case <-pause.C:
			case <-l.urgent:
				pause.Reset(endEvery)
				select {
				case <-pause.C:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
			err := l.sync(ctx)
			if err == nil {
				break
			}
			l.h.log.Error("output cannot be made safe, trying again", "err", err)
			wait = fullRetry
		}
	}
}

// sync makes what was taken safe, acknowledges it, and tells the core which jobs are
// complete.
func (l *logKeeper) sync(ctx context.Context) error {
	l.mu.Lock()
	acks := l.acks
	l.acks = nil
	l.mu.Unlock()
	l.unsafe.Store(0)
	failed := l.w.Sync()
	var mine error // another head that has replaced this one has not seen what came here since
	if len(acks) > 0 {
		mine = l.h.journal.Check()
	}
	for _, a := range acks {
		safe, err := a.to, mine
		if !a.gone && err == nil {
			safe, err = l.w.Safe(a.job, a.node, a.epoch)
		}
		if err == nil && safe < a.to {
			err = errs.New(errs.Unavailable, "output of job %d could not be made safe", a.job)
		}
		if err == nil {
			_ = a.st.SetWriteDeadline(time.Now().Add(ackBound))
			err = a.st.WriteMsg(wire.MsgLogAck, wire.LogAck{Job: a.job, To: a.to})
		}
		if err != nil {
			_ = a.st.CloseWith(err) // the agent opens another and sends again
		}
	}
	if failed != nil {
		return failed
	}
	return l.complete()
}

// complete tells the core of jobs whose output is all there. What is dirty again by now
// is so behind what was wanted.
func (l *logKeeper) complete() error {
	l.mu.Lock()
	jobs := make(map[wire.JobID][]core.LogPart, len(l.wanted))
	for job, parts := range l.wanted {
		jobs[job] = parts
	}
	l.mu.Unlock()
next:
	for job, parts := range jobs {
		for _, p := range parts {
			have, err := l.w.Safe(job, p.Node, p.Epoch)
			if err != nil {
				return err
			}
			if have < p.End {
				continue next
			}
		}
		if err := l.w.Ended(job); err != nil {
			return err
		}
		l.mu.Lock()
		delete(l.wanted, job)
		delete(l.known, job)
		l.mu.Unlock()
		l.h.event(core.LogsDone{Job: job})
	}
	return nil
}
