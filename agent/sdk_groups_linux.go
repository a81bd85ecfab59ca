package agent

import (
	"context"
	"slices"
	"time"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
)

// Placement groups for programs. Those that were made on this node are the core's, which
// answers without the head where it can; of others the head is asked.

// groupWait is a question that is answered when something becomes of a group.
type groupWait struct {
	cl      *sdkClient
	request uint32
	verb    string
	timer   *time.Timer // group_wait
}

// lookAgain is between two questions to the head about a group of another node.
const lookAgain = 50 * time.Millisecond

// groupCall takes a question about a group; false = it is none of those. a.mu is held.
func (s *sdkServer) groupCall(cl *sdkClient, request uint32, verb string, args []any) bool {
	switch verb {
	case "group_create", "group_wait", "group_remove":
	default:
		return false
	}
	var id wire.GroupID
	if len(args) == 0 || copy(id[:], textOf(args[0])) != len(id) {
		s.answer(cl, request, nil, errs.New(errs.Corrupt, "%s takes the id of a placement group", verb))
		return true
	}
	var ev core.Event
	w := &groupWait{cl: cl, request: request, verb: verb}
	switch {
	case verb == "group_create":
		spec, err := groupSpec(id, args)
		if err == nil && (id.Node() != s.number || id.Client() != cl.ID) {
			err = errs.New(errs.Permission, "client %d makes placement group %s, which is not its to make", cl.ID, id)
		}
		if err != nil {
			s.answer(cl, request, nil, err)
			return true
		}
		spec.Job, spec.Owner = cl.Job, s.number
		spec.Limits = s.core.TermsOf(cl.Job).Limits
		ev = core.MakeGroup{Spec: spec}
	case id.Node() != s.number:
		s.farGroup(w, id, args)
		return true
	case verb == "group_remove":
		ev = core.EndGroup{ID: id, Why: "it was removed"}
	default:
		info, ok := s.a.core.Group(id)
		made := slices.ContainsFunc(s.groupWaits[id], func(x *groupWait) bool { return x.verb == "group_create" })
		if ms := millis(args); ms <= 0 && !made || ok && info.State == wire.GroupCreated || !ok && !made {
			s.answer(cl, request, ok && info.State == wire.GroupCreated, nil)
			return true
		} else {
			w.timer = time.AfterFunc(time.Duration(ms)*time.Millisecond, func() { s.turn(func(int64) { s.waited(id, w) }) })
		}
	}
	s.groupWaits[id] = append(s.groupWaits[id], w)
	if ev != nil {
		s.a.events.push(ev)
	}
	return true
}

func millis(args []any) int64 {
	if len(args) > 1 {
		switch v := args[1].(type) {
		case int64:
			return v
		case uint64:
			return int64(min(v, 1<<40))
		}
	}
	return 0
}

// waited ends a group_wait whose time is over. a.mu is held.
func (s *sdkServer) waited(id wire.GroupID, w *groupWait) {
	ws := s.groupWaits[id]
	if i := slices.Index(ws, w); i >= 0 {
		s.groupWaiters(id, slices.Delete(ws, i, i+1))
		s.answer(w.cl, w.request, false, nil)
	}
}

func (s *sdkServer) groupWaiters(id wire.GroupID, ws []*groupWait) {
	if len(ws) == 0 {
		delete(s.groupWaits, id)
	} else {
		s.groupWaits[id] = ws
	}
}

// groupsChanged answers who waits for what has become of groups.
func (s *sdkServer) groupsChanged(es []core.GroupChanged) {
	s.turn(func(int64) {
		for _, e := range es {
			s.groupChanged(e)
		}
	})
}

func (s *sdkServer) groupChanged(e core.GroupChanged) {
	info, ok := s.a.core.Group(e.ID)
	var left []*groupWait
	for _, w := range s.groupWaits[e.ID] {
		switch {
		case e.Conflict && w.verb == "group_create":
			s.answer(w.cl, w.request, nil, errs.New(errs.Exists, "%s", e.Why))
		case e.Over && w.verb == "group_wait":
			s.answer(w.cl, w.request, false, nil)
		case e.Over, w.verb == "group_create" && (e.Told || ok && info.Spec.Name == ""):
			s.answer(w.cl, w.request, nil, nil)
		case w.verb == "group_wait" && ok && info.State == wire.GroupCreated:
			s.answer(w.cl, w.request, true, nil)
		default:
			left = append(left, w)
			continue
		}
		if w.timer != nil {
			w.timer.Stop()
		}
	}
	s.groupWaiters(e.ID, left)
}

// farGroup asks the head about a group of another node. a.mu is held.
func (s *sdkServer) farGroup(w *groupWait, id wire.GroupID, args []any) {
	if w.cl.asking >= maxAsks {
		s.answer(w.cl, w.request, nil, errs.New(errs.Exhausted, "%d questions of this program are being answered already", w.cl.asking))
		return
	}
	w.cl.asking++
	what := wire.GroupLook
	if w.verb == "group_remove" {
		what = wire.GroupRemove
	}
	until := time.Now().Add(time.Duration(millis(args)) * time.Millisecond)
	s.wg.Go(func() {
		var v any
		var err error
		for {
			var got []wire.GroupInfo
			got, err = askHead[[]wire.GroupInfo](s.ctx, s.a.head, wire.MsgGroup, wire.GroupRequest{What: what, ID: id})
			if err != nil || what == wire.GroupRemove {
				break
			}
			there := len(got) == 1 && got[0].State == wire.GroupCreated
			v = there
			if there || len(got) == 1 && got[0].State >= wire.GroupRemoved || !time.Now().Before(until) {
				break
			}
			select {
			case <-time.After(min(lookAgain, time.Until(until))):
			case <-s.ctx.Done():
			}
			if s.ctx.Err() != nil {
				return
			}
		}
		s.turn(func(int64) {
			w.cl.asking--
			s.answer(w.cl, w.request, v, err)
		})
	})
}

// groupSpec reads [id, name, strategy, [[cpu, gpu, memory, {name: amount}], ...], [labels, ...], detached].
func groupSpec(id wire.GroupID, args []any) (spec wire.GroupSpec, err error) {
	bad := errs.New(errs.Corrupt, "group_create takes an id, a name, a strategy, bundles, labels, whether it is detached")
	if len(args) < 6 {
		return spec, bad
	}
	list, _ := args[3].([]any)
	labels, _ := args[4].([]any)
	how, ok := amountOf(args[2])
	if !ok || how > int64(wire.GroupStrictSpread) || len(list) == 0 || len(list) > wire.MaxBundles || len(labels) > len(list) {
		return spec, bad
	}
	spec = wire.GroupSpec{ID: id, Name: textOf(args[1]), Strategy: wire.GroupStrategy(how)}
	spec.Detached, _ = args[5].(bool)
	for _, x := range list {
		b, _ := x.([]any)
		if len(b) != 4 {
			return spec, bad
		}
		var r wire.Resources
		for i, to := range []*int64{&r.CPU, &r.GPU, &r.Memory} {
			if *to, ok = amountOf(b[i]); !ok {
				return spec, bad
			}
		}
		more, _ := b[3].(map[string]any)
		for k, v := range more {
			if r.Custom == nil {
				r.Custom = map[string]int64{}
			}
			if r.Custom[k], ok = amountOf(v); !ok {
				return spec, bad
			}
		}
		spec.Bundles = append(spec.Bundles, r)
	}
	for _, x := range labels {
		tests := map[string]wire.LabelTest{}
		m, _ := x.(map[string]any)
		for k, v := range m {
			l, _ := v.([]any)
			if len(l) == 0 {
				return spec, bad
			}
			t := wire.LabelTest{Op: textOf(l[0])}
			if len(l) > 1 {
				vs, _ := l[1].([]any)
				for _, x := range vs {
					t.Values = append(t.Values, textOf(x))
				}
			}
			tests[k] = t
		}
		spec.Labels = append(spec.Labels, tests)
	}
	return spec, nil
}

func amountOf(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, v >= 0
	case uint64:
		return int64(v), v < 1<<62
	}
	return 0, false
}

// askGroups lists the groups of the cluster, or with arguments "find" and a name, or "look"
// and an id, gives one.
func (s *sdkServer) askGroups(ctx context.Context, args []any) (any, error) {
	r := wire.GroupRequest{What: wire.GroupList}
	if len(args) > 1 {
		if r.What = textOf(args[0]); r.What == wire.GroupFind {
			r.Name = textOf(args[1])
		} else {
			copy(r.ID[:], textOf(args[1]))
		}
	}
	list, err := askHead[[]wire.GroupInfo](ctx, s.a.head, wire.MsgGroup, r)
	if err != nil {
		return nil, err
	}
	list = s.withOwn(list, r)
	out := []map[string]any{}
	for i := range list {
		g := &list[i]
		bundles, nodes := []map[string]float64{}, []string{}
		for _, b := range g.Spec.Bundles {
			all := amounts(b)
			for k, v := range all {
				if v == 0 {
					delete(all, k)
				}
			}
			bundles = append(bundles, all)
		}
		for _, n := range g.Nodes {
			nodes = append(nodes, string(n))
		}
		out = append(out, map[string]any{"id": g.Spec.ID[:], "name": g.Spec.Name, "strategy": [...]string{"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}[min(g.Spec.Strategy, wire.GroupStrictSpread)],
			"bundles": bundles, "nodes": nodes, "state": g.State.String(), "why": g.Why, "detached": g.Spec.Detached, "job": g.Spec.Job})
	}
	return out, nil
}

// withOwn adds the groups that this node has made and the head has not heard of yet.
func (s *sdkServer) withOwn(list []wire.GroupInfo, r wire.GroupRequest) []wire.GroupInfo {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	var own []wire.GroupInfo
	switch r.What {
	case wire.GroupList:
		own = s.a.core.Groups()
	case wire.GroupFind:
	default:
		if g, ok := s.a.core.Group(r.ID); ok {
			own = []wire.GroupInfo{g}
		}
	}
	known := map[wire.GroupID]bool{}
	for i := range list {
		known[list[i].Spec.ID] = true
	}
	for _, g := range own {
		if !known[g.Spec.ID] {
			list = append(list, g)
		}
	}
	return list
}
