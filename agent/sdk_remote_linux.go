package agent

import (
	"bytes"
	"context"
	"slices"
	"time"

	"launcher/agent/core"
	"launcher/agent/store"
	"launcher/agent/tasks"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// What tasks and objects have to do with other nodes: the reactor's tasks there (peerOut),
// other agents' tasks here (peerIn), and references to objects that other nodes own
// (borrow). All three are conversations in the frames of package sdk.

// peers are a node's conversations with other agents about tasks and objects.
type sdkPeers struct {
	out     map[uint32]*peerOut             // by the client of the reactor that stands for it; guarded by a.mu
	in      map[uint32]*peerIn              // by the client that the other agent is here; guarded by a.mu
	borrows map[uint32]*borrow              // by the owner's number; guarded by a.mu
	logs    map[string][]*peerWriter        // by job: whose drivers are there; guarded by logMu
	copying map[wire.ObjectID][]chan string // who waits for copies of an object, and is told as PeerCopied says; guarded by a.mu
	fresh   []*borrow                       // with references that their owners have not been told of; guarded by a.mu
}

// remoteEffect performs what the reactor wants of other nodes. a.mu is held.
func (s *sdkServer) remoteEffect(e tasks.Effect) {
	switch e := e.(type) {
	case tasks.OpenPeer:
		s.openPeer(e)
	case tasks.ClosePeer:
		if p := s.peers.out[e.ID]; p != nil {
			delete(s.peers.out, e.ID)
			p.cancel()
		}
	case tasks.Borrow:
		s.borrowed(e.ID, (*borrow).hold)
	case tasks.Unfetch:
		s.borrowed(e.ID, (*borrow).letGo)
	case tasks.Fetch:
		s.borrowed(e.ID, (*borrow).get)
	case tasks.Restore:
		s.restoreObject(e)
	case tasks.LeaseIdle:
		s.a.events.push(core.LeaseIdle{Lease: e.Lease, Slots: e.Slots})
	default:
		s.copyEffect(e)
	}
}

// borrowed tells the owner of an object something; of an actor that waits for an owner, or for
// this node to become that, it is said then. a.mu is held.
func (s *sdkServer) borrowed(id wire.ObjectID, tell func(*borrow, wire.ObjectID)) {
	if n := s.core.OwnerOf(id); n != 0 && n != s.number {
		tell(s.borrowOf(n), id)
	}
}

// restoreObject brings an object back that the reactor knows and memory has not: from
// disk, or from another node. a.mu is held.
func (s *sdkServer) restoreObject(e tasks.Restore) {
	place, _, _ := s.store.Where(e.ID)
	switch {
	case place != store.Nowhere:
		s.store.Restore(e.ID)
	case len(e.Nodes) > 0:
		s.wg.Go(func() {
			err := s.a.transfer.Pull(s.ctx, e.ID, e.Nodes)
			s.turn(func(now int64) { s.core.Restored(now, e.ID, err) })
		})
	case e.ID.Node() != s.number:
		s.borrowOf(e.ID.Node()).get(e.ID) // the copy of it was dropped
	default:
		s.store.Restore(e.ID) // it says that it is not there
	}
}

// evicted: the copy of an object that another node has is gone from here. a.mu is held.
func (s *sdkServer) evicted(now int64, id wire.ObjectID) {
	s.core.Lost(now, id, "its copy was dropped for room")
}

// lease tells the reactor of leases.
func (s *sdkServer) lease(e core.Effect) {
	s.turn(func(now int64) {
		switch e := e.(type) {
		case core.LeaseTaken:
			s.core.Leased(now, e.Leased)
		case core.LeaseLess:
			s.core.LeaseCut(now, e.LeaseCut)
		case core.LeasesEnd:
			s.core.LeasesEnd(now)
		case core.NoRoomEver:
			s.core.NoRoomEver(now, e.Infeasible)
		case core.BundleOver:
			s.core.BundleOver(now, e.ID)
		case core.JobsOver:
			s.core.JobsOver(now, e.Jobs)
			s.core.JobsNeverAgain(now, e.Held)
		case core.TakeActor:
			if err := s.core.TakeActor(now, e.Actor, e.Body); err != nil {
				s.a.log.Error("an actor cannot be taken over", "actor", e.Actor, "err", err)
			}
			for _, n := range s.core.NamedActors() {
				s.names[n.Actor] = n
			}
		}
	})
}

// demand tells the head what waits for room elsewhere, when that has changed. a.mu is
// held.
func (s *sdkServer) demand() {
	s.core.Alone(!s.a.core.Welcomed())
	if shapes, seen, changed := s.core.Demand(); changed {
		s.a.events.push(core.DemandChanged{Seen: seen, Shapes: slices.Clone(shapes)})
	}
}

// peerNews: the head tells of a life of a node.
func (s *sdkServer) peerNews(p wire.Peer) {
	if p.Leaves {
		s.turn(func(now int64) { s.core.NodeLeaves(now, p.Number) })
	}
	if !p.Gone {
		return
	}
	why := "node " + string(p.Node) + ": " + p.Cause
	s.turn(func(now int64) {
		if p.Number == s.number {
			return // the head drops us
		}
		s.core.Moved(now, p.Moved)
		if b := s.peers.borrows[p.Number]; b != nil {
			delete(s.peers.borrows, p.Number)
			b.end()
		}
		for id, in := range s.peers.in {
			if in.number == p.Number {
				delete(s.peers.in, id)
				in.w.close()
			}
		}
		if p.Proof {
			s.core.NodeGone(now, p.Number, why)
		} else {
			s.core.NodeSilent(now, p.Number, why)
		}
	})
}

// sendPeer gives frames to another agent. They leave after all references that this node has
// begun to hold before are known to their owners: what a frame lets go of might be all
// that kept them. a.mu is held.
func (s *sdkServer) sendPeer(client uint32, frames []byte) {
	var w *peerWriter
	if p := s.peers.out[client]; p != nil {
		w = p.w
	} else if p := s.peers.in[client]; p != nil {
		w = p.w
		if p.borrower { // only answers, which others wait for
			w.put(slices.Clone(frames), nil)
			return
		}
	}
	if w != nil {
		w.put(slices.Clone(frames), s.untold())
	}
}

// untold are the owners that have not confirmed yet what is held of theirs. a.mu is held.
func (s *sdkServer) untold() (out []awaited) {
	for _, b := range s.peers.borrows {
		if b.acked < b.synced {
			out = append(out, awaited{b, b.synced})
		}
	}
	return out
}

// peerOut is the connection to another node's agent that runs tasks of one key for this
// one.
type peerOut struct {
	id     uint32
	number uint32
	w      *peerWriter // nil: it is not there
	cancel context.CancelFunc
}

const (
	// reopenFor is how long a broken connection to another agent is tried again before
	// what it had is given up.
	reopenFor   = 15 * time.Second
	reopenPause = 50 * time.Millisecond
)

// openPeer connects, and again, until the reactor does not want it any more or the other
// side is given up. a.mu is held.
func (s *sdkServer) openPeer(e tasks.OpenPeer) {
	p := &peerOut{id: e.ID, number: e.Number}
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(s.ctx)
	s.peers.out[e.ID] = p
	k := e.Key
	hello := sdk.PeerHello{Job: k.Job, Language: k.Language, Program: k.Program, Dir: k.Dir, Path: splitPath(k.Path), DirOf: k.DirOf, Terms: e.Terms}
	s.wg.Go(func() {
		defer p.cancel()
		since, pause := time.Now(), reopenPause
		for {
			if hello.Sum == "" && hello.Job != "" && k.Language != "python" {
				hello.Sum = s.programs.sum(ctx, k.Job, k.Program)
			}
			opened, err := s.runPeer(ctx, p, hello)
			if ctx.Err() != nil {
				return
			}
			if opened {
				since, pause = time.Now(), reopenPause
			}
			over := errs.Is(err, errs.Lost) || errs.Is(err, errs.Fenced)
			if over || time.Since(since) > reopenFor {
				s.a.log.Info("another node's agent is given up", "number", p.number, "err", err)
				s.turn(func(now int64) {
					if s.peers.out[p.id] == p {
						delete(s.peers.out, p.id)
						s.core.RemoteGone(now, p.id, err.Error(), !over)
					}
				})
				return
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, time.Second)
		}
	})
}

// runPeer is one connection: it is told what this node has there, then both sides talk.
func (s *sdkServer) runPeer(ctx context.Context, p *peerOut, hello sdk.PeerHello) (opened bool, err error) {
	st, err := s.a.links.stream(ctx, p.number, taskLane, wire.StreamTasks)
	if err != nil {
		return false, err
	}
	if err := st.WriteMsg(sdk.MsgPeerHello, hello); err != nil {
		_ = st.Close()
		return false, err
	}
	w := newPeerWriter(s, st)
	stop := context.AfterFunc(ctx, w.finish)
	defer stop()
	s.turn(func(now int64) {
		p.w = w
		s.core.RemoteOpen(now, p.id)
	})
	err = w.read(func(now int64, typ uint16, body []byte) error {
		if typ == sdk.MsgLog {
			s.logFrom(hello.Job, body)
			return nil
		}
		return s.core.Remote(now, p.id, typ, body)
	})
	s.turn(func(now int64) {
		p.w = nil
		s.core.RemoteClosed(now, p.id)
	})
	w.close()
	if err == nil {
		err = errs.New(errs.Unavailable, "the other agent ended the connection")
	}
	return true, err
}

// peerIn is an agent that is a client here.
type peerIn struct {
	number   uint32
	borrower bool // it refers to objects, and has no tasks here
	w        *peerWriter
}

// servePeer serves a stream on which another agent is a client of this one.
func (s *sdkServer) servePeer(ctx context.Context, st peerStream, m wire.PeerOpen) error {
	hello, err := readPeerHello(st)
	if err != nil {
		return err
	}
	w := newPeerWriter(s, st)
	defer w.close()
	stop := context.AfterFunc(ctx, w.close)
	defer stop()
	p := &peerIn{number: m.Number, borrower: hello.Job == "", w: w}
	who := tasks.Client{Kind: sdk.KindPeer, Peer: m.Number, Job: hello.Job, Language: hello.Language, Program: hello.Program, Dir: hello.Dir, Path: hello.Path, DirOf: hello.DirOf, Name: string(m.From), Terms: hello.Terms}
	s.a.links.dir.watch(m.Number)
	if hello.Language != "python" {
		s.programs.offered(&hello, m.Number)
	}
	s.turn(func(now int64) {
		if who.ID = s.core.FindPeer(who); who.ID != 0 {
			if old := s.peers.in[who.ID]; old != nil {
				old.w.close()
			}
			s.peers.in[who.ID] = p
			s.core.Back(now, who.ID)
			return
		}
		who.ID = s.core.NextClient()
		s.peers.in[who.ID] = p
		err = s.core.Connect(now, who)
	})
	if err == nil {
		s.peerLogs(hello.Job, w, true)
		err = w.read(func(now int64, typ uint16, body []byte) error { return s.core.Frame(now, who.ID, typ, body) })
		s.peerLogs(hello.Job, w, false)
	}
	s.turn(func(now int64) {
		if s.peers.in[who.ID] != p {
			return // it has connected again
		}
		delete(s.peers.in, who.ID)
		if err == nil && s.ctx.Err() == nil {
			s.core.Gone(now, who.ID, "it needs nothing here any more")
		} else {
			s.core.Away(now, who.ID)
		}
	})
	return err
}

// peerLogs has another node's agent told what workers of a job print here, or not any more.
func (s *sdkServer) peerLogs(job string, w *peerWriter, tell bool) {
	if job == "" {
		return
	}
	s.logMu.Lock()
	defer s.logMu.Unlock()
	l := slices.DeleteFunc(s.peers.logs[job], func(x *peerWriter) bool { return x == w })
	if tell {
		l = append(l, w)
	}
	if s.peers.logs[job] = l; len(l) == 0 {
		delete(s.peers.logs, job)
	}
}

// logFrom passes on to a job's drivers here what its workers elsewhere have printed.
func (s *sdkServer) logFrom(job string, body []byte) {
	s.logMu.Lock()
	to := slices.Clone(s.drivers[job])
	s.logMu.Unlock()
	for _, c := range to {
		c.putLog(bytes.Count(body, []byte{'\n'}), func(int) []byte { return wire.AppendFrame(nil, sdk.MsgLog, body) })
		c.flush()
	}
}
