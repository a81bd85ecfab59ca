package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"launcher/agent/store"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// answerQueries has the head answered about this node's tasks and objects.
func (s *sdkServer) answerQueries() {
	q := &s.a.questions
	q.answers(wire.QueryTasks, answerWith(s, s.core.Tasks))
	q.answers(wire.QueryObjects, answerWith(s, s.objects))
	q.answers(wire.QueryTimeline, answerWith(s, s.core.Timeline))
	q.answers(wire.QueryWhy, answerWith(s, s.core.Why))
	q.answers(wire.QueryActors, answerWith(s, s.core.Actors))
	q.answers(wire.QueryWorkers, answerWith(s, s.processes))
}

// answerWith makes an answer of what the reactor says, under its lock.
func answerWith[Q, A any](s *sdkServer, of func(Q) A) answerer {
	return func(_ context.Context, args []byte) ([]byte, error) {
		var q Q
		if len(args) > 0 {
			if err := json.Unmarshal(args, &q); err != nil {
				return nil, errs.Wrap(errs.Invalid, err, "a question to node %s", s.a.cfg.Node)
			}
		}
		s.a.mu.Lock()
		a := of(q)
		s.a.mu.Unlock()
		return json.Marshal(a)
	}
}

func utoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// objects adds what only the store knows. a.mu is held.
func (s *sdkServer) objects(q wire.SDKObjectQuery) wire.SDKObjects {
	out := s.core.Objects(q)
	u := s.store.Usage()
	out.Resident, out.Spilled, out.Segments, out.Limit = u.Live, u.Spilled, u.Used, u.Limit
	by := map[string]store.Info{}
	for _, i := range s.store.List() {
		by[i.ID.String()] = i
		if len(i.Pinned) > 0 {
			out.Pinned += i.Size
		}
	}
	for i := range out.Objects {
		o := &out.Objects[i]
		for _, n := range o.At {
			name := s.a.links.dir.name(n)
			if name == "" {
				name = wire.NodeID("number " + utoa(n))
			}
			o.Nodes = append(o.Nodes, name)
		}
		x, ok := by[o.ID]
		if !ok {
			continue
		}
		o.Copy = x.Copy
		if x.State == "spilled" || x.State == "restoring" {
			o.State = wire.ObjectSpilled
		}
		for _, client := range x.Pinned {
			who := "client " + utoa(client)
			if cl := s.clients[client]; cl != nil {
				who = "pid " + utoa(uint32(cl.PID))
			}
			o.Holders = append(o.Holders, wire.Holder{What: "pin", Who: who, Count: 1})
		}
	}
	return out
}

// processes lists drivers and workers. a.mu is held.
func (s *sdkServer) processes(struct{}) []wire.SDKProcess {
	out := []wire.SDKProcess{}
	for _, id := range sortedKeys(s.clients) {
		cl := s.clients[id]
		kind := "driver"
		switch cl.Kind {
		case sdk.KindWorker:
			kind = "worker"
		case sdk.KindPeer:
			continue
		}
		out = append(out, wire.SDKProcess{ID: fmt.Sprintf("%08x%08x", s.number, id), Kind: kind, PID: cl.PID, Job: cl.Job, Name: cl.Name})
	}
	return out
}
