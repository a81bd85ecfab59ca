package agent

import (
	"context"
	"encoding/json"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

// call answers a client's question. Those about the cluster go to the head and are
// answered when it has. a.mu is held.
func (s *sdkServer) call(cl *sdkClient, request uint32, body []byte) error {
	var args []any
	if err := wire.Unmarshal(body, &args); err != nil {
		return err
	}
	if len(args) == 0 {
		return errs.New(errs.Corrupt, "a question of nothing")
	}
	verb, _ := args[0].(string)
	if verb == "sync" { // what was sent before it has been dealt with
		s.core.Synced(cl.ID, request)
		return nil
	}
	if verb == "metrics" { // of the program
		var err error = errs.New(errs.Corrupt, "metrics without any")
		if told, ok := args[len(args)-1].(string); ok {
			err = s.a.metrics.user.tell(cl.ID, cl.PID, cl.Job, []byte(told))
		}
		s.answer(cl, request, nil, err)
		return nil
	}
	if s.groupCall(cl, request, verb, args[1:]) {
		return nil
	}
	ask := map[string]func(context.Context) (any, error){
		"nodes": s.askNodes,
		"cluster_resources": func(ctx context.Context) (any, error) {
			return s.askResources(ctx, func(n *wire.NodeInfo) wire.Resources { return n.Total })
		},
		"available_resources": func(ctx context.Context) (any, error) {
			return s.askResources(ctx, func(n *wire.NodeInfo) wire.Resources { return n.Free })
		},
		"timeline":     s.askTimeline,
		"jobs":         s.askJobs,
		"query":        func(ctx context.Context) (any, error) { return s.askNodesOf(ctx, args[1:]) },
		"copies":       func(ctx context.Context) (any, error) { return s.askCopies(ctx, args[1:]) },
		"name_actor":   func(ctx context.Context) (any, error) { return s.nameActor(ctx, cl, args[1:]) },
		"unname_actor": func(ctx context.Context) (any, error) { return s.unnameActor(ctx, cl, args[1:]) },
		"find_actor":   func(ctx context.Context) (any, error) { return s.findActor(ctx, args[1:]) },
		"groups":       func(ctx context.Context) (any, error) { return s.askGroups(ctx, args[1:]) },
		"named_actors": func(ctx context.Context) (any, error) { return s.namedActors(ctx, args[1:]) },
	}[verb]
	if ask == nil {
		s.answer(cl, request, nil, errs.New(errs.Version, "the agent does not know the question %.40q", verb).Hint("use the SDK of the cluster's own version"))
		return nil
	}
	if cl.asking >= maxAsks {
		s.answer(cl, request, nil, errs.New(errs.Exhausted, "%d questions of this program are being answered already", cl.asking))
		return nil
	}
	cl.asking++
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, queryWait)
		defer cancel()
		v, err := ask(ctx)
		s.turn(func(int64) {
			cl.asking--
			s.answer(cl, request, v, err)
		})
	})
	return nil
}

func (s *sdkServer) nodeList(ctx context.Context) ([]wire.NodeInfo, error) {
	return askHead[[]wire.NodeInfo](ctx, s.a.head, wire.MsgNodes, wire.NodesRequest{})
}

// alive are the states of nodes that work can run on.
var alive = []string{"up", "suspect", "draining"}

func (s *sdkServer) askNodes(ctx context.Context) (any, error) {
	list, err := s.nodeList(ctx)
	if err != nil {
		return nil, err
	}
	out := []map[string]any{}
	for i := range list {
		n := &list[i]
		out = append(out, map[string]any{"NodeID": string(n.ID), "Alive": slices.Contains(alive, n.State), "State": n.State, "NodeManagerAddress": n.Addr, "NodeName": n.Host, "Pool": n.Pool,
			"Resources": amounts(n.Total)})
	}
	return out, nil
}

func (s *sdkServer) askResources(ctx context.Context, of func(*wire.NodeInfo) wire.Resources) (any, error) {
	list, err := s.nodeList(ctx)
	if err != nil {
		return nil, err
	}
	sum := map[string]float64{}
	for i := range list {
		if slices.Contains(alive, list[i].State) {
			for k, v := range amounts(of(&list[i])) {
				sum[k] += v
			}
		}
	}
	return sum, nil
}

// amounts gives resources by their names.
func amounts(r wire.Resources) map[string]float64 {
	out := map[string]float64{"CPU": float64(r.CPU) / wire.Unit, "memory": float64(r.Memory)}
	if r.GPU != 0 {
		out["GPU"] = float64(r.GPU) / wire.Unit
	}
	for k, v := range r.Custom {
		out[k] = float64(v) / wire.Unit
	}
	return out
}

// askTimeline gives what ran where as events of Chrome's trace format.
func (s *sdkServer) askTimeline(ctx context.Context) (any, error) {
	args, err := json.Marshal(wire.TimelineQuery{Limit: 100_000})
	if err != nil {
		return nil, err
	}
	got, err := s.a.head.query(ctx, wire.Query{What: wire.QueryTimeline, Args: args})
	if err != nil {
		return nil, err
	}
	events := []map[string]any{}
	for node, n := range got.Nodes {
		if n.Err != nil {
			continue
		}
		var t wire.Timeline
		if err := json.Unmarshal(n.JSON, &t); err != nil {
			return nil, err
		}
		for i := range t.Events {
			e := &t.Events[i]
			events = append(events, map[string]any{"name": e.Name, "cat": "task", "ph": "X", "ts": float64(e.Start) / 1e3, "dur": float64(e.End-e.Start) / 1e3, "pid": string(node), "tid": e.Worker,
				"args": map[string]any{"task": e.ID, "attempt": e.Attempt, "state": e.State}})
		}
	}
	return events, nil
}
