package agent

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

const (
	// batchSize is about how much output goes in one message.
	batchSize = 256 << 10
	// batchGap is how long output is collected after a batch; the first never waits.
	batchGap = 20 * time.Millisecond
	// window is how many bytes of spool may be under way without being acknowledged: the
	// head acknowledges what is on its disk.
	window    = 8 << 20
	shipPause = time.Second
)

// shipper takes the spool to the cluster's record.
type shipper struct {
	a   *agent
	enc *zstd.Encoder

	mu    sync.Mutex
	jobs  map[wire.JobID]*shipped // guarded by mu
	acked chan struct{}           // told on each acknowledgement
}

// shipped is where the output of a job stands.
type shipped struct {
	acked int64
	sent  int64 // on this session
	lost  bool  // what was before acked is gone here: should the record lack it, it is to say so
}

func newShipper(a *agent) *shipper {
	// Small windows: an agent has little memory, and lines of output are alike.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(64<<10), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic("agent: options of zstd: " + err.Error())
	}
	return &shipper{a: a, enc: enc, jobs: map[wire.JobID]*shipped{}, acked: make(chan struct{}, 1)}
}

// serve ships over one session until it ends.
func (s *shipper) serve(ctx context.Context, ss *session.Session) {
	for ctx.Err() == nil {
		err := s.stream(ctx, ss)
		select {
		case <-ctx.Done():
			return
		case <-ss.Done():
			return
		case <-time.After(shipPause):
			s.a.log.Warn("output is not taken; trying again", "err", err)
		}
	}
}

func (s *shipper) stream(ctx context.Context, ss *session.Session) error {
	st, err := ss.Open(ctx, wire.StreamLogs)
	if err != nil {
		return err
	}
	defer st.Close()
	s.mu.Lock()
	for _, x := range s.jobs {
		x.sent = x.acked
	}
	s.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { cancel(s.acks(st)) })
	stop := context.AfterFunc(ctx, func() { _ = st.Close() })
	defer stop()
	last := time.Time{}
	for {
		n, more, err := s.round(st)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		if more {
			continue // nobody may tell of what is there already
		}
		if n > 0 {
			last = time.Now()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.a.spool.Changed():
		case <-s.acked: // the window may be open again, or a gap be filled
		}
		if wait := batchGap - time.Since(last); wait > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
		}
	}
}

// round sends at most one batch of each job, gives the size of the largest and says
// whether there is more that may be sent now.
func (s *shipper) round(st *session.Stream) (most int, more bool, err error) {
	for _, j := range s.a.spool.Jobs() {
		s.mu.Lock()
		x := s.jobs[j.Job]
		if x == nil {
			x = &shipped{acked: j.Base, sent: j.Base, lost: j.Base > 0}
			s.jobs[j.Job] = x
		}
		from, room, lost := x.sent, x.sent-x.acked < window, x.lost && x.sent == x.acked
		s.mu.Unlock()
		if j.End <= from && !(lost && j.End == from) || !room {
			continue
		}
		data, to, err := s.a.spool.Read(j.Job, from, batchSize)
		if err != nil {
			if errs.Is(err, errs.NotFound) {
				s.skip(j.Job, from)
				continue
			}
			return 0, false, err
		}
		if to == from && !lost {
			continue
		}
		b := wire.LogBatch{Job: j.Job, Node: s.a.cfg.Node, Epoch: s.a.cfg.Epoch, From: from, To: to, Zstd: s.enc.EncodeAll(data, nil)}
		if lost {
			b.Base = from
		}
		s.mu.Lock()
		if x.sent != from {
			s.mu.Unlock()
			continue // an acknowledgement has moved it
		}
		x.sent = to
		x.lost = x.lost && !lost
		s.mu.Unlock()
		_ = st.SetWriteDeadline(time.Now().Add(writeBound))
		if err := st.WriteMsg(wire.MsgLogBatch, b); err != nil {
			return 0, false, err
		}
		most = max(most, len(data))
		s.mu.Lock()
		more = more || to < j.End && x.sent-x.acked < window
		s.mu.Unlock()
	}
	return most, more, nil
}

// skip goes on behind output that is not in the spool any more.
func (s *shipper) skip(job wire.JobID, from int64) {
	state, ok := s.a.spool.Job(job)
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.jobs[job]
	switch {
	case x == nil:
	case !ok:
		delete(s.jobs, job)
	case state.Base > from:
		s.a.log.Error("the record lacks output that is deleted here", "job", job, "from", from, "to", state.Base)
		x.acked, x.sent, x.lost = state.Base, state.Base, true
	}
}

// acks takes the head's acknowledgements until the stream ends.
func (s *shipper) acks(st *session.Stream) error {
	for {
		typ, body, err := st.ReadMsg()
		switch {
		case err == io.EOF:
			return errs.New(errs.Unavailable, "the head takes no output now")
		case err != nil:
			return err
		}
		switch typ {
		case wire.MsgError:
			var w errs.Wire
			if err := wire.Unmarshal(body, &w); err != nil {
				return err
			}
			return w.FromWire()
		case wire.MsgLogAck:
			var a wire.LogAck
			if err := wire.Unmarshal(body, &a); err != nil {
				return err
			}
			s.ack(a)
		}
	}
}

func (s *shipper) ack(a wire.LogAck) {
	s.mu.Lock()
	x := s.jobs[a.Job]
	if x == nil {
		s.mu.Unlock()
		return
	}
	if a.To < x.acked || a.To > x.sent {
		// A record that has less than it said, or one that has what an earlier agent of
		// this node sent: go on from there.
		x.sent = a.To
	}
	x.acked = a.To
	s.mu.Unlock()
	s.a.spool.Trim(a.Job, a.To)
	select {
	case s.acked <- struct{}{}:
	default:
	}
}

func (s *shipper) forget(job wire.JobID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.jobs, job)
}

// complete reports whether the head has all output of this node.
func (s *shipper) complete() bool {
	for _, j := range s.a.spool.Jobs() {
		s.mu.Lock()
		x := s.jobs[j.Job]
		behind := x == nil || x.acked < j.End
		s.mu.Unlock()
		if j.End > 0 && j.End > j.Base && behind {
			return false
		}
	}
	return true
}

// moveTime is how long a head may be away and is still expected back.
const moveTime = 3 * time.Second

// finish waits until the head has everything, at most bound nanoseconds; without a head
// only as long as it may be moving, or being started again: when nodes leave it does.
func (s *shipper) finish(ctx context.Context, bound int64) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(bound))
	defer cancel()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for !s.complete() {
		if s.a.head.away() > moveTime {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}
