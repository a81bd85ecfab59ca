package agent

import (
	"context"
	"runtime/debug"
	"strconv"
	"strings"

	"launcher/configs"
	"launcher/internal/errs"
	"launcher/shm/cgroup"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Batches of the log that begin with one of these are the shell's own: who its clients are.
// Those of the reactor begin with smaller numbers.
const (
	recClient    = 0xFE
	recForgotten = 0xFF
)

const (
	taskLogName = "tasks"
	// taskCompactAt is the least size at which the log is replaced by a snapshot.
	taskCompactAt = 16 << 20
)

// remember writes down who a client is. a.mu is held.
func (s *sdkServer) remember(cl *sdkClient) error {
	return s.log.append(append([]byte{recClient}, wire.Marshal(cl.sdkRecord)...))
}

// forgotten writes down that a client is gone. a.mu is held.
func (s *sdkServer) forgotten(cl *sdkClient) {
	if err := s.log.append(append([]byte{recForgotten}, wire.Marshal(cl.ID)...)); err != nil {
		s.a.log.Error("the end of a client cannot be written down", "client", cl.ID, "err", err)
	}
}

// restore takes up the log of an earlier agent, or begins one. Clients that it knew are
// away until they come back.
func (s *sdkServer) restore(ctx context.Context) error {
	f := s.a.take(taskLogName)
	var err error
	if f == nil {
		s.log, err = newMemoryLog(ctx, s.a.super, taskLogName, taskCompactAt, nil)
		return err
	}
	s.log, err = takeUpMemoryLog(s.a.super, taskLogName, taskCompactAt, f, func(b []byte) error {
		switch {
		case len(b) == 0:
			return errs.New(errs.Corrupt, "an empty record in the log of tasks")
		case b[0] == recClient:
			var r sdkRecord
			if err := wire.Unmarshal(b[1:], &r); err != nil {
				return err
			}
			s.clients[r.ID] = &sdkClient{sdkRecord: r, gone: make(chan struct{})}
			return nil
		case b[0] == recForgotten:
			var id uint32
			if err := wire.Unmarshal(b[1:], &id); err != nil {
				return err
			}
			delete(s.clients, id)
			return nil
		}
		return s.core.Restore(b)
	})
	if err != nil {
		return err
	}
	now := s.a.clock.Now()
	for id, cl := range s.clients {
		if cl.Kind == sdk.KindWorker {
			if f := s.a.take(controlName(id)); f != nil {
				if cl.control, err = newControl(f); err != nil {
					s.a.log.Warn("a worker's control page", "worker", id, "err", err)
				}
			}
		}
		if !s.core.Has(id) {
			delete(s.clients, id)
		}
	}
	s.core.Resume(now)
	p, _ := s.core.Programs()
	s.a.core.SetPrograms(p)
	s.a.core.SetActors(wire.ActorTell{Made: s.core.Wills()})
	for _, n := range s.core.NamedActors() {
		s.names[n.Actor] = n
	}
	for _, id := range s.store.Clients() {
		if s.clients[id] == nil {
			s.store.Detach(id)
		}
	}
	st := s.core.Stats()
	s.a.log.Info("tasks taken over from the agent before", "clients", len(s.clients), "running", st.Running, "queued", st.Queued, "objects", st.Objects)
	return nil
}

// resume begins to do what the reactor wants, now that all parts are there, and gives up
// workers that were being started, or died, when the agent before this one did.
func (s *sdkServer) resume() {
	s.turn(func(now int64) {
		s.ready = true
		alive := map[string]bool{}
		for _, cl := range s.clients {
			alive[cl.Job] = true
		}
		for _, job := range s.a.workers.Jobs() {
			if !alive[job] { // its end was written down, but not done
				s.a.workers.EndJob(job)
			}
		}
		for id, cl := range s.clients {
			if _, ok := s.a.workers.Of(id); !ok && cl.Kind == sdk.KindWorker {
				s.forget(now, cl, "it was gone when the agent was started again")
			}
		}
	})
}

// compact begins the log anew with a snapshot. a.mu is held.
func (s *sdkServer) compact() {
	var snap [][]byte
	for _, cl := range s.clients {
		snap = append(snap, append([]byte{recClient}, wire.Marshal(cl.sdkRecord)...))
	}
	if err := s.log.replace(context.Background(), append(snap, s.core.Snapshot()...)); err != nil {
		s.a.log.Error("the log of tasks cannot be made shorter", "err", err)
		s.log.next = 2 * s.log.log.End()
	}
	if s.log.log.End() > largeLog { // what was written lies in the heap once more, and may for minutes
		s.wg.Go(debug.FreeOSMemory)
	}
}

// largeLog is a log after whose writing memory is given back at once.
const largeLog = 32 << 20

// objectMemory is how much memory the node's objects may take: "30%" of what it has, or a
// size.
func objectMemory(text string, total int64) (int64, error) {
	if text == "" {
		text = "30%"
	}
	if p, ok := strings.CutSuffix(text, "%"); ok {
		share, err := strconv.ParseFloat(p, 64)
		if err != nil || share <= 0 || share > 100 {
			return 0, errs.New(errs.Invalid, "[objects] memory = %q", text)
		}
		if _, left, ok := cgroup.Find("/").Memory(); ok {
			total = min(total, left)
		}
		return max(int64(float64(total)*share/100), minObjectMemory), nil
	}
	return configs.ParseSize(text)
}

// minObjectMemory is what a node has for objects however small it is.
const minObjectMemory = 64 << 20
