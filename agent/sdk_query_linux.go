package agent

import (
	"context"
	"encoding/json"

	"launcher/internal/errs"
	"launcher/wire"
)

// askNodesOf asks all nodes, or one, what the head may ask them: [what, arguments as JSON,
// node or ""]. It gives [node, JSON, what went wrong] for each.
func (s *sdkServer) askNodesOf(ctx context.Context, args []any) (any, error) {
	var text [3]string
	for i := range min(len(args), len(text)) {
		text[i], _ = args[i].(string)
	}
	if !json.Valid([]byte(text[1])) {
		return nil, errs.New(errs.Corrupt, "a question whose arguments are no JSON")
	}
	got, err := s.a.head.query(ctx, wire.Query{What: text[0], Args: []byte(text[1]), Node: wire.NodeID(text[2])})
	if err != nil {
		return nil, err
	}
	out := [][]any{}
	for _, node := range sortedKeys(got.Nodes) {
		n := got.Nodes[node]
		wrong := ""
		if n.Err != nil {
			wrong = n.Err.FromWire().Error()
		}
		out = append(out, []any{string(node), string(n.JSON), wrong})
	}
	return out, nil
}

// askJobs gives the cluster's jobs, ended ones too.
func (s *sdkServer) askJobs(ctx context.Context) (any, error) {
	list, err := askHead[[]wire.JobInfo](ctx, s.a.head, wire.MsgJobs, wire.JobsRequest{All: true})
	if err != nil {
		return nil, err
	}
	out := []map[string]any{}
	for i := range list {
		j := &list[i]
		out = append(out, map[string]any{"id": uint32(j.ID), "name": j.Name, "kind": string(j.Kind), "state": j.State.String(), "command": j.Command, "cause": j.Cause,
			"exit_code": j.ExitCode, "submitted": j.Submitted, "started": j.Started, "ended": j.Ended})
	}
	return out, nil
}
